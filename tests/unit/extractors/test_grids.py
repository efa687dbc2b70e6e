"""Grid features hold the whole map, whatever the network's stride."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.detectors import seed_weights
from benchmarks.parity import our_outputs
from extractors.grids import GridExtractor
from extractors.images import InputSpec, make_batch, resize_image
from extractors.loading import NetworkRunner
from extractors.networks import ARCHITECTURES, build
from extractors.settings import ARCHITECTURES as MADE

SMALL = {"blocks": (1, 1, 1, 1), "stem_channels": 8, "res2_channels": 16, "groups": 1, "width_per_group": 4}


def network(architecture: str, divisibility: int | None = None):
    divisibility = divisibility or (32 if "fpn" in architecture else 1)
    own = {"input": InputSpec(96, 170, "BGR", (100.0,) * 3, (1.0,) * 3, divisibility)}
    own |= {"num_classes": 5} | ({"num_attributes": 0} if architecture.startswith("vg") else {})
    if architecture.startswith(("scenes", "vse_grid")):
        del own["num_classes"]
    if "fpn" in architecture:
        own |= {"fpn_channels": 8, "box_hidden": 8}
    made = build(architecture, **(SMALL | own))
    seed_weights(made)
    return made


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("architecture", [a for a, made in MADE.items() if "grids" in made and "challenge" not in a])
@pytest.mark.parametrize("size", [(96, 130), (101, 97)])
def test_every_architecture_gives_its_whole_map(architecture, size):
    made = network(architecture)
    image, spec = photo(*size), made.meta.input
    batch = make_batch([resize_image(image, spec)], [0], [size], spec)
    whole = made.grid(batch.pixels)[0]
    (native,) = GridExtractor(NetworkRunner(made, "x"), grid="native")(batch)
    assert native["grid_shapes"].tolist() == list(whole.shape[1:])
    assert min(whole.shape[1:]) >= min(batch.sizes[0]) // made.grid_stride
    (pooled,) = GridExtractor(NetworkRunner(made, "x"), grid=3)(batch)
    expected = F.adaptive_avg_pool2d(whole, 3).flatten(1).T.numpy().astype(np.float16)
    assert np.allclose(pooled["features"], expected, rtol=1e-2, atol=1e-2)
    if not hasattr(made, "regions"):
        return
    # What the comparison with detectron2 looks at is what a store holds.
    shown = our_outputs(made, image)["grid"].flatten(1).T.numpy()
    assert np.allclose(native["features"][: native["counts"]], shown, rtol=1e-2, atol=1e-2)


def test_cells_of_the_padding_are_left_out():
    made = network("faster_rcnn_r50_fpn", divisibility=128)
    batch = make_batch([photo(96, 130)], [0], [(96, 130)], made.meta.input)
    assert made.grid(batch.pixels).shape[2:] == (4, 8)
    (row,) = GridExtractor(NetworkRunner(made, "x"), grid="native")(batch)
    assert row["grid_shapes"].tolist() == [3, 5]


def test_maps_that_do_not_keep_their_cells_are_told_once(capsys):
    made = network("faster_rcnn_r50_fpn", divisibility=128)
    batch = make_batch([photo(96, 130)] * 2, [0, 1], [(96, 130)] * 2, made.meta.input)  # 3 x 5 cells
    for settings, note in (
        ({"grid": "native", "max_cells": 15}, ""),
        (
            {"grid": "native", "max_cells": 8},
            "note: maps of more than 8 cells are pooled, such as 3 x 5 to 2 x 3; set max_cells to keep them\n",
        ),
        ({"grid": 3}, ""),
        (
            {"grid": 4},
            "note: maps with fewer cells a side than grid: 4 are spread over it by repeating cells, such as 3 x 5\n",
        ),
    ):
        extractor = GridExtractor(NetworkRunner(made, "x"), **settings)
        assert len(extractor(batch)) == len(extractor(batch)) == 2
        assert capsys.readouterr().out == note


def test_no_images_give_no_rows():
    made = network("scenes_grids")
    assert GridExtractor(NetworkRunner(made, "x"))(make_batch([], [], [], made.meta.input)) == []


def test_the_settings_know_every_architecture_and_what_it_makes():
    assert MADE.keys() == ARCHITECTURES.keys()
    small = {"blocks": (1, 1, 1, 1), "stem_channels": 32, "res2_channels": 32, "width_per_group": 32, "groups": 1}
    for name, features in MADE.items():
        made = build(name, **small)
        able = {"regions": "regions", "grid": "grids", "panoptic": "panoptic"}
        assert tuple(f for method, f in able.items() if hasattr(made, method)) == tuple(features), name


def test_the_settings_know_how_wide_every_architecture_is(monkeypatch):
    for draw in ("normal_", "uniform_"):  # nothing is computed
        monkeypatch.setattr(torch.Tensor, draw, lambda tensor, *_, **__: tensor)
    for name, widths in MADE.items():
        if "panoptic" not in widths:
            made = build(name)
            sizes = {"regions": getattr(made, "region_size", None), "grids": made.grid_size}
            assert {feature: sizes[feature] for feature in widths} == widths, name
