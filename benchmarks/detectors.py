"""The detectors of `benchmarks.parity` and `benchmarks.extraction`: photographs, seeded weights, and each architecture in detectron2's words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import ports
from extractors.images import decode_image
from extractors.networks import build

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "coins.png",
    "retina.jpg",
)
# Heads whose random scores must spread: standard deviation of the weights, times the root of the number of inputs.
GAINS = {
    "objectness_logits.weight": 0.8,
    "anchor_deltas.weight": 0.16,
    "cls_score.weight": 2.7,
    "bbox_pred.weight": 0.45,
    "mask_head.predictor.weight": 1.7,
    "sem_seg_head.predictor.weight": 1.1,
    "conv2_offset.weight": 0.3,
}


def seed_weights(network: nn.Module) -> None:
    """Fill every tensor from its own name's seed: the same in any framework that names it so."""
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or "pixel_" in name or "cell_anchors" in name:
            continue
        random = np.random.RandomState(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
        shape = tuple(value.shape)
        inputs = np.prod(shape[1:])
        gain = next((g for suffix, g in GAINS.items() if name.endswith(suffix)), None)
        if gain is not None:
            numbers = random.normal(0, gain / inputs**0.5, shape)
        elif name.endswith("running_var"):
            numbers = random.uniform(0.5, 1.5, shape)
        elif name.endswith("conv3.norm.weight"):
            numbers = random.uniform(0.1, 0.3, shape)  # residuals must not pile up
        elif name.endswith("norm.weight"):
            numbers = random.uniform(0.5, 1.0, shape)
        elif name.endswith("stem.conv1.weight"):
            numbers = random.normal(0, (2 / inputs) ** 0.5 / 64, shape)  # pixels are large
        elif len(shape) > 1:
            numbers = random.normal(0, (2 / inputs) ** 0.5, shape)
        else:
            numbers = random.normal(0, 0.1, shape)
        with torch.no_grad():
            value.copy_(torch.from_numpy(numbers.astype(np.float32)))


@dataclass
class Case:
    """One architecture in both worlds.

    `zoo` is detectron2's configuration, `keys` what is changed in it; `architecture` and `options` are ours. `caffe` gives
    detectron2's model the stem and the res5 of the Caffe weights, which no configuration of it describes. Detections are
    kept above `score`: random weights spread little over 1,600 classes. `port` is whose code the attribute head is from; with no
    `zoo`, the whole network is.
    """

    architecture: str
    zoo: str
    keys: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    caffe: bool = False
    score: float = 0.05
    port: str = ""

    def build(self, with_port: bool) -> nn.Module:
        """Our network; without the port's code also without the attribute head, which detectron2 does not have."""
        plain = {"num_attributes": 0} if self.port and not with_port else {}
        return build(self.architecture, **(self.options | plain))

    def needs_port(self) -> bool:
        """Whether nothing of it is left without the port's code that another case has not."""
        return not self.zoo or self.architecture.endswith("_attr")


_C4, _FPN = "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml", "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
_RESNEXT = ["MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 8]
_VG = [
    *("MODEL.ROI_HEADS.NUM_CLASSES", 1600, "INPUT.MIN_SIZE_TEST", 600, "INPUT.MAX_SIZE_TEST", 1000),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 6000, "MODEL.RPN.POST_NMS_TOPK_TEST", 1000),
]
_CAFFE = [
    *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "MODEL.RPN.CONV_DIMS", [512], "MODEL.RPN.POST_NMS_TOPK_TEST", 300),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[64, 128, 256, 512]], "MODEL.PIXEL_MEAN", [102.9801, 115.9465, 122.7717]),
]
_SAMPLES = ["MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2]
_GRID = [
    *(
        "MODEL.RESNETS.OUT_FEATURES",
        ["res5"],
        "MODEL.RPN.IN_FEATURES",
        ["res5"],
        "MODEL.ROI_HEADS.IN_FEATURES",
        ["res5"],
    ),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.NUM_FC", 2, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 1),
    *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2),
]
_DEFORM = [
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
    [False, False, True, True],
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",
    0,
]
_X101_STD = ["MODEL.PIXEL_STD", [57.375, 57.120, 58.395]]


def _depth(depth: int) -> list[Any]:
    return ["MODEL.RESNETS.DEPTH", depth]


CASES = {
    case.architecture: case
    for case in (
        Case("faster_rcnn_r50_c4", _C4),
        Case("faster_rcnn_r101_c4", "COCO-Detection/faster_rcnn_R_101_C4_3x.yaml"),
        Case("faster_rcnn_r50_fpn", _FPN),
        Case("faster_rcnn_r101_fpn", "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"),
        Case("faster_rcnn_x101_fpn", "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml"),
        Case("vg_r101_c4_caffe", _C4, [*_VG, *_CAFFE, *_depth(101)], caffe=True),
        Case("vg_r101_c4_caffe_attr", _C4, [*_VG, *_CAFFE, *_depth(101)], caffe=True, port=ports.AIRSPLAY),
        Case("vg_r101_c4_caffe_milvlg", "", port=ports.MILVLG),
        Case("vg_r50_c4_d2", _C4, [*_VG, *_SAMPLES], port=ports.MILVLG),
        Case("vg_r101_c4_d2", _C4, [*_VG, *_SAMPLES, *_depth(101)], port=ports.MILVLG),
        Case("grid_r50", _C4, [*_VG, *_GRID], score=0.002, port=ports.MILVLG),
        Case("grid_x101", _C4, [*_VG, *_GRID, *_RESNEXT, *_X101_STD, *_depth(101)], score=0.002, port=ports.MILVLG),
        Case("grid_x152", _C4, [*_VG, *_GRID, *_RESNEXT, *_depth(152)], score=0.002, port=ports.MILVLG),
        Case(
            "grid_x152_challenge",
            _C4,
            [*_VG, *_GRID, *_RESNEXT, *_DEFORM, *_depth(152)],
            score=0.002,
            port=ports.MILVLG,
        ),
        Case("panoptic_fpn_r50", "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml"),
        Case("panoptic_fpn_r101", "COCO-PanopticSegmentation/panoptic_fpn_R_101_3x.yaml"),
        Case("panoptic_fpn_r101_dconv_cascade", "Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x.yaml"),
    )
}


def photographs(names: Sequence[str] = PHOTOS) -> dict[str, np.ndarray]:
    """scikit-image's photographs, and a tall cut of the first: name -> (H, W, 3) uint8 RGB."""
    import skimage

    found = {name: decode_image(Path(skimage.__file__).parent / "data" / name) for name in names}
    first = names[0]
    return found | {f"{first} (tall cut)": np.ascontiguousarray(found[first][:, 120:330])}
