"""Captions that an encoder does not read as they were written are counted and named."""

import pytest

from model.odd_captions import odd_captions
from model.tokenizer import CaptionTokenizer
from model.vocabulary import SPECIAL_TOKENS
from model.words import WordTokenizer

CAPTIONS = ["a dog", "a dog a dog a", "a dog a dog a dog", "ein Hund dog", "", "zebra a"]
IDS = ["one", "fits", "long", "other", "none", "half"]


@pytest.mark.parametrize(
    "tokenizer",
    [
        CaptionTokenizer([*SPECIAL_TOKENS, "a", "dog"], max_tokens=7),
        WordTokenizer(["<pad>", "<start>", "<end>", "<unk>", "a", "dog"], max_tokens=7),
    ],
    ids=["pieces", "words"],
)
def test_captions_that_are_cut_or_of_unknown_words(tokenizer):
    cut, *_ = odd_captions(tokenizer, CAPTIONS, IDS)
    assert cut == "1 of 6 captions are cut, as text.max_tokens is 7: 'long'"
    expected = "1 of 2 captions are for more than half of words that the vocabulary does not have; are they in its language?: 'x'"
    many = ["ein Hund mit einem Ball", "a dog"]
    assert odd_captions(tokenizer, many, ["x", "y"]) == [expected]
    assert tokenizer.max_tokens == 7
    assert odd_captions(tokenizer, CAPTIONS[:2], IDS, tokenizer.split(CAPTIONS[:2])) == []
