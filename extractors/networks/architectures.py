"""Named architectures: everything about a network but its weights. A new one is a function that takes overrides, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from extractors.networks import scenes, zoo

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "faster_rcnn_r50_c4": zoo.faster_rcnn_r50_c4,
    "faster_rcnn_r101_c4": zoo.faster_rcnn_r101_c4,
    "faster_rcnn_r50_fpn": zoo.faster_rcnn_r50_fpn,
    "faster_rcnn_r101_fpn": zoo.faster_rcnn_r101_fpn,
    "faster_rcnn_x101_fpn": zoo.faster_rcnn_x101_fpn,
    "vg_r101_c4_caffe": zoo.vg_r101_c4_caffe,
    "vg_r101_c4_caffe_attr": partial(zoo.vg_r101_c4_caffe, attributes=True),
    "vg_r101_c4_caffe_milvlg": partial(zoo.vg_r101_c4_caffe, conversion="milvlg"),
    "vg_r50_c4_d2": zoo.vg_r50_c4_d2,
    "vg_r101_c4_d2": zoo.vg_r101_c4_d2,
    "grid_r50": zoo.grid_r50,
    "grid_x101": zoo.grid_x101,
    "grid_x152": zoo.grid_x152,
    "grid_x152_challenge": zoo.grid_x152_challenge,
    "panoptic_fpn_r50": zoo.panoptic_fpn_r50,
    "panoptic_fpn_r101": zoo.panoptic_fpn_r101,
    "panoptic_fpn_r101_dconv_cascade": zoo.panoptic_fpn_r101_dconv_cascade,
    "upsnet_r50": zoo.upsnet_r50,
    "upsnet_r101_dcn": zoo.upsnet_r101_dcn,
    "vse_grid_detector": zoo.vse_grid_detector,
    "vse_grid_wsl": zoo.vse_grid_wsl,
    "scenes_regions": scenes.scenes_regions,
    "scenes_grids": scenes.scenes_grids,
    "scenes_panoptic": scenes.scenes_panoptic,
}


def build(architecture: str, **overrides: Any) -> nn.Module:
    """The network called `architecture`, randomly initialised, in eval mode.

    Args:
        architecture: a key of `ARCHITECTURES`.
        overrides: keyword arguments of the builder that replace the named architecture's own.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; choose one of {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[architecture](**overrides).eval()
