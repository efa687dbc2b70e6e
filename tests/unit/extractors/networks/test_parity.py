"""The same numbers as detectron2, on narrow versions of its zoo's architectures with seeded weights and real photographs.

`tests/fixtures/detectron2.npz` holds what the real detectron2 gave; where it is installed, it is run again. To write the file anew:
`python tests/unit/extractors/networks/test_parity.py`, with detectron2 installed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from torch import nn

from extractors.images import InputSpec, decode_image, make_batch, resize_shortest_edge
from extractors.networks import build, load_checkpoint

FIXTURE = Path(__file__).resolve().parents[3] / "fixtures" / "detectron2.npz"
PHOTOS = ("coffee.png", "chelsea.png", "rocket.jpg")
SMALL = {"stem_channels": 16, "res2_channels": 64, "width_per_group": 16}
INPUT = {"min_size": 160, "max_size": 260, "channels": "BGR", "mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0)}
ARCHITECTURES = {
    "c4": ("faster_rcnn_r50_c4", {"input": InputSpec(**INPUT, divisibility=1), **SMALL, "post_nms_top": 100}),
    "panoptic": (
        "panoptic_fpn_r50",
        {
            "input": InputSpec(**INPUT, divisibility=32),
            **SMALL,
            "fpn_channels": 32,
            "box_hidden": 64,
            "mask_channels": 32,
            "semantic_channels": 32,
            "post_nms_top": 200,
            "stuff_area_limit": 256,
        },
    ),
}
# Heads whose random scores must spread, so that suppression, thresholds and merging really act.
SPREAD = {
    "objectness_logits.weight": 0.05,
    "anchor_deltas.weight": 0.01,
    "cls_score.weight": 0.12,
    "bbox_pred.weight": 0.02,
    "mask_head.predictor.weight": 0.3,
    "sem_seg_head.predictor.weight": 0.2,
}


def seed_weights(network: nn.Module) -> None:
    """Fill every tensor from its own name's seed: the same in any framework that names it so."""
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or "pixel_" in name or "cell_anchors" in name:
            continue
        random = np.random.RandomState(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
        shape = tuple(value.shape)
        std = next((s for suffix, s in SPREAD.items() if name.endswith(suffix)), None)
        if std is not None:
            numbers = random.normal(0, std, shape)
        elif name.endswith("running_var"):
            numbers = random.uniform(0.5, 1.5, shape)
        elif name.endswith("conv3.norm.weight"):
            numbers = random.uniform(0.1, 0.3, shape)  # residuals must not pile up
        elif name.endswith("norm.weight"):
            numbers = random.uniform(0.5, 1.0, shape)
        elif name.endswith("stem.conv1.weight"):
            numbers = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5 / 64, shape)  # pixels are large
        elif len(shape) > 1:
            numbers = random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        else:
            numbers = random.normal(0, 0.1, shape)
        value.copy_(torch.from_numpy(numbers.astype(np.float32)))


def photos() -> list[np.ndarray]:
    return [decode_image(Path(skimage.__file__).parent / "data" / name) for name in PHOTOS]


def our_outputs(kind: str, network: nn.Module) -> dict[str, np.ndarray]:
    """What the fixture holds, from our network."""
    spec = network.meta.input
    found = {}
    for i, image in enumerate(photos()):
        batch = make_batch([resize_shortest_edge(image, spec.min_size, spec.max_size)], [0], [image.shape[:2]], spec)
        if kind == "c4":
            (result,) = network.regions(batch.pixels, batch.sizes)
            found[f"c4_{i}_boxes"] = result.boxes
            found[f"c4_{i}_features"] = result.features[:24]
            found[f"c4_{i}_probabilities"] = result.probabilities[:24]
        else:
            (result,) = network.panoptic(batch.pixels, batch.sizes, batch.original_sizes)
            found[f"panoptic_{i}_boxes"] = result.boxes
            found[f"panoptic_{i}_scores"] = result.scores
            found[f"panoptic_{i}_classes"] = result.classes
            found[f"panoptic_{i}_masks"] = result.masks.sum((1, 2))
            found[f"panoptic_{i}_semantic"] = result.semantic_logits[:, ::40, ::40]
            found[f"panoptic_{i}_map"] = result.segment_map[::3, ::3].to(torch.uint8)
    return {name: value.numpy() for name, value in found.items()}


def detectron2_outputs(kind: str) -> dict[str, np.ndarray]:
    """The same, from the real detectron2."""
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    zoo = {
        "c4": "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml",
        "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml",
    }
    config = model_zoo.get_config(zoo[kind])
    config.MODEL.DEVICE, config.MODEL.WEIGHTS = "cpu", ""
    config.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    config.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    config.MODEL.RESNETS.WIDTH_PER_GROUP = 16
    options = ARCHITECTURES[kind][1]
    config.MODEL.RPN.POST_NMS_TOPK_TEST = options["post_nms_top"]
    if kind == "panoptic":
        config.MODEL.FPN.OUT_CHANNELS = options["fpn_channels"]
        config.MODEL.ROI_BOX_HEAD.FC_DIM = options["box_hidden"]
        config.MODEL.ROI_MASK_HEAD.CONV_DIM = options["mask_channels"]
        config.MODEL.SEM_SEG_HEAD.CONVS_DIM = options["semantic_channels"]
        config.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = options["stuff_area_limit"]
    model = build_model(config).eval()
    seed_weights(model)
    found = {}
    for i, image in enumerate(photos()):
        resized = resize_shortest_edge(image, INPUT["min_size"], INPUT["max_size"])[:, :, ::-1]
        height, width = image.shape[:2]
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1))).float()
        with torch.no_grad():
            if kind == "c4":
                images = model.preprocess_image([{"image": tensor}])
                features = model.backbone(images.tensor)
                (proposals,) = model.proposal_generator(images, features)[0]
                heads = model.roi_heads
                pooled = heads._shared_roi_transform([features["res4"]], [proposals.proposal_boxes]).mean((2, 3))
                logits, _ = heads.box_predictor(pooled)
                found[f"c4_{i}_boxes"] = proposals.proposal_boxes.tensor
                found[f"c4_{i}_features"] = pooled[:24]
                found[f"c4_{i}_probabilities"] = logits.softmax(-1)[:24, :-1]
            else:
                (output,) = model([{"image": tensor, "height": height, "width": width}])
                instances = output["instances"]
                found[f"panoptic_{i}_boxes"] = instances.pred_boxes.tensor
                found[f"panoptic_{i}_scores"] = instances.scores
                found[f"panoptic_{i}_classes"] = instances.pred_classes
                found[f"panoptic_{i}_masks"] = instances.pred_masks.sum((1, 2))
                found[f"panoptic_{i}_semantic"] = output["sem_seg"][:, ::40, ::40]
                found[f"panoptic_{i}_map"] = output["panoptic_seg"][0][::3, ::3].to(torch.uint8)
    return {name: value.numpy() for name, value in found.items()}


def assert_same(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray], kind: str) -> None:
    compared = 0
    for name, value in expected.items():
        if not name.startswith(kind):
            continue
        compared += 1
        own = ours[name]
        assert own.shape == value.shape, name
        if name.endswith("_map"):
            assert (own == value).mean() >= 0.999, name
        elif name.endswith("_classes"):
            assert (own == value).all(), name
        elif name.endswith("_masks"):  # pixels of each mask: a few lie on the threshold
            assert np.abs(own - value).sum() <= 0.001 * value.sum(), name
        else:
            scale = np.abs(value).max()
            assert np.abs(own - value).max() <= 1e-4 * scale, (name, np.abs(own - value).max() / scale)
    assert compared == len(PHOTOS) * (3 if kind == "c4" else 6)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Our networks, their weights loaded from a file as detectron2 writes them."""
    loaded = {}
    for kind, (architecture, options) in ARCHITECTURES.items():
        source = build(architecture, **options)
        seed_weights(source)
        path = tmp_path_factory.mktemp("weights") / f"{kind}.pth"
        torch.save({"model": source.state_dict() | {"pixel_mean": torch.zeros(3, 1, 1)}, "iteration": 1}, path)
        loaded[kind] = build(architecture, **options)
        load_checkpoint(loaded[kind], path)
    return loaded


@pytest.mark.parametrize("kind", ["c4", "panoptic"])
def test_same_numbers_as_the_recorded_detectron2(networks, kind):
    with np.load(FIXTURE) as file:
        expected = dict(file)
    assert_same(our_outputs(kind, networks[kind]), expected, kind)


@pytest.mark.parametrize("kind", ["c4", "panoptic"])
def test_same_numbers_as_the_installed_detectron2(networks, kind):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    assert_same(our_outputs(kind, networks[kind]), detectron2_outputs(kind), kind)


def test_the_recording_is_not_degenerate():
    """Suppression, thresholds and merging acted in what was recorded."""
    with np.load(FIXTURE) as file:
        for i in range(len(PHOTOS)):
            scores = file[f"panoptic_{i}_scores"]
            assert 5 <= len(scores) <= 100 and len(np.unique(scores)) == len(scores) and scores.min() < 0.6
            assert len(np.unique(file[f"panoptic_{i}_classes"])) >= 3
            assert len(np.unique(file[f"panoptic_{i}_map"])) >= 4
            assert len(file[f"c4_{i}_boxes"]) == 100
            assert file[f"c4_{i}_probabilities"].max() < 0.999


@pytest.mark.parametrize(
    "mistake",
    [
        {"stride_in_1x1": False},
        {"caffe_pool": True},
        {"pooling": "align_legacy"},
        {"pooling": "pool"},
        {"anchor_sizes": (30, 64, 128, 256, 512)},
        {"input": InputSpec(**(INPUT | {"channels": "RGB"}), divisibility=1)},
        {"input": InputSpec(**(INPUT | {"min_size": 161}), divisibility=1)},
        {"rpn_nms_threshold": 0.65},
    ],
    ids=str,
)
def test_a_mistake_would_be_noticed(mistake):
    architecture, options = ARCHITECTURES["c4"]
    network = build(architecture, **(options | mistake))
    seed_weights(network)
    with np.load(FIXTURE) as file:
        expected = dict(file)
    with pytest.raises(AssertionError):
        assert_same(our_outputs("c4", network), expected, "c4")


if __name__ == "__main__":
    np.savez_compressed(FIXTURE, **detectron2_outputs("c4"), **detectron2_outputs("panoptic"))
    print(f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes")
