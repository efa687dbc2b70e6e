"""Batches of images: every image once, one shape each, bounded memory."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from extractors import images
from extractors.images import (
    Failure,
    ImageBatch,
    InputSpec,
    decode_image,
    iterate_batches,
    make_batch,
    resize_shortest_edge,
)
from tests.unit.extractors.photos import SPEC, saved

# A warning of Pillow is for whoever reads images, not for whoever runs the workflow.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("divisibility, padded", [(0, (30, 45)), (1, (30, 45)), (32, (32, 64)), (15, (30, 45))])
def test_normalised_then_padded(photo, channels, divisibility, padded):
    mean, std = (102.9801, 115.9465, 122.7717), (57.375, 57.12, 58.395)
    pictures = [photo[:30, :45].copy(), photo[30:, 45:].copy()]
    batch = make_batch(pictures, [7, 3], [(60, 90), (61, 91)], InputSpec(30, 45, channels, mean, std, divisibility))
    assert batch.pixels.shape == (2, 3, *padded) and batch.pixels.dtype == torch.float32
    assert (batch.rows, batch.sizes) == ([7, 3], [(30, 45)] * 2)
    assert batch.original_sizes == [(60, 90), (61, 91)]
    wanted = np.zeros((2, 3, *padded), np.float32)
    for b, picture in enumerate(pictures):
        for c in range(3):
            plane = picture[..., 2 - c if channels == "BGR" else c].astype(np.float32)
            wanted[b, c, :30, :45] = (plane - np.float32(mean[c])) / np.float32(std[c])
    np.testing.assert_array_equal(batch.pixels.numpy(), wanted)


@pytest.fixture
def folder(tmp_path, photo):
    """30 files of five sizes, two of which resize to one shape, and some that are damaged."""
    paths, sizes = [], []
    shapes = [(40, 60), (60, 40), (80, 120), (50, 50), (40, 55)]
    for i in range(30):
        height, width = shapes[i * 7 % 5]
        picture = np.array(Image.fromarray(np.roll(photo, 3 * i, 1)).resize((width, height)))
        paths.append(saved(tmp_path / f"{i}.png", picture))
        sizes.append((height, width))
    for i in (4, 11, 29):
        paths[i].write_bytes(paths[i].read_bytes()[:90])
    return paths, sizes


def contents(results) -> list:
    """Comparable form of what `iterate_batches` yields."""
    return [
        r if isinstance(r, Failure) else (r.rows, r.pixels.numpy().tobytes(), r.sizes, r.original_sizes)
        for r in results
    ]


@pytest.mark.parametrize("known", ["sizes", "no sizes", "some sizes", "wrong sizes"])
def test_batches_hold_every_image_once_and_one_shape_each(folder, known):
    paths, sizes = folder
    given = {
        "sizes": sizes,
        "no sizes": None,
        "some sizes": [size if i % 3 else (0, 0) for i, size in enumerate(sizes)],
        "wrong sizes": sizes[::-1],
    }[known]
    results = list(iterate_batches(paths, range(100, 130), SPEC, 4, 0, given))
    seen = []
    for result in results:
        if isinstance(result, Failure):
            assert result.path == str(paths[result.row - 100])
            assert "truncated" in result.error and result.path not in result.error
            seen.append(result.row)
            continue
        assert 1 <= len(result.rows) <= 4 and len(set(result.sizes)) == 1
        for row, pixels, size, original in zip(
            result.rows, result.pixels, result.sizes, result.original_sizes, strict=True
        ):
            assert original == sizes[row - 100]
            alone = resize_shortest_edge(decode_image(paths[row - 100]), 32, 48)
            assert size == alone.shape[:2] == tuple(pixels.shape[1:])
            np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), alone)
        seen += result.rows
    assert sorted(seen) == list(range(100, 130))
    assert sorted(r.row for r in results if isinstance(r, Failure)) == [104, 111, 129]


@pytest.mark.parametrize("known", [True, False])
def test_batches_are_the_same_for_any_number_of_workers(folder, known):
    paths, sizes = folder
    given = sizes if known else None
    inline = contents(iterate_batches(paths, range(30), SPEC, 4, 0, given))
    for workers in (1, 3, 20):
        assert contents(iterate_batches(paths, range(30), SPEC, 4, workers, given)) == inline


def test_known_sizes_make_full_batches(folder):
    paths, sizes = folder
    batches = [r for r in iterate_batches(paths, range(30), SPEC, 4, 0, sizes) if isinstance(r, ImageBatch)]
    by_shape: dict = {}
    for batch in batches:
        by_shape.setdefault(batch.sizes[0], []).append(len(batch.rows))
    assert len(by_shape) == 4
    for counts in by_shape.values():
        assert sum(count < 4 for count in counts) <= 1


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("one_shape", [True, False])
def test_memory_is_bounded_however_slow_the_network(monkeypatch, workers, one_shape):
    batch_size, decoded, lock = 4, [], threading.Lock()

    def decode(path):
        with lock:
            decoded.append(path)
        # Distinct shapes never fill a batch.
        return np.zeros((32, 32 if one_shape else 32 + len(decoded) % 200, 3), np.uint8)

    monkeypatch.setattr(images, "decode_image", decode)
    spec = InputSpec(32, 1000, "RGB", (0.0,) * 3, (1.0,) * 3, 1)
    done = 0
    for batch in iterate_batches([f"{i}" for i in range(120)], range(120), spec, batch_size, workers):
        time.sleep(0.002)
        assert len(decoded) - done <= 6 * batch_size
        done += len(batch.rows)
    assert done == 120


def test_stopping_early_stops_the_decoding(monkeypatch):
    decoded = []
    monkeypatch.setattr(images, "decode_image", lambda p: decoded.append(p) or np.zeros((32, 32, 3), np.uint8))
    batches = iterate_batches([f"{i}" for i in range(100)], range(100), SPEC, 2, 2)
    next(batches)
    batches.close()
    assert len(decoded) < 10
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_in_the_program_is_raised_not_recorded(monkeypatch, workers):
    def broken(_):
        raise AttributeError("typo")

    monkeypatch.setattr(images, "decode_image", broken)
    with pytest.raises(AttributeError, match="typo"):
        list(iterate_batches(["a", "b"], [0, 1], SPEC, 2, workers))


def test_no_images_make_no_batches():
    assert list(iterate_batches([], [], SPEC, 2, 2, [])) == []


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        list(iterate_batches(["a"], [0], SPEC, 0))
    with pytest.raises(ValueError, match="1 paths need as many rows"):
        list(iterate_batches(["a"], [0, 1], SPEC, 1))
    with pytest.raises(ValueError, match="'BGR' or 'RGB', not 'GBR'"):
        InputSpec(32, 48, "GBR", (0.0,) * 3, (1.0,) * 3, 1)
    for sizes in ((-1, 48), (32, 0)):
        with pytest.raises(ValueError, match="min_size must be at least 0 and max_size at least 1 pixel"):
            InputSpec(*sizes, "RGB", (0.0,) * 3, (1.0,) * 3, 1)
