"""Embeddings on disk, what is taken over of them, and exact search in blocks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import search.vectors
from core.console import UserError
from search.vectors import Vectors, nearest, read_vectors, updated, write_vectors


def keys_of(*names: str) -> np.ndarray:
    digests = [np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint8) for name in names]
    return np.stack(digests) if digests else np.zeros((0, 32), np.uint8)


class Embedder:
    """Row r of the names it is asked for becomes the vector (length of the name, count of calls)."""

    def __init__(self, *names: str) -> None:
        self.names, self.asked = names, []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append([self.names[row] for row in rows])
        return np.array([[len(self.names[row]), len(self.asked)] for row in rows], np.float32).reshape(-1, 2)


def test_written_vectors_are_read_back(tmp_path):
    vectors = Vectors(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), keys_of(*"abcde"), "print")
    write_vectors(tmp_path / "v.safetensors", vectors)
    found = read_vectors(tmp_path / "v.safetensors")
    assert np.array_equal(found.embeddings, vectors.embeddings) and np.array_equal(found.keys, vectors.keys)
    assert found.fingerprint == "print" and isinstance(found.embeddings, np.memmap)


@pytest.mark.parametrize("damage", [lambda b: b[:40], lambda b: b[:-5], lambda b: b"", lambda b: b"\xff" * 64 + b])
def test_damage_is_told(tmp_path, damage):
    path = tmp_path / "v.safetensors"
    write_vectors(path, Vectors(np.ones((4, 3), np.float32), keys_of(*"abcd"), "print"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="damaged.*run the target `search` again"):
        read_vectors(path)
    # And does not stop who makes it again.
    updated(path, keys_of("a"), "print", Embedder("a"))
    assert len(read_vectors(path).keys) == 1


def test_only_what_is_new_is_embedded(tmp_path):
    path = tmp_path / "v.safetensors"
    first = Embedder("one", "three", "one")
    before, count = updated(path, keys_of("one", "three", "one"), "run", first)
    assert first.asked == [["one", "three"]] and count == 2, "equal images once"
    # Another order, one gone, one new.
    names = ("fifteen", "three", "one")
    second = Embedder(*names)
    after, count = updated(path, keys_of(*names), "run", second)
    assert second.asked == [["fifteen"]] and count == 1
    assert np.array_equal(after[1:], before[[1, 0]]) and after[0, 0] == 7
    third = Embedder(*names)
    again, count = updated(path, keys_of(*names), "run", third)
    assert third.asked == [] and count == 0 and np.array_equal(again, after)
    # Another run: nothing of the old may stay.
    fourth = Embedder(*names)
    _, count = updated(path, keys_of(*names), "other run", fourth)
    assert count == 3 and read_vectors(path).fingerprint == "other run"
    _, count = updated(path, keys_of(), "other run", Embedder())
    assert count == 0 and read_vectors(path).embeddings.shape == (0, 2)


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(UserError, match="region.images: 1 embeddings are not finite, the first is of row 1"):
        updated(
            tmp_path / "region.images.safetensors",
            keys_of("a", "b"),
            "run",
            lambda rows: np.array([[1.0], [np.nan]], np.float32),
        )


@pytest.mark.parametrize("top", [1, 3, 1000, 5000])
@pytest.mark.parametrize("equal", [False, True], ids=["", "ties"])
def test_blocks_find_what_a_full_sort_finds(monkeypatch, top, equal):
    monkeypatch.setattr(search.vectors, "_BLOCK_BYTES", 1)  # blocks of 1,024 rows
    generator = np.random.default_rng(2)
    tables = [generator.normal(size=(3000, 6)).astype(np.float32), generator.normal(size=(3000, 4)).astype(np.float32)]
    if equal:
        tables = [np.round(table) for table in tables]
    queries = [np.round(generator.normal(size=table.shape[1])).astype(np.float32) for table in tables]
    rows, scores = nearest(tables, queries, top)
    mean = (tables[0].astype(float) @ queries[0] + tables[1].astype(float) @ queries[1]) / 2
    expected = np.lexsort((np.arange(3000), -mean.astype(np.float32)))[:top]
    np.testing.assert_allclose(scores, mean[rows], atol=1e-4)
    np.testing.assert_allclose(scores, mean[expected], atol=1e-4)
    if equal:
        assert rows.tolist() == expected.tolist()
    without, _ = nearest(tables, queries, top, leave_out=int(rows[0]))
    assert rows[0] not in without and len(without) == min(top, 2999)
    if top > 1 and not equal:
        assert without[: top - 1].tolist() == rows[1:].tolist()


def test_nothing_is_found_among_nothing():
    rows, scores = nearest([np.zeros((0, 4), np.float32)], [np.ones(4, np.float32)], 5)
    assert len(rows) == len(scores) == 0
