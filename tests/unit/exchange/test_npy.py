"""One `.npy` per image, and SCAN's arrays with one caption per image."""

import json

import numpy as np
import pytest

from catalog.index import ImageRows
from core.console import UserError
from exchange.importing import open_reader
from model.data import read_split

IMAGES = ImageRows(["42", "7"], "digest", ["COCO_val2014_000000000042.jpg", "7.jpg"], [(48, 64)] * 2)


def read(path, feature="regions", **options):
    reader = open_reader(feature, {"format": "npy", "path": str(path)} | options, IMAGES)
    return reader, *reader.read(range(2))


@pytest.mark.parametrize("turned", [False, True])
def test_regions(tmp_path, turned):
    arrays = {
        name: np.random.default_rng(k).random((k + 3, 300), dtype=np.float32) for k, name in enumerate(("42", "7"))
    }
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values.T if turned else values[None])
    _, rows, failures = read(tmp_path)
    assert failures == [] and rows["counts"].tolist() == [3, 4] and rows["features"].shape == (2, 36, 300)
    for row, values in enumerate(arrays.values()):
        assert np.allclose(rows["features"][row, : len(values)], values, atol=1e-3)


def test_grids(tmp_path):
    content = np.random.default_rng(0).random((300, 2, 2), dtype=np.float32)
    np.save(tmp_path / "42.npy", content.transpose(1, 2, 0))
    np.save(tmp_path / "7.npy", content.reshape(300, 4).T)
    for grid, shapes in (("native", [[2, 2], [2, 2]]), (1, [[1, 1], [1, 1]])):
        _, rows, failures = read(tmp_path, "grids", grid=grid)
        assert failures == [] and rows["grid_shapes"].tolist() == shapes
        expected = content.reshape(300, 4).T if grid == "native" else content.mean((1, 2))[None]
        for row in range(2):
            assert np.allclose(rows["features"][row, : len(expected)], expected, atol=1e-3)


def test_few_channels_and_cells_in_a_row(tmp_path):
    content = np.random.default_rng(0).random((64, 7, 7), dtype=np.float32)
    np.save(tmp_path / "42.npy", content.transpose(1, 2, 0))
    np.save(tmp_path / "7.npy", content)
    _, rows, failures = read(tmp_path, "grids", grid="native")
    assert failures == [] and rows["grid_shapes"].tolist() == [[7, 7]] * 2
    assert np.array_equal(rows["features"][0], rows["features"][1])
    # A vision transformer's: 7 x 7 cells behind a token of the whole image.
    np.save(tmp_path / "42.npy", np.ones((50, 64), np.float32))
    _, _, failures = read(tmp_path, "grids", grid=7)
    assert [row for row, _ in failures] == [0] and "is the first one a token of the whole image" in failures[0][1]
    assert read(tmp_path, "grids", grid="native")[1]["counts"].tolist() == [50, 49]


def test_what_cannot_be(tmp_path):
    np.save(tmp_path / "42.npy", np.ones((3, 8), np.float32))
    for values, message in (
        (np.full((3, 8), np.nan, np.float32), "not finite"),
        (np.zeros((3, 8), np.float32), "all zero"),
        (np.ones((3, 9), np.float32), "features has shape (3, 9) instead of (3, 8)"),
        (np.ones((40, 8), np.float32), "raise imports.regions.num_regions"),
        (np.array([{"features": 1}], object), "an array of Python objects, which are never opened"),
        (np.ones(8, np.float32), "instead of (regions, width)"),
    ):
        np.save(tmp_path / "7.npy", values, allow_pickle=True)
        _, _, failures = read(tmp_path)
        assert [row for row, _ in failures] == [1] and message in failures[0][1]


def test_one_caption_per_image(tmp_path):
    from catalog.run import main

    values = np.random.default_rng(0).random((10, 3, 8), dtype=np.float32)
    np.save(tmp_path / "test_ims.npy", values)
    (tmp_path / "test_caps.txt").write_text("".join(f"text {k}\n" for k in range(10)))
    dataset = {"source": "precomputed", "folder": str(tmp_path), "splits": {"test": "test"}, "features": ["regions"]}
    paths = [str(tmp_path / f"{name}.parquet") for name in ("images", "captions")]

    def index(**more):
        main(
            [
                "index",
                "--dataset",
                "t",
                "--settings",
                json.dumps(dataset | more),
                "--images",
                paths[0],
                "--captions",
                paths[1],
            ]
        )
        return read_split(*paths, "test")

    with pytest.raises(UserError, match="captions_per_image: 1"):
        index()
    found = index(captions_per_image=1)
    assert len(found.image_ids) == len(found.captions) == 10
    source = {"format": "scan", "captions_per_image": 1} | {k: v for k, v in dataset.items() if k != "source"}
    rows, _ = open_reader("regions", source, ImageRows(found.image_ids, "x")).read(range(10))
    assert np.allclose(rows["features"], values, atol=1e-3)
