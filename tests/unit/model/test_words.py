"""Words of captions: NLTK's, and what VSE-infinity's augmentation makes of them."""

import json
import pickle
from contextlib import nullcontext

import numpy as np
import pytest

from core.console import UserError
from model.words import MASK, WordTokenizer, count_words, words_of, write_word_vocabulary

# What NLTK 3.5 with its English Punkt model gives for the lower-cased captions.
RECORDED = {
    "A woman's red hat isn't on the table , it's white": "a woman 's red hat is n't on the table , it 's white",
    "A man. He is standing in a park.": "a man . he is standing in a park .",
    "The st. bernard dog , a big one , is in the U.S. near mt. fuji": "the st. bernard dog , a big one , is in the u.s. "
    "near mt . fuji",
    "A clock reads 10:30 a.m. on the tower.": "a clock reads 10:30 a.m. on the tower .",
    'He said "stop" to the cat': "he said `` stop '' to the cat",
    "A sign that says 'no parking' by the street": "a sign that says 'no parking ' by the street",
    "3,000 people & a $5.00 bill; 50% off!": "3,000 people & a $ 5.00 bill ; 50 % off !",
    "I'm gonna eat the cake, you'd better wait": "i 'm gon na eat the cake , you 'd better wait",
    "An old-fashioned t.v. with the word STOP. on it": "an old-fashioned t.v . with the word stop . on it",
    "The number 7-eleven sign, e.g. in red.": "the number 7-eleven sign , e.g . in red .",
    "A kid's toy... on the floor. Another toy": "a kid 's toy ... on the floor . another toy",
    "a “quoted” sign and a ‘single’ one": "a “ quoted ” sign and a ‘ single ’ one",
    "''": "''",
}


@pytest.mark.parametrize("caption", RECORDED)
def test_words_are_nltks(caption):
    assert words_of(caption.lower()) == RECORDED[caption].split()


def test_a_vocabulary_of_scan_is_read_written_and_built(tmp_path):
    words = count_words(["a dog", "a dog runs", "The DOG É"], min_count=1)
    assert words == ["<pad>", "<start>", "<end>", "<unk>", "dog", "a", "runs", "the", "é"]
    assert count_words(["a dog", "a dog runs"], min_count=2)[4:] == ["a", "dog"]
    write_word_vocabulary(tmp_path / "vocab.json", words)
    content = json.loads((tmp_path / "vocab.json").read_text())
    assert content["idx"] == 9 and content["idx2word"]["4"] == "dog"
    tokenizer = WordTokenizer.from_file(tmp_path / "vocab.json")
    ids, lengths = tokenizer.encode(["a cat É", ""])
    assert ids.tolist() == [[1, 5, 3, 8, 2], [1, 2, 0, 0, 0]] and lengths.tolist() == [5, 2]
    # Bytes were lower-cased there: letters beyond ASCII stay as they are.
    assert WordTokenizer(words, lowercase="ascii").encode(["A É"])[0].tolist() == [[1, 5, 3, 2]]
    tokenizer.save(tmp_path / "vocab.txt")
    assert WordTokenizer.from_file(tmp_path / "vocab.txt").vocabulary == words


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"word2idx": {"<pad>": 0, "a": 2}}', '{"word2idx": {"a": 0}}', '{"word2idx": [1]}']
)
def test_what_is_no_vocabulary_is_refused(tmp_path, content):
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(UserError, match="vocabulary"):
        WordTokenizer.from_file(tmp_path / "vocab.json")


def test_contradictions_and_pickles_are_told(tmp_path):
    ids = {word: number for number, word in enumerate([*count_words([]), "a", "b"])}
    files = {
        "bom.json": (b"\xef\xbb\xbf" + json.dumps({"word2idx": ids}).encode(), None),
        "back.json": (
            json.dumps({"word2idx": ids, "idx2word": {"4": "b", "5": "a"}}).encode(),
            "4 is 'a' in word2idx, 'b'",
        ),
        "pickle.json": (pickle.dumps(ids), "is a pickle of Python, which is not opened"),
        "words.pkl": (pickle.dumps(ids), "no text in UTF-8; give a vocab.txt"),
        "twice.txt": ("\n".join([*ids, "a"]).encode(), "has 'a' twice"),
    }
    for name, (content, told) in files.items():
        (tmp_path / name).write_bytes(content)
        with nullcontext() if told is None else pytest.raises(UserError, match=told):
            WordTokenizer.from_file(tmp_path / name)


def test_augmentation_masks_replaces_and_removes_at_its_rates():
    tokenizer = WordTokenizer([*count_words(["a b c d e f g h"] * 4), MASK])
    pieces = tokenizer.split(["a b c d e f g h"] * 4000)
    ids, lengths = tokenizer.batch(pieces, np.arange(4000), augmentation=0.5, generator=np.random.default_rng(0))
    assert abs(lengths.mean() / 10 - 0.8) < 0.01  # 40 % of a half are removed
    assert abs((ids == tokenizer.mask).sum() / lengths.sum() - (0.25 + 0.05 / 13) / 0.8) < 0.01
    starts = (ids[:, 0] == 1).mean()  # <start> is a word like any other
    assert 0.48 < starts < 0.53
    nothing, lengths = tokenizer.batch(pieces, np.arange(3), augmentation=1 - 1e-9, generator=np.random.default_rng(0))
    assert (lengths >= 1).all()
