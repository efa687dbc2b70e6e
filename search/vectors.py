"""Embeddings that outlive a job, row by row with what each was made from; and the nearest of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.console import UserError
from core.files import atomic_path

VECTORS_VERSION = "1"
KEY_BYTES = 32  # of a sha256
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Vectors:
    """Embeddings of one run.

    Attributes:
        embeddings: (N, E) float32, mapped from the file. keys: (N, 32) uint8, digest of what each row was made from besides
            the run. fingerprint: of the run and of how features are made: rows of another one are not comparable.
    """

    embeddings: np.ndarray
    keys: np.ndarray
    fingerprint: str


def write_vectors(path: str | os.PathLike[str], vectors: Vectors) -> None:
    """Write a safetensors file, atomically."""
    from safetensors.numpy import save_file

    tensors = {
        "embeddings": np.ascontiguousarray(vectors.embeddings, dtype=np.float32),
        "keys": np.ascontiguousarray(vectors.keys, dtype=np.uint8),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"vectors_version": VECTORS_VERSION, "fingerprint": vectors.fingerprint})


def read_vectors(path: str | os.PathLike[str]) -> Vectors:
    """Map a file written by `write_vectors`.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    again = "run the target `search` again"
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 1 << 20:
                raise ValueError("its header is too long")
            header = json.loads(file.read(size))
        about = header.pop("__metadata__")
        found = {}
        for name, dtype, kind in (("embeddings", "F32", np.float32), ("keys", "U8", np.uint8)):
            if header[name]["dtype"] != dtype:
                raise ValueError(f"{name} is of type {header[name]['dtype']}")
            shape, offset = tuple(header[name]["shape"]), 8 + size + header[name]["data_offsets"][0]
            whole = shape[0] * shape[1]
            found[name] = np.memmap(path, kind, "r", offset, shape) if whole else np.zeros(shape, kind)
        if about["vectors_version"] != VECTORS_VERSION:
            raise UserError(
                f"{path} has version {about['vectors_version']}, this program reads {VECTORS_VERSION}; {again}"
            )
        if len(found["embeddings"]) != len(found["keys"]) or found["keys"].shape[1] != KEY_BYTES:
            raise ValueError("its arrays do not fit together")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {again}") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); {again}") from error
    return Vectors(found["embeddings"], found["keys"], about["fingerprint"])


def updated(
    path: Path, keys: np.ndarray, fingerprint: str, embed: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, int]:
    """Bring the file at `path` to these rows, taking over what it holds of them.

    Args:
        keys: (N, 32) uint8. fingerprint: see `Vectors`.
        embed: row numbers (n,) -> (n, E) float32. Asked once, for one row of each key that is new.

    Returns:
        The embeddings (N, E) and how many were made anew.

    Raises:
        UserError: new embeddings are not finite.
    """
    former: dict[bytes, int] = {}
    old = None
    if path.is_file():
        try:
            old = read_vectors(path)
        except UserError:
            old = None  # damaged or of another version: all anew
    if old is not None and old.fingerprint == fingerprint:
        former = {key.tobytes(): row for row, key in enumerate(old.keys)}
    names = [key.tobytes() for key in keys]
    new: dict[bytes, int] = {}
    for row, name in enumerate(names):
        if name not in former:
            new.setdefault(name, row)
    rows = np.array(list(new.values()), dtype=np.int64)
    if len(rows) or old is None or not former:
        made = embed(rows)
        bad = np.flatnonzero(~np.isfinite(made.sum(axis=1, dtype=np.float64)))
        if len(bad):
            raise UserError(
                f"{path.stem}: {len(bad)} embeddings are not finite, the first is of row {rows[bad[0]]}: the run's training has "
                "diverged, or its input features hold NaN"
            )
        width = made.shape[1]
    else:
        made, width = np.zeros((0, old.embeddings.shape[1]), np.float32), old.embeddings.shape[1]
    place = {name: number for number, name in enumerate(new)}
    embeddings = np.empty((len(names), width), dtype=np.float32)
    taken = [row for row, name in enumerate(names) if name in former]
    if taken:
        embeddings[taken] = old.embeddings[[former[names[row]] for row in taken]]
    others = [row for row, name in enumerate(names) if name not in former]
    if others:
        embeddings[others] = made[[place[names[row]] for row in others]]
    write_vectors(path, Vectors(embeddings, keys, fingerprint))
    return embeddings, len(rows)


def nearest(
    tables: Sequence[np.ndarray], queries: Sequence[np.ndarray], top: int, *, leave_out: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of highest mean similarity, exactly: block by block, so that tables may be larger than memory.

    Args:
        tables: of each run (N, E_r) float32. queries: of each run (E_r,) float32. top: how many. leave_out: a row that is none.

    Returns:
        (min(top, N),) int64 rows and float32 scores, the highest first; among equals the lower row.
    """
    count, width = len(tables[0]), sum(table.shape[1] for table in tables)
    block = max(1024, _BLOCK_BYTES // (4 * max(1, width)))
    rows, scores = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start in range(0, count, block):
        own = sum(table[start : start + block] @ query for table, query in zip(tables, queries, strict=True))
        own = own / np.float32(len(tables))
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
