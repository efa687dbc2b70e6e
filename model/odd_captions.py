"""Captions that a text encoder does not read as they were written: longer than it takes, or in words that it does not know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from catalog.index import listing
from model import vocabulary, words
from model.tokenizer import CaptionTokenizer, Pieces

_UNKNOWN = {vocabulary.UNKNOWN, words.UNKNOWN}
_WHOLE = 1 << 20  # pieces, of any caption


def odd_captions(
    tokenizer: CaptionTokenizer, captions: Sequence[str], ids: Sequence[str], pieces: Pieces | None = None
) -> list[str]:
    """A sentence for each oddity, with how many captions it has and some of their ids.

    Args:
        captions, ids: of each caption text and id. pieces: of the captions, where they are known already.
    """
    pieces = tokenizer.split(captions) if pieces is None else pieces
    sizes = np.diff(pieces.offsets)
    found = []
    if len(cut := _cut(tokenizer, captions, sizes)):
        found.append(
            listing(
                f"of {len(captions)} captions are cut, as text.max_tokens is {tokenizer.max_tokens}",
                [ids[at] for at in cut],
            )
        )
    unknown = [number for number, piece in enumerate(tokenizer.vocabulary) if piece in _UNKNOWN]
    before = np.concatenate(([0], np.cumsum(np.isin(pieces.ids, unknown))))
    strange = np.flatnonzero(2 * np.diff(before[pieces.offsets]) > sizes)
    if len(strange):
        what = f"of {len(captions)} captions are for more than half of words that the vocabulary does not have; are they in its language?"
        found.append(listing(what, [ids[at] for at in strange]))
    return found


def _cut(tokenizer: CaptionTokenizer, captions: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """Places of captions that have more pieces than are read."""
    around = len(getattr(tokenizer, "prefix", ())) + len(getattr(tokenizer, "suffix", ()))
    full = np.flatnonzero(sizes >= tokenizer.max_tokens - around)
    limit, tokenizer.max_tokens = tokenizer.max_tokens, _WHOLE
    try:
        whole = tokenizer.split([captions[at] for at in full])
    finally:
        tokenizer.max_tokens = limit
    return full[np.diff(whole.offsets) > sizes[full]]
