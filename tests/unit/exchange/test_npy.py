"""One `.npy` per image, and SCAN's arrays with one caption per image."""

import json

import numpy as np
import pytest

from catalog.index import ImageRows
from core.console import UserError
from exchange.formats.checks import cells_last, channels_first, check_regions, upright_regions
from exchange.formats.grids import as_map
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


def test_maps_that_do_not_keep_their_cells_are_told(tmp_path):
    for name in ("42", "7"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(int(name)).random((300, 5, 8), dtype=np.float32))
    assert (
        "maps of more than 20 cells are pooled, such as 5 x 8 to 3 x 5"
        in read(tmp_path, "grids", grid="native", max_cells=20)[0].notes[0]
    )
    assert "fewer cells a side than grid: 7 are spread over it" in read(tmp_path, "grids", grid=7)[0].notes[0]
    assert read(tmp_path, "grids", grid=5)[0].notes == read(tmp_path, "grids", grid="native")[0].notes == []


def test_what_cannot_be(tmp_path):
    np.save(tmp_path / "42.npy", np.ones((3, 8), np.float32))
    for values, message in (
        (np.full((3, 8), np.nan, np.float32), "not finite"),
        (np.zeros((3, 8), np.float32), "all zero"),
        (np.ones((3, 9), np.float32), "features has shape (3, 9) instead of (3, 8)"),
        (np.ones((40, 8), np.float32), "raise imports.regions.num_regions"),
        (np.array([{"features": 1}], object), "an array of Python objects, which are never opened"),
        (np.ones(8, np.float32), "instead of (regions, width)"),
        (np.full((3, 8), 1e-6, np.float32), "holds values of 1e-06 at most, of which float16 keeps hardly a digit"),
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


@pytest.mark.parametrize(
    ("shape", "most", "found"),
    [
        ((36, 2048), 36, (36, 2048)),
        ((2048, 36), 36, (36, 2048)),
        ((100, 64), 100, None),
        ((64, 80), 100, None),
        ((80, 64), 100, None),
        ((80, 128), 100, (80, 128)),
        ((128, 36), 36, (36, 128)),
        ((40, 8), 36, (40, 8)),  # too many, as its reader says
        ((300, 2048), 300, (300, 2048)),
    ],
)
def test_regions_without_boxes_either_way_round(shape, most, found):
    values = np.zeros(shape)
    if found is None:
        with pytest.raises(ValueError, match="could be .regions, width. or .width, regions., and nothing tells which"):
            upright_regions(values, most)
    else:
        assert upright_regions(values, most).shape == found


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((49, 2048), False), ((2048, 49), True), ((49, 128), False), ((128, 49), True), ((64, 49), True), ((196, 768), False),
        ((576, 1024), False), ((1024, 576), True), ((784, 768), False), ((768, 784), True), ((608, 1024), False), ((1024, 608), True),
        ((608, 2048), False), ((2048, 608), True), ((768, 1024), None), ((1024, 768), None), ((1024, 1024), None), ((608, 128), None),
        ((35, 64), None), ((64, 48), None),
    ],
)  # fmt: skip
def test_cells_of_a_grid_either_way_round(shape, found):
    if found is None:
        with pytest.raises(ValueError, match="could be .cells, width. or .width, cells., and nothing tells which"):
            cells_last(shape, None)
    else:
        assert cells_last(shape, None) is found
    for width, last in zip(shape, (True, False), strict=True) if len(set(shape)) > 1 else ():
        assert cells_last(shape, None, width) is last, "other files say it"


def test_maps_either_way_round():
    cases = {
        (2048, 7, 9): True,
        (7, 9, 2048): False,
        (64, 7, 9): True,
        (7, 9, 64): False,
        (32, 19, 32): None,
        (7, 7, 8): None,
    }
    for shape, first in cases.items():
        if first is None:
            with pytest.raises(ValueError, match="could be .width, h, w. or .h, w, width."):
                channels_first(shape)
            continue
        assert channels_first(shape) is first
    assert channels_first((7, 7, 8), 8) is False and channels_first((8, 7, 7), 8) is True
    values = np.ones((7, 7, 8))
    assert as_map(values, "x", (7, 8)).shape == (7, 7, 8) and as_map(values, "x", (7, 7)).shape == (8, 7, 7)


def test_of_files_that_could_be_either_the_others_tell(tmp_path):
    np.save(tmp_path / "42.npy", np.ones((64, 48), np.float32))
    with pytest.raises(
        UserError, match="no usable .npy file for any image of the index; '42': .*42.npy: shape .64, 48. could be"
    ):
        read(tmp_path, "grids", grid="native")
    np.save(tmp_path / "7.npy", np.ones((25, 48), np.float32))
    reader, rows, failures = read(tmp_path, "grids", grid="native")
    assert not failures and reader.arrays["features"].shape[1] == 48 and rows["counts"].tolist() == [64, 25]


def test_rows_of_zeros_at_the_end_are_padding(tmp_path):
    features = np.random.default_rng(0).random((5, 300), dtype=np.float32)
    np.save(tmp_path / "42.npy", np.concatenate([features, np.zeros((31, 300), np.float32)]))
    np.save(tmp_path / "7.npy", features)
    _, rows, failures = read(tmp_path)
    assert not failures and rows["counts"].tolist() == [5, 5]


@pytest.mark.parametrize(("shape", "fault"), [((512, 15, 20), ""), ((512, 20, 15), "has 20 rows of 15 cells for an image of 64 x 48"), ((512, 1, 1), "has one cell"), ((512, 12, 12), ""), ((512, 5, 20), "")])  # fmt: skip
def test_maps_that_cannot_be_of_their_image(tmp_path, shape, fault):
    np.save(tmp_path / "42.npy", np.ones((512, 15, 20), np.float32))
    np.save(tmp_path / "7.npy", np.ones(shape, np.float32))
    _, _, failures = read(tmp_path, "grids")
    assert [row for row, _ in failures] == ([1] if fault else []) and all(fault in error for _, error in failures)


def test_boxes_whose_corners_are_not_in_order_and_padding_that_is_counted():
    boxes = np.array([[0, 0, 63, 47], [10, 10, 20, 30], [5, 5, 4.5, 9]])
    features = np.ones((3, 8))
    check_regions({"features": features, "boxes": boxes}, (48, 64))
    for size in ((48, 64), None):
        with pytest.raises(
            ValueError, match="1 of 3 boxes end left of or above where they begin, number 1 is 20, 30, 10, 10"
        ):
            check_regions({"features": features, "boxes": np.array([boxes[0], [20, 30, 10, 10], boxes[2]])}, size)
        with pytest.raises(ValueError, match="as fractions of the image do"):
            check_regions(
                {
                    "features": features,
                    "boxes": [[0.5, 0.5, 0.1, 0.1], [0, 0, 1, 1], [0.1, 0.1, 0.2, 0.2]] * np.ones(1),
                },
                size,
            )
    with pytest.raises(ValueError, match="1 of 3 regions are all zero, boxes too: padding that is counted"):
        check_regions({"features": features * [[1], [1], [0]], "boxes": boxes * [[1], [1], [0]]}, None)
