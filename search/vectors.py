"""What runs compare of images and captions, kept row by row with what each was made from; and the nearest of them.

Most networks make a vector of an image. Of one that scores pairs (SCAN) an image is a set of vectors, one for each region or
cell, and a caption another, of its words; the sets lie one after the other, in half the precision.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.console import UserError
from core.files import atomic_path

VECTORS_VERSION = "1"
#: Only search.json is known to the workflow: where it is there, other files that are not whole make no job.
AGAIN = "make it again: snakemake --cores N search --forcerun build_search"
KEY_BYTES = 32  # of a sha256
_TYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "U8": np.uint8}
_BLOCK_BYTES = 64 << 20
_ROWS_AT_LEAST = 256  # of a block: fewer would be all overhead
_ROWS_AT_ONCE = 4096  # that are taken over

Batches = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Vectors:
    """What one run compares of N images or captions.

    Attributes:
        embeddings: (S, E), mapped from the file: float32 vectors, one a row; or float16, the sets of all rows one after the other.
        keys: (N, 32) uint8, digest of what each row was made from besides the run.
        fingerprint: of the run and of how features are made: rows of another one are not comparable.
        lengths: (N,) int32, at least 1, how many vectors the set of a row has; None: rows are vectors.
    """

    embeddings: np.ndarray
    keys: np.ndarray
    fingerprint: str
    lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def starts(self) -> np.ndarray:
        """(N + 1,) int64: where in `embeddings` each row begins, and where the last ends."""
        ones = np.ones(len(self.keys), np.int64) if self.lengths is None else self.lengths
        return np.concatenate(([0], np.cumsum(ones, dtype=np.int64)))

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where in `embeddings` the vectors of these rows lie, one row's after another's."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        first = np.cumsum(sizes) - sizes
        return np.arange(sizes.sum()) + np.repeat(self.starts[rows] - first, sizes)

    def sets(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """(n, L, E) float32 and (n,) int32: the sets of these rows, zeros behind their lengths."""
        lengths = self.lengths[rows]
        start, stop, _ = rows.indices(len(self))
        values = self.embeddings[self.starts[start] : self.starts[stop]]
        longest = int(lengths.max(initial=1))
        if (lengths == longest).all():
            return values.reshape(len(lengths), longest, values.shape[1]).astype(np.float32), lengths
        padded = np.zeros((len(lengths), longest, values.shape[1]), np.float32)
        padded[np.arange(longest) < lengths[:, None]] = values
        return padded, lengths

    def of(self, row: int) -> np.ndarray:
        """(E,) or (L, E) float32: the vector of a row, or its set."""
        return self.embeddings[row] if self.lengths is None else self.sets(slice(row, row + 1))[0][0]

    def pooled(self) -> np.ndarray:
        """(N, E) float32: the vectors; of sets the mean of each, normalised."""
        if self.lengths is None:
            return self.embeddings
        found = np.empty((len(self), self.embeddings.shape[1]), np.float32)
        for start in range(0, len(self), _ROWS_AT_LEAST):
            rows = slice(start, start + _ROWS_AT_LEAST)
            found[rows] = self.sets(rows)[0].sum(1)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def read_vectors(path: str | os.PathLike[str]) -> Vectors:
    """Map a file written by `updated`.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 1 << 20:
                raise ValueError("its header is too long")
            header = json.loads(file.read(size))
        about = header.pop("__metadata__")
        if about["vectors_version"] != VECTORS_VERSION:
            raise UserError(
                f"{path} has version {about['vectors_version']}, this program reads {VECTORS_VERSION}; {AGAIN}"
            )
        sets = {"embeddings": "F16", "keys": "U8", "lengths": "I32"}
        expected = sets if "lengths" in header else {"embeddings": "F32", "keys": "U8"}
        for name, kind in expected.items():
            if header[name]["dtype"] != kind:
                raise ValueError(f"{name} is of type {header[name]['dtype']}")
        found = {name: _mapped(path, 8 + size, header[name]) for name in expected}
        if "lengths" in found:
            found["lengths"] = np.array(found["lengths"])
        vectors = Vectors(fingerprint=about["fingerprint"], **found)
        fit = vectors.keys.shape[1:] == (KEY_BYTES,) and vectors.embeddings.ndim == 2
        if vectors.lengths is not None:
            fit &= vectors.lengths.shape == (len(vectors),) and vectors.lengths.min(initial=1) >= 1
        if not fit or vectors.starts[-1] != len(vectors.embeddings):
            raise ValueError("its arrays do not fit together")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {AGAIN}") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); {AGAIN}") from error
    return vectors


def _mapped(path: str | os.PathLike[str], start: int, entry: Mapping[str, Any], mode: str = "r") -> np.ndarray:
    """An array of a safetensors file whose contents begin at `start`, by its entry in the header."""
    kind, shape = _TYPES[entry["dtype"]], tuple(entry["shape"])
    if 0 in shape:  # nothing cannot be mapped
        return np.zeros(shape, kind)
    return np.memmap(path, kind, mode, start + entry["data_offsets"][0], shape)


def _created(
    path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """A safetensors file of zeros, mapped to be written: of each array its type and shape."""
    header: dict[str, Any] = {"__metadata__": dict(about)}
    offset = 0
    for name, (kind, shape) in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(_TYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as the format has it: contents begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return {name: _mapped(path, 8 + len(text), header[name], "r+") for name in shapes}


def updated(
    path: Path,
    keys: np.ndarray,
    fingerprint: str,
    embed: Callable[[np.ndarray], Batches],
    *,
    width: int,
    lengths: np.ndarray | None = None,
) -> tuple[Vectors, int]:
    """Bring the file at `path` to these rows, taking over what it holds of them; a batch is in memory at a time.

    Args:
        keys, fingerprint, lengths: see `Vectors`. width: E.
        embed: row numbers (n,) -> batches of numbers among those (b,) with their embeddings: (b, E) floats, or (b, L, E) of
            sets, whatever behind their lengths. Asked for one row of each key that is new.

    Returns:
        What the file holds now, and how many rows were made anew.

    Raises:
        UserError: new embeddings are not finite.
    """
    old = _former(path, fingerprint, width, sets=lengths is not None)
    known = {} if old is None else {key.tobytes(): row for row, key in enumerate(old.keys)}
    if lengths is not None:
        lengths = np.asarray(lengths, dtype=np.int32)
    names = [key.tobytes() for key in keys]
    source = np.array([known.get(name, -1) for name in names], dtype=np.int64)
    if old is not None and lengths is not None:
        source[old.lengths[source] != lengths] = -1
    if old is not None and len(old) == len(names) and np.array_equal(source, np.arange(len(names))):
        return old, 0
    first: dict[bytes, int] = {}
    for row in np.flatnonzero(source < 0):
        first.setdefault(names[row], int(row))
    new = np.array(list(first.values()), dtype=np.int64)
    again = np.array([row for row in np.flatnonzero(source < 0) if first[names[row]] != row], dtype=np.int64)
    with atomic_path(path) as temporary:
        count = len(names) if lengths is None else int(lengths.sum(dtype=np.int64))
        shapes = {"keys": ("U8", (len(names), KEY_BYTES))} | (
            {} if lengths is None else {"lengths": ("I32", (len(names),))}
        )
        shapes["embeddings"] = ("F32" if lengths is None else "F16", (count, width))
        arrays = _created(temporary, shapes, {"vectors_version": VECTORS_VERSION, "fingerprint": fingerprint})
        arrays["keys"][:] = keys
        if lengths is not None:
            arrays["lengths"][:] = lengths
        made = Vectors(fingerprint=fingerprint, **arrays)
        bad = []
        for numbers, values in embed(new) if len(new) else ():
            rows = new[numbers]
            if lengths is not None:
                values = values[np.arange(values.shape[1]) < lengths[rows, None]]
            places = made.places(rows)
            with np.errstate(over="ignore"):  # what is not finite is told below
                made.embeddings[places] = values
            fine = np.isfinite(made.embeddings[places].sum(axis=1, dtype=np.float64))
            bad.extend(np.unique(np.repeat(rows, 1 if lengths is None else lengths[rows])[~fine]))
        if bad:
            raise UserError(
                f"{path.stem}: {len(bad)} embeddings are not finite, the first is of row {min(bad)}: the run's training has "
                "diverged, or its input features hold NaN"
            )
        taken = np.flatnonzero(source >= 0)
        for own, table, rows in (
            (taken, old, source[taken]),
            (again, made, np.array([first[names[r]] for r in again], int)),
        ):
            for start in range(0, len(own), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                made.embeddings[made.places(own[part])] = table.embeddings[table.places(rows[part])]
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
    return read_vectors(path), len(new)


def _former(path: Path, fingerprint: str, width: int, *, sets: bool) -> Vectors | None:
    """What can be taken over of a file: nothing of one that is missing, damaged, or of another run."""
    try:
        old = read_vectors(path)
    except UserError:
        return None
    same = old.fingerprint == fingerprint and old.embeddings.shape[1] == width and (old.lengths is not None) == sets
    return old if same and len(old) else None


@dataclass(frozen=True)
class Scorer:
    """How similar the rows of one table are to a question.

    Attributes:
        score: a slice of rows -> (n,) float32. width: numbers that are in memory for a row.
    """

    score: Callable[[slice], np.ndarray]
    width: int


def inner_products(table: np.ndarray, query: np.ndarray) -> Scorer:
    """Of vectors (N, E) with one (E,)."""
    return Scorer(lambda rows: table[rows] @ query, table.shape[1])


def pair_similarities(
    similarity: Callable[..., Any], table: Vectors, query: np.ndarray, *, of_captions: bool
) -> Scorer:
    """Of sets with one (L, E), as a network that scores pairs says.

    Args:
        similarity: its own: images, their lengths, captions, their lengths -> (images, captions).
        of_captions: the table is of captions and the question an image; else the other way round.
    """
    import torch

    asked = torch.from_numpy(query)[None], torch.tensor([len(query)])

    def score(rows: slice) -> np.ndarray:
        found = tuple(torch.from_numpy(part) for part in table.sets(rows))
        images, captions = (asked, found) if of_captions else (found, asked)
        with torch.inference_mode():
            return similarity(*images, *captions).float().numpy().ravel()

    return Scorer(score, int(table.lengths.max(initial=1)) * table.embeddings.shape[1])


def nearest(
    scorers: Sequence[Scorer], count: int, top: int, *, leave_out: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of highest mean similarity, exactly: block by block, so that tables may be larger than memory.

    Args:
        scorers: of each run. count: N rows of all of them. top: how many. leave_out: a row that is none.

    Returns:
        (min(top, N),) int64 rows and float32 scores, the highest first; among equals the lower row.
    """
    block = max(_ROWS_AT_LEAST, _BLOCK_BYTES // (4 * max(1, sum(one.width for one in scorers))))
    rows, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start in range(0, count, block):
        part = slice(start, min(start + block, count))
        own = sum(one.score(part) for one in scorers) / np.float32(len(scorers))
        if leave_out is not None and start <= leave_out < start + len(own):
            own[leave_out - start] = -np.inf
        if len(own) > top > 0:
            least = np.partition(own, len(own) - top)[len(own) - top]
            if len(scores) >= top:
                least = max(least, scores[-1])
            found = np.flatnonzero(own >= least)
        else:
            found = np.arange(len(own))
        rows, scores = np.concatenate((rows, found + start)), np.concatenate((scores, own[found]))
        order = np.lexsort((rows, -scores))[:top]
        rows, scores = rows[order], scores[order]
    kept = scores > -np.inf
    return rows[kept], scores[kept]
