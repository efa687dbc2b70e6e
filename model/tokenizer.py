"""Captions -> word pieces, as BERT does it: basic tokenizer, then the longest pieces of a fixed vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers

from core.console import UserError
from core.files import atomic_path
from model.vocabulary import END, MASK, PAD, SPECIAL_TOKENS, START, UNKNOWN, read_vocabulary, vocabulary_fault

_CAPTIONS_AT_ONCE = 8192


class Pieces:
    """The word pieces of many captions, one after the other, without [CLS] and [SEP].

    Attributes:
        ids: (P,) int32 vocabulary ids. words: (P,) int32, the word of its caption that each piece belongs to, from 0.
        offsets: (M + 1,) int64, caption i holds pieces offsets[i] to offsets[i + 1].
    """

    def __init__(self, ids: np.ndarray, words: np.ndarray, offsets: np.ndarray) -> None:
        self.ids, self.words, self.offsets = ids, words, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, caption: int) -> np.ndarray:
        """The piece ids of one caption."""
        return self.ids[self.offsets[caption] : self.offsets[caption + 1]]


class CaptionTokenizer:
    """A BERT tokenizer for captions.

    Args:
        vocabulary: the pieces, id = position; [PAD] is id 0, as attention masks rely on it.
        lowercase: lower-case first ("uncased"). strip_accents: and take accents off; None: where it lower-cases.
        split_chinese: each Chinese character is a word.
        max_tokens: longer captions are cut; counts [CLS] and [SEP].

    A special token's name inside a caption is text like any other.
    """

    kind = "pieces"

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        lowercase: bool = True,
        max_tokens: int = 128,
        strip_accents: bool | None = None,
        split_chinese: bool = True,
    ) -> None:
        self.vocabulary, self.lowercase, self.max_tokens = list(vocabulary), lowercase, max_tokens
        #: What is not as BERT's own tokenizers have it, for the record: `from_file` takes it again.
        self.unusual = {"strip_accents": strip_accents} if strip_accents is not None else {}
        self.unusual |= {} if split_chinese else {"split_chinese": False}
        table = {piece: index for index, piece in enumerate(self.vocabulary)}
        if what := vocabulary_fault(self.vocabulary):
            raise UserError(f"the vocabulary {what}; a BERT vocabulary (vocab.txt) is needed")
        self.start, self.end, self.mask, self.padding = table[START], table[END], table[MASK], table[PAD]
        self.prefix, self.suffix = [self.start], [self.end]
        self.ordinary = np.array([i for token, i in table.items() if token not in SPECIAL_TOKENS], dtype=np.int32)
        self._tokenizer = _basic_tokenizer(lowercase, strip_accents, split_chinese)
        self._tokenizer.model = models.WordPiece(vocab=table, unk_token=UNKNOWN, max_input_chars_per_word=100)

    @classmethod
    def from_file(cls, path: str | Path, **options: Any) -> CaptionTokenizer:
        """Read `vocab.txt`: one piece a line, UTF-8."""
        return cls(read_vocabulary(path), **options)

    def record(self) -> dict[str, Any]:
        """What `from_file` takes again beside the file that `save` writes."""
        return {"lowercase": self.lowercase, "max_tokens": self.max_tokens, **self.unusual}

    def save(self, path: str | Path) -> None:
        """Write `vocab.txt`, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{piece}\n" for piece in self.vocabulary), encoding="utf-8")

    def split(self, captions: Sequence[str]) -> Pieces:
        """The pieces of each caption, cut to `max_tokens` with what is put around them."""
        limit = self.max_tokens - len(self.prefix) - len(self.suffix)
        ids, words, lengths = [], [], []
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
            some = list(captions[start : start + _CAPTIONS_AT_ONCE])
            for one, text in zip(self._tokenizer.encode_batch(some, add_special_tokens=False), some, strict=True):
                lengths.append(min(len(one.ids), limit))
                ids.append(np.array(one.ids[:limit], dtype=np.int32))
                words.append(self._words_of(one, text)[:limit])
        none = [np.zeros(0, dtype=np.int32)]
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        return Pieces(np.concatenate(ids or none), np.concatenate(words or none), offsets)

    def _words_of(self, one: Encoding, text: str) -> np.ndarray:
        """(P,) int32, the word of `text` that each piece belongs to."""
        return np.array(one.word_ids, dtype=np.int32)

    def words(self, caption: str) -> list[str]:
        """The words of a caption, normalised, whole: what `Pieces.words` numbers."""
        normal = self._tokenizer.normalizer.normalize_str(caption)
        return [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(normal)]

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(M, T) int64 token ids [CLS] ... [SEP] (or what else the encoder was published with), padded, and (M,) int64 lengths."""
        pieces = self.split(captions)
        return self.batch(pieces, np.arange(len(pieces)))

    def batch(
        self,
        pieces: Pieces,
        captions: np.ndarray,
        *,
        augmentation: float = 0.0,
        generator: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and lengths, as `encode` gives them, of the chosen captions.

        With `augmentation` p, each word is chosen with probability p; of the chosen, 50 % have all their pieces masked,
        10 % have them replaced by random ordinary pieces, and 40 % are removed (VSE-infinity's and 3SHNet's size
        augmentation).
        """
        sizes = pieces.offsets[captions + 1] - pieces.offsets[captions]
        row = np.repeat(np.arange(len(captions)), sizes)
        first = np.cumsum(sizes) - sizes
        source = np.arange(len(row)) - np.repeat(first - pieces.offsets[captions], sizes)
        ids = pieces.ids[source]
        if augmentation > 0 and len(ids):
            words = pieces.words[source]
            starts_word = np.r_[True, (row[1:] != row[:-1]) | (words[1:] != words[:-1])]
            word = np.cumsum(starts_word) - 1
            draw = generator.random(word[-1] + 1)[word]
            ids = np.where(draw < 0.5 * augmentation, self.mask, ids)
            replaced = np.flatnonzero((draw >= 0.5 * augmentation) & (draw < 0.6 * augmentation))
            ids[replaced] = generator.choice(self.ordinary, size=len(replaced))
            kept = ~((draw >= 0.6 * augmentation) & (draw < augmentation))
            ids, row = ids[kept], row[kept]
            sizes = np.bincount(row, minlength=len(captions))
            first = np.cumsum(sizes) - sizes
        before, after = len(self.prefix), len(self.suffix)
        # Of nothing at all there is one token of padding: an encoder needs something to read.
        lengths = np.maximum(sizes.astype(np.int64) + before + after, 1)
        tokens = np.full((len(captions), lengths.max(initial=before + after)), self.padding, dtype=np.int64)
        tokens[:, :before] = self.prefix
        tokens[row, np.arange(len(row)) - np.repeat(first, sizes) + before] = ids
        tokens[np.arange(len(captions))[:, None], (before + sizes)[:, None] + np.arange(after)] = self.suffix
        return tokens, lengths


def train_vocabulary(
    captions: Iterable[str], *, vocabulary_size: int, min_frequency: int = 1, lowercase: bool = True
) -> list[str]:
    """A vocabulary from captions: special tokens, each character seen (alone and as `##` continuation), frequent words.

    Words enter by falling count, then alphabetically, so equal captions give an equal vocabulary (the library's own
    trainer breaks ties at random). A word seen fewer than `min_frequency` times, or that finds no room, is spelt.
    """
    basic, counts = _basic_tokenizer(lowercase), Counter()
    for caption in captions:
        normal = basic.normalizer.normalize_str(caption)
        counts.update(word for word, _ in basic.pre_tokenizer.pre_tokenize_str(normal))
    characters = sorted({character for word in counts for character in word})
    spelling = characters + [f"##{character}" for character in characters]
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    frequent = [word for word in ranked if counts[word] >= min_frequency and len(word) > 1]
    room = max(0, vocabulary_size - len(SPECIAL_TOKENS) - len(spelling))
    return [*SPECIAL_TOKENS, *spelling, *frequent[:room]]


def _basic_tokenizer(lowercase: bool, strip_accents: bool | None = None, split_chinese: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab={UNKNOWN: 0}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=split_chinese
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
