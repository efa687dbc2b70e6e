"""Stores -> a file for each image -> stores: bit-exact, and as the field's programs read them."""

from __future__ import annotations

import base64

import numpy as np
import pyarrow as pa
import pytest
import torch

from catalog.index import CAPTIONS_SCHEMA, IMAGES_SCHEMA, read_image_rows, write_index
from core.console import UserError
from exchange.__main__ import main
from exchange.importing import open_reader
from exchange.per_image import export_images
from stores.schema import SCHEMA_VERSION
from tests.unit.model.conftest import FakeStore
from tests.unit.model.helpers import write_store

IDS = ["42", "sub/b c", "ä", "dropped"]
COUNTS = [6, 1, 4, 0]


@pytest.fixture
def exported(tmp_path):
    return made(tmp_path, IDS)


def made(tmp_path, ids):
    """An index, a store of regions and one of grids; `options` of `export_images`."""
    generator = np.random.default_rng(0)
    columns = {
        "image_id": ids, "path": [f"{i}.jpg" for i in ids], "width": [640] * 4, "height": [480] * 4, "split": ["val"] * 4,
        "content_hash": [f"{i:064x}" for i in range(4)], "error": [None] * 4,
    }  # fmt: skip
    images = pa.Table.from_pydict(columns, schema=IMAGES_SCHEMA)
    captions = pa.Table.from_pylist([], schema=CAPTIONS_SCHEMA)
    digest = write_index(tmp_path / "images.parquet", tmp_path / "captions.parquet", images, captions)
    valid = np.arange(6) < np.array(COUNTS)[:, None]
    boxes = generator.uniform(0, 200, (4, 6, 4)).astype(np.float32)
    boxes[..., 2:] += boxes[..., :2]
    regions = {
        "features": generator.normal(size=(4, 6, 16)).astype(np.float16) * valid[:, :, None],
        "boxes": boxes * valid[:, :, None],
        "scores": generator.random((4, 6)).astype(np.float32) * valid,
        "class_ids": np.where(valid, generator.integers(0, 1600, (4, 6)), -1).astype(np.int16),
        "class_scores": generator.random((4, 6)).astype(np.float32) * valid,
        "attribute_ids": np.where(valid, generator.integers(-1, 400, (4, 6)), -1).astype(np.int16),
        "attribute_scores": generator.random((4, 6)).astype(np.float32) * valid,
        "counts": np.array(COUNTS, np.int16),
    }
    shapes = np.array([[2, 3], [3, 2], [1, 6], [0, 0]], np.int16)
    grids = {
        "features": generator.normal(size=(4, 6, 16)).astype(np.float16),
        "counts": np.array([6, 6, 6, 0], np.int16),
        "grid_shapes": shapes,
    }
    options = {}
    for feature, arrays in (("regions", regions), ("grids", grids)):
        attributes = {"feature": feature, "index_digest": digest, "dropped": ["dropped"]}
        write_store(tmp_path / f"{feature}.zarr", FakeStore(arrays, ids, attributes), SCHEMA_VERSION)
        options[feature] = {
            "index": tmp_path,
            "visual": tmp_path / f"{feature}.zarr",
            "output": tmp_path / "out" / feature,
        }
    return tmp_path, {"regions": regions, "grids": grids}, options


@pytest.mark.parametrize(
    ("feature", "format", "reading", "place"),
    [
        ("regions", "npz", {"format": "npz", "num_regions": 6}, "npz"),
        ("regions", "tsv", {"format": "tsv", "num_regions": 6}, "features.tsv"),
        ("regions", "coco", {"format": "npy", "num_regions": 6}, "coco_region_features"),
        ("regions", "h5", {"format": "h5", "num_regions": 6}, "features.h5"),
        ("regions", "h5_arrays", {"format": "h5", "num_regions": 6}, ""),
        ("regions", "h5_table", {"format": "h5", "num_regions": 6}, "features_table.h5"),
        ("grids", "h5", {"format": "h5", "grid": "native", "max_cells": 6}, "features.h5"),
        ("grids", "h5_arrays", {"format": "h5", "grid": "native", "max_cells": 6}, ""),
        ("grids", "h5_table", {"format": "h5", "grid": "native", "max_cells": 6}, "features_table.h5"),
        ("grids", "pth", {"format": "pth", "grid": "native", "max_cells": 6}, "pth"),
    ],
)
def test_back_and_forth_is_bit_exact(exported, feature, format, reading, place):
    folder, arrays, options = exported
    written = export_images(formats=[format], **options[feature])
    assert written == {format: 3}
    source = reading | {"path": str(options[feature]["output"] / place)}
    reader = open_reader(feature, source, read_image_rows(folder / "images.parquet"))
    found, failures = reader.read(range(4))
    assert [row for row, _ in failures] == [3], "the image without features has no file"
    compared = set(found) & set(arrays[feature])
    boxes = {"npz", "tsv", "h5", "h5_table", "h5_arrays"} if feature == "regions" else set()
    expected = (
        {"features", "counts"}
        | ({"boxes"} if format in boxes else set())
        | ({"grid_shapes"} if feature == "grids" else set())
    )
    if format in boxes - {"h5_arrays"}:
        expected |= {"scores", "class_ids", "attribute_ids", "attribute_scores"}
        expected |= {"class_scores"} if format.startswith("h5") else set()
    assert expected <= compared
    for name in compared:
        assert np.array_equal(found[name][:3], arrays[feature][name][:3]), name
    assert reader.rounding.rounded == 0


@pytest.mark.parametrize(
    "ids",
    [
        # Names of datasets that could be another image's other array.
        ["cat_image", "dog_att", "42_class"],
        ["cat", "cat_image", "cat_att"],
        ["42", "42_boxes", "42_features"],
        ["x_grids", "y_scores", "cocobu_att"],
        ["x#1", "x_class", "y"],  # x: a name of the first
        # Read as numbers, or as paths.
        ["007", "42", "000000000042"],
        ["blank ", " blank too", "sub/0012"],
    ],
)
def test_back_and_forth_whatever_images_are_called(tmp_path, ids):
    folder, arrays, options = made(tmp_path, [*ids, "dropped"])
    for feature, format, place in (
        ("regions", "h5", "features.h5"), ("regions", "h5_arrays", ""), ("regions", "npz", "npz"), ("grids", "h5_arrays", ""),
    ):  # fmt: skip
        output = tmp_path / format / feature
        export_images(formats=[format], **options[feature] | {"output": output})
        source = {"format": format.removesuffix("_arrays"), "path": str(output / place)}
        source |= {"num_regions": 6} if feature == "regions" else {"grid": "native", "max_cells": 6}
        found, failures = open_reader(feature, source, read_image_rows(folder / "images.parquet")).read(range(4))
        assert [row for row, _ in failures] == [3]
        for name in set(found) & set(arrays[feature]):
            assert np.array_equal(found[name][:3], arrays[feature][name][:3]), (format, name)


@pytest.mark.parametrize(("ids", "format"), [(["42", "42_class", "x"], "h5"), (["sub", "sub/a", "x"], "h5_arrays")])
def test_images_whose_arrays_would_be_called_alike_are_told(tmp_path, ids, format):
    _, _, options = made(tmp_path, [*ids, "dropped"])
    with pytest.raises(UserError, match="the arrays of another image are called so.*rename an image"):
        export_images(formats=[format], **options["regions"])


def test_files_are_as_their_programs_read_them(exported):
    _, arrays, options = exported
    export_images(formats=["npz", "tsv", "coco"], **options["regions"])
    export_images(formats=["pth"], **options["grids"])
    out = options["regions"]["output"]
    with np.load(out / "npz" / "42.npz", allow_pickle=True) as content:
        assert content["x"].shape == (6, 16) and content["x"].dtype == np.float32 and int(content["num_bbox"]) == 6
        info = content["info"].item()
        assert (int(content["image_h"]), int(content["image_w"])) == (480, 640)
        assert np.array_equal(info["objects_id"], arrays["regions"]["class_ids"][0]) and np.array_equal(
            info["attrs_conf"], arrays["regions"]["attribute_scores"][0]
        )
    # As LXMERT's load_obj_tsv does.
    lines = [line.split("\t") for line in (out / "features.tsv").read_text().splitlines()]
    assert [line[0] for line in lines] == IDS[:3]
    boxes = np.frombuffer(base64.b64decode(lines[0][8]), dtype=np.float32).reshape(int(lines[0][7]), 4)
    assert np.array_equal(boxes, arrays["regions"]["boxes"][0])
    assert np.frombuffer(base64.b64decode(lines[0][3]), dtype=np.int64).shape == (6,)
    assert np.load(out / "coco_region_features" / "42.npy").shape == (6, 16)
    grid = torch.load(options["grids"]["output"] / "pth" / "42.pth", weights_only=True)
    assert grid.shape == (1, 16, 2, 3) and grid.dtype == torch.float32
    assert np.array_equal(grid[0, :, 1, 0], arrays["grids"]["features"][0, 3].astype(np.float32))


def test_formats_of_the_other_feature_are_left_out_and_told(exported, capsys):
    _, _, options = exported
    given = options["grids"]
    main(
        ["export", "--index", str(given["index"]), "--visual", str(given["visual"]), "--output", str(given["output"])]
        + ["--formats", "npz", "coco"]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "npz: not of this feature" in out and "3 images as coco" in out
    assert [path.name for path in given["output"].iterdir()] == ["coco_grid_features"]


def test_regions_without_boxes_are_refused_where_boxes_are_needed(exported):
    folder, arrays, options = exported
    import shutil

    shutil.rmtree(folder / "regions.zarr" / "boxes")
    with pytest.raises(UserError, match="has no boxes, which npz and tsv hold"):
        export_images(formats=["tsv"], **options["regions"])
    assert export_images(formats=["coco"], **options["regions"]) == {"coco": 3}


@pytest.mark.parametrize(("formats", "written"), [(["npy"], False), (["npz", "npy"], True)])
def test_the_rule_asks_for_formats_only_where_they_are_not_the_usual_one(repository, formats, written):
    """So that an export that is there is not out of date."""
    import yaml

    from rules.plan import Plan
    from settings import load_settings

    config = yaml.safe_load((repository / "config.yaml").read_text()) | {"export": {"formats": formats}}
    flags = Plan(load_settings(config, check_files=False)).export_flags()
    assert (flags[-3:] == ["--formats", *formats]) == written == ("--formats" in flags)
