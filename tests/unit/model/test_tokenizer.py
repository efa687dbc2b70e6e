from __future__ import annotations

import numpy as np
import pytest

from core.console import UserError
from model.tokenizer import SPECIAL_TOKENS, CaptionTokenizer, train_vocabulary

VOCABULARY = [*SPECIAL_TOKENS, "a", "dog", "run", "##s", "##ning", ",", "[", "]", "sep", "e", "##t", "."]


def pieces_of(tokenizer, text):
    ids, lengths = tokenizer.encode([text])
    return [tokenizer.vocabulary[i] for i in ids[0, : lengths[0]]]


def test_captions_split_as_bert_does():
    tokenizer = CaptionTokenizer(VOCABULARY)
    assert pieces_of(tokenizer, "A dogs,  Running zebra.") == [
        *("[CLS]", "a", "dog", "##s", ",", "run", "##ning", "[UNK]", ".", "[SEP]")
    ]
    assert pieces_of(tokenizer, "ét") == ["[CLS]", "e", "##t", "[SEP]"]  # accents go with upper case
    assert pieces_of(tokenizer, "a [SEP]") == ["[CLS]", "a", "[", "sep", "]", "[SEP]"]  # untrusted text stays text
    assert pieces_of(tokenizer, "") == ["[CLS]", "[SEP]"]
    assert pieces_of(CaptionTokenizer(VOCABULARY, lowercase=False), "A a") == ["[CLS]", "[UNK]", "a", "[SEP]"]


def test_encode_pads_and_cuts():
    tokenizer = CaptionTokenizer(VOCABULARY, max_tokens=5)
    ids, lengths = tokenizer.encode(["a", "a dog run a dog", ""])
    assert lengths.tolist() == [3, 5, 2]
    assert ids.tolist() == [[2, 5, 3, 0, 0], [2, 5, 6, 7, 3], [2, 3, 0, 0, 0]]
    assert ids.dtype == lengths.dtype == np.int64


def test_agrees_with_the_library_on_odd_text():
    """The batched ragged code against one plain encoding at a time."""
    captions = ["a dog", "dogs , dogs.", "", "A  ét [MASK] 漢字 dog\tdog", "zzz"]
    tokenizer = CaptionTokenizer(train_vocabulary(captions, vocabulary_size=60))
    ids, lengths = tokenizer.encode(captions)
    for row, length, caption in zip(ids, lengths, captions, strict=True):
        expected = tokenizer._tokenizer.encode(caption).ids
        assert row[:length].tolist() == [2, *expected, 3]
        assert (row[length:] == 0).all()


def test_augmentation_masks_replaces_and_removes_whole_words():
    tokenizer = CaptionTokenizer(VOCABULARY)
    pieces = tokenizer.split(["a dogs ."] * 20000)
    ids, lengths = tokenizer.batch(pieces, np.arange(20000), augmentation=0.2, generator=np.random.default_rng(0))
    assert (ids[:, 0] == 2).all() and (ids[np.arange(20000), lengths - 1] == 3).all()
    assert not np.isin(ids[:, 1:][np.arange(ids.shape[1] - 1) < (lengths - 2)[:, None]], [0, 1, 2, 3]).any()
    whole = ids[lengths == 6]
    a, dog, s = whole[:, 1], whole[:, 2], whole[:, 3]
    # Both pieces of a word are masked together or not at all.
    assert ((dog == tokenizer.mask) == (s == tokenizer.mask)).all()
    removed = np.bincount(lengths, minlength=7)[2:7] / 20000
    p = 0.08  # 40 % of 20 %
    for length, expected in {6: (1 - p) ** 3, 5: 2 * p * (1 - p) ** 2, 4: p * (1 - p) ** 2 + p * p * (1 - p)}.items():
        assert removed[length - 2] == pytest.approx(expected, abs=0.01), length
    assert np.mean(a == tokenizer.mask) == pytest.approx(0.1 / 0.92, abs=0.01)
    other = (a != tokenizer.mask) & (a != 5)
    assert np.mean(other) == pytest.approx(0.02 / 0.92 * 11 / 12, abs=0.004)
    assert len(np.unique(a[other])) == 11  # any ordinary piece
    again, _ = tokenizer.batch(pieces, np.arange(20000), augmentation=0.2, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(again, ids)


def test_vocabulary_is_made_of_frequent_words_and_characters():
    captions = ["a cat and a cat", "a dog", "The cat sat", "dog"]
    vocabulary = train_vocabulary(captions, vocabulary_size=100, min_frequency=2)
    characters = sorted("catndoghes")
    assert vocabulary == [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters), "cat", "dog"]
    assert train_vocabulary(captions[::-1], vocabulary_size=100, min_frequency=2) == vocabulary
    assert train_vocabulary(captions, vocabulary_size=26, min_frequency=1)[-1] == "cat"
    tokenizer = CaptionTokenizer(vocabulary)
    assert pieces_of(tokenizer, "Cat sat") == ["[CLS]", "cat", "s", "##a", "##t", "[SEP]"]


def test_vocabulary_file_round_trip(tmp_path):
    odd = CaptionTokenizer([*VOCABULARY, "\u2028", "x\u0085y"])
    odd.save(tmp_path / "vocab.txt")
    assert CaptionTokenizer.from_file(tmp_path / "vocab.txt").vocabulary == odd.vocabulary
    with pytest.raises(UserError, match="cannot read the vocabulary"):
        CaptionTokenizer.from_file(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"lacks \[MASK\]"):
        CaptionTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    with pytest.raises(UserError, match=r"\[PAD\] at line 2"):
        CaptionTokenizer(["a", *SPECIAL_TOKENS])
