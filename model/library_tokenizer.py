"""Captions -> pieces as any published tokenizer makes them: word pieces, byte pairs or a unigram model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from core.console import UserError, first_line
from core.files import atomic_path
from model.library import library, quiet, sentencepiece_files
from model.tokenizer import CaptionTokenizer, Pieces


def load_library_tokenizer(folder: Path, *, max_tokens: int) -> LibraryTokenizer:
    """The tokenizer that an encoder was published with. Masked words become its mask token, or for want of one its unknown token.

    Raises:
        UserError: the library cannot make it of the files in the folder, or not as one that runs without the library.
    """
    transformers = library()
    try:
        with quiet(transformers), sentencepiece_files():
            given = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        mask = given.mask_token_id if given.mask_token_id is not None else given.unk_token_id
        texts = ["a b", "A man's “café”, 漢字!"]
        expected = given(texts)["input_ids"]
        reader = LibraryTokenizer(given.backend_tokenizer, mask=mask, padding=given.pad_token_id)
        ids, lengths = reader.encode(texts)
        if [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)] != expected:
            raise UserError(f"{type(given).__name__} does more than its tokenizer.json says")
        reader.max_tokens = min(max_tokens, given.model_max_length)
        return reader
    except Exception as error:  # the library raises nearly anything on what it cannot read
        raise UserError(
            f"text.pretrained: the tokenizer in {folder} cannot be used ({type(error).__name__}: {first_line(error)}); a folder with "
            "the encoder's tokenizer.json is needed"
        ) from error


class LibraryTokenizer(CaptionTokenizer):
    """A tokenizer of the tokenizers library, for captions. What is put around them, and what stands for padding, is its own.

    Args:
        tokenizer: as its file says.
        mask: id of what masked words become; None: augmentation is refused. padding: id of padding; None: 0.
        max_tokens: longer captions are cut; counts what is put around them.

    Words are what the tokenizer splits text into before it looks for pieces, and always end at white space. A special token's
    name inside a caption is text like any other.
    """

    kind = "library"

    def __init__(
        self, tokenizer: Tokenizer, *, mask: int | None = None, padding: int | None = None, max_tokens: int = 128
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer, self.max_tokens, self._given = tokenizer, max_tokens, {"mask": mask, "padding": padding}
        self.mask, self.padding = mask, padding or 0
        table = tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = [""] * (max(table.values(), default=-1) + 1)
        for piece, number in table.items():
            self.vocabulary[number] = piece
        whole = tokenizer.encode("a b")
        own = [place for place, special in enumerate(whole.special_tokens_mask) if not special]
        if not own or own != list(range(own[0], own[-1] + 1)):
            raise UserError("the tokenizer finds no pieces in 'a b', or puts others between them")
        self.prefix, self.suffix = whole.ids[: own[0]], whole.ids[own[-1] + 1 :]
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        special |= {*self.prefix, *self.suffix, mask, padding}
        self.ordinary = np.array([number for number in table.values() if number not in special], dtype=np.int32)
        self.ordinary.sort()
        self._splits = len(set(tokenizer.encode("a b c d", add_special_tokens=False).word_ids)) >= 4

    @classmethod
    def from_file(cls, path: str | Path, **options: Any) -> LibraryTokenizer:
        """Read what `save` wrote."""
        try:
            return cls(Tokenizer.from_file(str(path)), **options)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"cannot read the tokenizer {path}: {error}") from error

    def record(self) -> dict[str, Any]:
        return {"kind": self.kind, "max_tokens": self.max_tokens, **self._given}

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as its library does (JSON), atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text(self._tokenizer.to_str(), encoding="utf-8")

    def batch(
        self,
        pieces: Pieces,
        captions: np.ndarray,
        *,
        augmentation: float = 0.0,
        generator: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        if augmentation > 0 and self.mask is None:
            raise UserError(
                "this text encoder's tokenizer has neither a mask nor an unknown token for words to become; set "
                "training.word_augmentation: 0"
            )
        return super().batch(pieces, captions, augmentation=augmentation, generator=generator)

    def _words_of(self, one: Encoding, text: str) -> np.ndarray:
        given = list(one.word_ids)
        if self._splits and None not in given and text == " ".join(text.split()):
            return np.array(given, dtype=np.int32)
        # White space ends words, whatever the tokenizer says of it; what is nothing else belongs to the word behind it.
        space = np.array([character.isspace() for character in text] + [True])
        begins = ~space & np.r_[True, space[:-1]]
        number = np.cumsum(begins) - 1 + space
        at = number[[start for start, _ in one.offsets]].tolist()
        for place, (start, end) in reversed(list(enumerate(one.offsets))):
            if space[start:end].all() and place + 1 < len(given):
                given[place] = given[place + 1]
        changes = [now != before for before, now in pairwise(zip(at, given, strict=True))]
        return np.cumsum([0, *changes], dtype=np.int32)[: len(at)]

    def words(self, caption: str) -> list[str]:
        (one,) = self._tokenizer.encode_batch([caption], add_special_tokens=False)
        numbers = self._words_of(one, caption)
        ends: dict[int, tuple[int, int]] = {}
        for number, (start, end) in zip(numbers.tolist(), one.offsets, strict=True):
            known = ends.get(number, (start, end))
            ends[number] = min(known[0], start), max(known[1], end)
        return [caption[start:end].strip() for _, (start, end) in sorted(ends.items())]
