"""The same numbers as detectron2, on real photographs and in its own weights format.

Narrow versions of the published architectures with seeded weights, whose heads are scaled so that suppression, thresholds
and merging really act. `fixtures/detectron2.npz` holds what detectron2, and the code of both bottom-up-attention ports, made of
them, so that this runs without either; where detectron2 is importable it is asked again. The fixture is made by this file itself,
with detectron2 installed and the ports' clones in FOLDER (see `benchmarks.ports`):
`python -m tests.unit.extractors.networks.test_parity FOLDER`. At full size: `python -m benchmarks.parity`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import pickle
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.detectors import CASES, Case, photographs, seed_weights
from benchmarks.parity import compare, detectron2_model, their_outputs
from benchmarks.parity import our_outputs as outputs_of
from extractors.images import InputSpec
from extractors.networks import build, load_checkpoint
from extractors.networks.boxes import AnchorGenerator
from extractors.networks.layers import fold_norms

FIXTURE = Path(__file__).resolve().parents[3] / "fixtures" / "detectron2.npz"
PHOTOS = ("coffee.png", "chelsea.png", "rocket.jpg")
MEAN, CAFFE_MEAN = (103.53, 116.28, 123.675), (102.9801, 115.9465, 122.7717)
INPUT = {"min_size": 160, "max_size": 260, "channels": "BGR", "mean": MEAN, "std": (1.0, 1.0, 1.0)}
SMALL = {"stem_channels": 16, "res2_channels": 64, "width_per_group": 16, "input": InputSpec(**INPUT, divisibility=1)}
SMALL_KEYS = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 16, "INPUT.MIN_SIZE_TEST", 160, "INPUT.MAX_SIZE_TEST", 260),
]
PYRAMID = {"input": InputSpec(**INPUT, divisibility=32), "fpn_channels": 32, "box_hidden": 64, "post_nms_top": 200}
PYRAMID_KEYS = [
    *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 64, "MODEL.RPN.POST_NMS_TOPK_TEST", 200),
]

CAFFE = {"post_nms_top": 100, "rpn_channels": 64, "num_classes": 60, "blocks": (3, 4, 6, 3)}


def narrow(architecture: str, keys: list[Any], options: dict[str, Any]) -> Case:
    case = CASES[architecture]
    keys, options = [*case.keys, *SMALL_KEYS, *keys], case.options | SMALL | options
    return Case(architecture, case.zoo, keys, options, case.caffe, port=case.port)


KINDS = {
    "c4": narrow("faster_rcnn_r50_c4", ["MODEL.RPN.POST_NMS_TOPK_TEST", 100], {"post_nms_top": 100}),
    "fpn": narrow("faster_rcnn_r50_fpn", PYRAMID_KEYS, PYRAMID),
    "caffe": narrow(
        "vg_r101_c4_caffe_attr",
        [
            *("MODEL.RPN.POST_NMS_TOPK_TEST", 100, "MODEL.RPN.CONV_DIMS", [64], "MODEL.ROI_HEADS.NUM_CLASSES", 60),
            *("MODEL.RESNETS.DEPTH", 50),
        ],
        CAFFE
        | {"input": InputSpec(**(INPUT | {"mean": CAFFE_MEAN}), divisibility=1)}
        # Its head's sizes follow from the features' width.
        | {"attribute_embedding": 64, "attribute_hidden": 128},
    ),
    "milvlg": narrow(
        "vg_r101_c4_caffe_milvlg",
        [
            *("MODEL.RPN.POST_NMS_TOPK_TEST", 100, "MODEL.BUA.RPN.CONV_OUT_CHANNELS", 64),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 61, "MODEL.RESNETS.DEPTH", 50),
        ],
        CAFFE | {"input": InputSpec(**(INPUT | {"mean": CAFFE_MEAN}), divisibility=1, resize="float")},
    ),
    "grid": narrow(
        "grid_x152_challenge",
        [
            *("MODEL.RESNETS.NUM_GROUPS", 4, "MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.ROI_BOX_HEAD.FC_DIM", 64),
            *("MODEL.RPN.POST_NMS_TOPK_TEST", 100, "MODEL.ROI_HEADS.NUM_CLASSES", 60),
        ],
        {"groups": 4, "width_per_group": 4, "box_hidden": 64, "post_nms_top": 100, "num_classes": 60},
    ),
    "panoptic": narrow(
        "panoptic_fpn_r50",
        [
            *(*PYRAMID_KEYS, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
            *("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 256),
        ],
        PYRAMID | {"mask_channels": 32, "semantic_channels": 32, "stuff_area_limit": 256},
    ),
    "cascade": narrow(
        "panoptic_fpn_r101_dconv_cascade",
        [
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
            *(*PYRAMID_KEYS, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
            *("MODEL.RESNETS.WIDTH_PER_GROUP", 32, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 256),
        ],
        PYRAMID
        | {"mask_channels": 32, "semantic_channels": 32, "stuff_area_limit": 256}
        | {"stem_channels": 32, "width_per_group": 32},
    ),
}


def part(outputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What the fixture holds of an image's outputs."""
    small = {
        "features": lambda x: x[:24],
        "probabilities": lambda x: x[:24],
        "semantic": lambda x: x[:, ::40, ::40],
        "map": lambda x: x[::3, ::3].to(torch.uint8),
        "grid": lambda x: x[::8],
        "attributes": lambda x: x[:24, ::8],
    }
    return {name: small.get(name, lambda x: x)(value).numpy() for name, value in outputs.items()}


@functools.cache
def images() -> list[np.ndarray]:
    found = photographs(PHOTOS)
    return [found[name] for name in PHOTOS]


def our_outputs(network) -> Iterator[dict[str, np.ndarray]]:
    """Image by image: whoever has seen enough asks for no more."""
    return (part(outputs_of(network, image)) for image in images())


def asked(kind: str, folder: Path | None = None) -> list[dict[str, np.ndarray]]:
    """The same, from the real detectron2, and with `folder` from the ports' code."""
    model, spec = detectron2_model(KINDS[kind], folder), KINDS[kind].options["input"]
    return [part(their_outputs(model, image, spec)) for image in images()]


def recorded(kind: str) -> list[dict[str, np.ndarray]]:
    with np.load(FIXTURE) as file:
        return [
            {key.split("/")[2]: file[key] for key in file if key.startswith(f"{kind}/{i}/")} for i in range(len(PHOTOS))
        ]


def compared(own: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    both = ({name: torch.from_numpy(value) for name, value in outputs.items()} for outputs in (own, expected))
    return compare(*both, places=3)


def assert_same(
    ours: Iterable[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]], tolerance: float = 1e-4
) -> None:
    """Another processor may order nearly equal scores differently, so boxes may change places with a neighbour."""
    for own, expected in zip(ours, theirs, strict=True):
        assert own.keys() == expected.keys() and len(own) in (6, 7, 8)
        found = compared(own, expected)
        for name in ("features", "probabilities", "attributes", "grid", "semantic", "scores"):
            assert found.get(name, 0.0) <= tolerance, (name, found)
        for name in ("boxes", "proposals", "classes", "map"):
            assert found.get(name, 1.0) >= 0.999, (name, found)
        assert found.get("masks", 0.0) <= 1e-3, found


HEAD, ATTRIBUTES = "roi_heads.box_predictor.", "roi_heads.attribute_predictor."
# What the ports' files call the parts of the attribute head.
NAMES = {
    "caffe": {"obj_embed": "cls_embedding", "fc.0": "fc_attr", "attr_score": "attr_score"},
    "milvlg": {"obj_embed": "cls_embed", "fc.0": "attr_linear1", "attr_score": "attr_linear2"},
}


def seeded_file(kind: str, network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Weights seeded by the names, and in the shapes, of the authors' file."""
    state = {}
    for name, value in network.state_dict().items():
        for ours, theirs in NAMES.get(kind, {}).items():
            name = name.replace(f"{ATTRIBUTES}{ours}.", f"{HEAD}{theirs}.")
        if kind == "milvlg" and ".objectness_logits." in name:
            value = torch.cat([value, value])  # of the background and of the object
        elif kind == "milvlg" and name.startswith(f"{HEAD}bbox_pred."):
            value = torch.cat([value, value[:4]])
        elif ".cell_anchors_" in name:
            rounded = AnchorGenerator([(64, 128, 256, 512)], (0.5, 1.0, 2.0), [16], rounded=True)
            name, value = name.replace("anchors_", "anchors."), rounded.cell_anchors_0
        state[name] = value.clone()
    seed_weights(types.SimpleNamespace(state_dict=lambda: state))
    state.setdefault("proposal_generator.anchor_generator.cell_anchors.0", torch.zeros(4))
    return {name: value.numpy() for name, value in state.items()} | {"pixel_mean": np.zeros((3, 1, 1), "f4")}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Our networks, their weights loaded from a file as detectron2 or the port writes them."""
    loaded = {}
    for kind, case in KINDS.items():
        path = tmp_path_factory.mktemp("weights") / f"{kind}.pkl"
        state = seeded_file(kind, build(case.architecture, **case.options))
        path.write_bytes(pickle.dumps({"model": state, "__author__": "seeded"}))
        loaded[kind] = build(case.architecture, **case.options)
        load_checkpoint(loaded[kind], path)
    return loaded


@pytest.fixture(scope="module")
def ours(networks):
    """`ours(kind)`: what our network makes of every image, once."""
    return functools.cache(lambda kind: list(our_outputs(networks[kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_same_numbers_as_the_recorded_detectron2(ours, kind):
    assert_same(ours(kind), recorded(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_same_numbers_as_the_installed_detectron2(ours, kind):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    if not KINDS[kind].zoo:
        pytest.skip("not detectron2's network")
    found = [{name: value for name, value in own.items() if name != "attributes"} for own in ours(kind)]
    assert_same(found, asked(kind))


@pytest.mark.parametrize("kind", ["c4", "panoptic"])
def test_merged_norms_give_the_same_numbers(networks, ours, kind):
    before, network = ours(kind), copy.deepcopy(networks[kind])
    fold_norms(network)
    assert not any(".norm." in name for name in network.state_dict() if name.startswith("backbone."))
    for own, expected in zip(our_outputs(network), before, strict=True):
        found = compared(own, expected)
        assert found["scores"] <= 1e-4 and found.get("grid", 0.0) <= 1e-5 and found.get("semantic", 0.0) <= 1e-5
        assert found["boxes"] >= 0.99 and found.get("proposals", 1.0) >= 0.99 and found.get("map", 1.0) >= 0.999


def test_the_recording_is_not_degenerate():
    """Suppression, thresholds and merging acted in what was recorded."""
    for kind in KINDS:
        for outputs in recorded(kind):
            scores = outputs["scores"]
            assert 5 <= len(scores) <= 100 and len(np.unique(scores)) >= len(scores) - 1, kind
            # A region has one class, the likeliest; a proposal is a detection of several.
            assert scores.min() < 0.6 and len(np.unique(outputs["classes"])) >= (3 if KINDS[kind].zoo else 1), kind
            if "map" in outputs:
                assert len(np.unique(outputs["map"])) >= 4
            else:
                assert len(outputs["proposals"]) >= 50 and outputs["probabilities"].max() < 0.9999, kind


MISTAKES = [
    ("c4", {"stride_in_1x1": False}),
    ("c4", {"caffe_pool": True}),
    ("c4", {"pooling": "align_legacy"}),
    ("c4", {"pooling": "pool"}),
    ("c4", {"anchor_sizes": (30, 64, 128, 256, 512)}),
    ("c4", {"input": InputSpec(**(INPUT | {"channels": "RGB"}), divisibility=1)}),
    ("c4", {"input": InputSpec(**(INPUT | {"min_size": 161}), divisibility=1)}),
    ("c4", {"rpn_nms_threshold": 0.65}),
    ("caffe", {"caffe_pool": False}),
    ("caffe", {"pooling": "align"}),
    ("caffe", {"res5_dilation": 1}),
    ("caffe", {"input": InputSpec(**(INPUT | {"mean": CAFFE_MEAN}), divisibility=1, resize="float")}),
    ("caffe", {"attribute_none": "kept"}),
    ("milvlg", {"attribute_none": "dropped"}),
    ("milvlg", {"rpn_min_size": 80.0}),
    ("grid", {"res5_dilation": 2}),
    ("grid", {"sampling_ratio": 2}),
    ("fpn", {"anchor_sizes": ((30,), (64,), (128,), (256,), (512,))}),
]


@pytest.mark.parametrize(("kind", "mistake"), MISTAKES, ids=str)
def test_a_mistake_would_be_noticed(kind, mistake, tmp_path):
    case = KINDS[kind]
    network = build(case.architecture, **(case.options | mistake))
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": seeded_file(kind, network), "__author__": "seeded"}))
    load_checkpoint(network, tmp_path / "weights.pkl")
    expected = recorded(kind)
    assert len(expected) == len(PHOTOS)
    with pytest.raises(AssertionError):  # at the first image that shows it
        assert_same(our_outputs(network), expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("ports", type=Path, metavar="FOLDER", help="see benchmarks/ports.py")
    folder = parser.parse_args().ports
    arrays = {
        f"{kind}/{i}/{name}": value
        for kind in KINDS
        for i, outputs in enumerate(asked(kind, folder))
        for name, value in outputs.items()
    }
    np.savez_compressed(FIXTURE, **arrays)
    print(f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes")
