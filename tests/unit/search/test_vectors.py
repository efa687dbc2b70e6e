"""Embeddings on disk, what is taken over of them, and exact search in blocks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import search.vectors
from core.console import UserError
from search.vectors import inner_products, nearest, read_vectors, updated


def keys_of(*names: str) -> np.ndarray:
    digests = [np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint8) for name in names]
    return np.stack(digests) if digests else np.zeros((0, 32), np.uint8)


class Embedder:
    """Row r of the names it is asked for becomes the vector (length of the name, count of calls)."""

    def __init__(self, *names: str) -> None:
        self.names, self.asked = names, []

    def __call__(self, rows: np.ndarray):
        self.asked.append([self.names[row] for row in rows])
        yield np.arange(len(rows)), np.array([[len(self.names[row]), len(self.asked)] for row in rows], np.float32)


def given(values: np.ndarray):
    """Embeds rows as what they are in `values`, in batches of two, the last batch first."""

    def embed(rows: np.ndarray):
        for start in reversed(range(0, len(rows), 2)):
            numbers = np.arange(start, min(start + 2, len(rows)))
            yield numbers, values[rows[numbers]]

    return embed


def update(path, names, fingerprint, embed, **options):
    return updated(path, keys_of(*names), fingerprint, embed, **({"width": 2} | options))


def test_written_vectors_are_read_back(tmp_path):
    from safetensors.numpy import load_file

    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    path = tmp_path / "v.safetensors"
    update(path, "abcde", "print", given(values), width=3)
    found = read_vectors(path)
    assert np.array_equal(found.embeddings, values) and np.array_equal(found.keys, keys_of(*"abcde"))
    assert found.fingerprint == "print" and isinstance(found.embeddings, np.memmap) and len(found) == 5
    assert np.array_equal(load_file(path)["embeddings"], values), "any reader of the format reads it"


def test_sets_lie_side_by_side_in_half_the_precision_and_are_taken_over(tmp_path):
    path = tmp_path / "v.safetensors"
    generator = np.random.default_rng(0)
    lengths = np.array([3, 1, 2, 3, 1])
    values = generator.normal(size=(5, 3, 2)).astype(np.float32)  # what lies behind the lengths is nobody's
    update(path, "abcae", "print", given(values), lengths=lengths)
    found = read_vectors(path)
    values[3] = values[0]  # of one key: embedded once
    assert found.embeddings.shape == (10, 2) and found.embeddings.dtype == np.float16
    for rows in (slice(0, 5), slice(1, 2), slice(3, None), slice(2, 2)):
        sets, own = found.sets(rows)
        assert own.tolist() == lengths[rows].tolist() and sets.dtype == np.float32
        expected = np.where(np.arange(sets.shape[1])[:, None] < own[:, None, None], values[rows][:, : sets.shape[1]], 0)
        np.testing.assert_array_equal(sets, expected.astype(np.float16))
    # One gone, one new, another order; a set of another size is another set.
    again, count = update(path, "ebxa", "print", given(values[[4, 1, 2, 0]] + 1), lengths=np.array([1, 1, 2, 2]))
    assert count == 2
    sets, _ = again.sets(slice(0, 4))
    np.testing.assert_array_equal(sets[:2, 0], values[[4, 1], 0].astype(np.float16))
    np.testing.assert_array_equal(sets[2:], (values[[2, 0], :2] + 1).astype(np.float16))
    with pytest.raises(UserError, match="2 embeddings are not finite, the first is of row 0"):
        update(path, "yz", "print", given(np.full((2, 3, 2), 1e9)), lengths=np.array([2, 3]))
    assert len(read_vectors(path)) == 4, "what was there stays"


@pytest.mark.parametrize("damage", [lambda b: b[:40], lambda b: b[:-5], lambda b: b"", lambda b: b"\xff" * 64 + b])
def test_damage_is_told(tmp_path, damage):
    path = tmp_path / "v.safetensors"
    update(path, "abcd", "print", given(np.ones((4, 2))))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="damaged.*make it again: snakemake .*--forcerun build_search"):
        read_vectors(path)
    # And does not stop who makes it again.
    update(path, "a", "print", Embedder("a"))
    assert len(read_vectors(path).keys) == 1


def test_only_what_is_new_is_embedded(tmp_path):
    path = tmp_path / "v.safetensors"
    first = Embedder("one", "three", "one")
    found, count = update(path, ("one", "three", "one"), "run", first)
    before = found.embeddings.copy()
    assert first.asked == [["one", "three"]] and count == 2, "equal images once"
    # Another order, one gone, one new.
    names = ("fifteen", "three", "one")
    second = Embedder(*names)
    after, count = update(path, names, "run", second)
    assert second.asked == [["fifteen"]] and count == 1
    assert np.array_equal(after.embeddings[1:], before[[1, 0]]) and after.embeddings[0, 0] == 7
    third, written = Embedder(*names), path.stat().st_ino
    again, count = update(path, names, "run", third)
    assert third.asked == [] and count == 0 and np.array_equal(again.embeddings, after.embeddings)
    assert path.stat().st_ino == written, "nothing changed, nothing is written"
    # Another run: nothing of the old may stay.
    fourth = Embedder(*names)
    _, count = update(path, names, "other run", fourth)
    assert count == 3 and read_vectors(path).fingerprint == "other run"
    _, count = update(path, (), "other run", Embedder())
    assert count == 0 and read_vectors(path).embeddings.shape == (0, 2)


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    values = np.array([[1.0, 1.0], [np.nan, 1.0], [1.0, 1.0], [1.0, np.inf]], np.float32)
    with pytest.raises(UserError, match="region.images: 2 embeddings are not finite, the first is of row 1"):
        update(tmp_path / "region.images.safetensors", "abcd", "run", given(values))


@pytest.mark.parametrize("top", [1, 3, 1000, 5000])
@pytest.mark.parametrize("equal", [False, True], ids=["", "ties"])
def test_blocks_find_what_a_full_sort_finds(monkeypatch, top, equal):
    monkeypatch.setattr(search.vectors, "_BLOCK_BYTES", 1)  # blocks of 256 rows
    generator = np.random.default_rng(2)
    tables = [generator.normal(size=(3000, 6)).astype(np.float32), generator.normal(size=(3000, 4)).astype(np.float32)]
    if equal:
        tables = [np.round(table) for table in tables]
    queries = [np.round(generator.normal(size=table.shape[1])).astype(np.float32) for table in tables]
    scorers = [inner_products(table, query) for table, query in zip(tables, queries, strict=True)]
    rows, scores = nearest(scorers, 3000, top)
    mean = (tables[0].astype(float) @ queries[0] + tables[1].astype(float) @ queries[1]) / 2
    expected = np.lexsort((np.arange(3000), -mean.astype(np.float32)))[:top]
    np.testing.assert_allclose(scores, mean[rows], atol=1e-4)
    np.testing.assert_allclose(scores, mean[expected], atol=1e-4)
    if equal:
        assert rows.tolist() == expected.tolist()
    without, _ = nearest(scorers, 3000, top, leave_out=int(rows[0]))
    assert rows[0] not in without and len(without) == min(top, 2999)
    if top > 1 and not equal:
        assert without[: top - 1].tolist() == rows[1:].tolist()


def test_nothing_is_found_among_nothing():
    rows, scores = nearest([inner_products(np.zeros((0, 4), np.float32), np.ones(4, np.float32))], 0, 5)
    assert len(rows) == len(scores) == 0
