"""The published networks: detectron2's model zoo, grid-feats-vqa, the detectors of Visual Genome, UPSNet, VSE-infinity's CNNs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from catalog.categories import COCO_PANOPTIC, NUM_CATEGORIES, NUM_THINGS
from extractors.images import InputSpec
from extractors.networks.builders import c4_rcnn, c5_rcnn, fpn_rcnn, grid_cnn, panoptic_fpn, upsnet
from extractors.networks.rcnn import C4RCNN, PanopticFPN, StandardRCNN
from extractors.networks.upsnet import UPSNet
from extractors.networks.vse_grid import BASE_SIDE, GridCNN

# detectron2's model zoo: BGR, ImageNet means on the 0..255 scale, Caffe2-style bodies (stride in the 1x1 convolution).
_ZOO_INPUT = {
    "min_size": 800,
    "max_size": 1333,
    "channels": "BGR",
    "mean": (103.53, 116.28, 123.675),
    "std": (1.0,) * 3,
}
_R50, _R101, _R152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_COCO_THINGS, _COCO_STUFF = tuple(range(NUM_THINGS)), tuple(range(NUM_THINGS, NUM_CATEGORIES))
# ResNeXt of Caffe2: stride in the 3x3 convolution.
_RESNEXT = {"groups": 32, "width_per_group": 8, "stride_in_1x1": False}
# The pixel deviations that X-101-32x8d was trained with.
_X101_STD = (57.375, 57.12, 58.395)


def _coco(build: Callable[..., nn.Module], divisibility: int, overrides: dict[str, Any], **own: Any) -> nn.Module:
    options: dict[str, Any] = {
        "input": InputSpec(**(_ZOO_INPUT | {"std": own.pop("std", _ZOO_INPUT["std"])}), divisibility=divisibility),
        "num_classes": NUM_THINGS,
        "class_names": tuple(category.name for category in COCO_PANOPTIC[:NUM_THINGS]),
    }
    return build(**(options | own | overrides))


def faster_rcnn_r50_c4(**overrides: Any) -> C4RCNN:
    """detectron2's `COCO-Detection/faster_rcnn_R_50_C4`."""
    return _coco(c4_rcnn, 1, overrides, blocks=_R50)


def faster_rcnn_r101_c4(**overrides: Any) -> C4RCNN:
    """detectron2's `COCO-Detection/faster_rcnn_R_101_C4`."""
    return _coco(c4_rcnn, 1, overrides, blocks=_R101)


def faster_rcnn_r50_fpn(**overrides: Any) -> StandardRCNN:
    """detectron2's `COCO-Detection/faster_rcnn_R_50_FPN`."""
    return _coco(fpn_rcnn, 32, overrides, blocks=_R50)


def faster_rcnn_r101_fpn(**overrides: Any) -> StandardRCNN:
    """detectron2's `COCO-Detection/faster_rcnn_R_101_FPN`."""
    return _coco(fpn_rcnn, 32, overrides, blocks=_R101)


def faster_rcnn_x101_fpn(**overrides: Any) -> StandardRCNN:
    """detectron2's `COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x`."""
    return _coco(fpn_rcnn, 32, overrides, blocks=_R101, std=_X101_STD, **_RESNEXT)


# Visual Genome, 1,600 objects and 400 attributes (Anderson et al. 2018).
_VG_INPUT = _ZOO_INPUT | {"min_size": 600, "max_size": 1000}
_VG_CLASSES, _VG_ATTRIBUTES = 1600, 400
_CAFFE_MEAN = (102.9801, 115.9465, 122.7717)


def vg_r101_c4_caffe(*, conversion: str = "airsplay", attributes: bool = False, **overrides: Any) -> C4RCNN:
    """The bottom-up attention detector (Anderson et al. 2018), converted from Caffe.

    Args:
        conversion: "airsplay" for `faster_rcnn_from_caffe*.pkl` of py-bottom-up-attention (detectron2's box convention), or
            "milvlg" for `bua-caffe-frcn-r101-*.pth` of bottom-up-attention.pytorch (the Caffe code's own conventions).
        attributes: with the attribute head; "milvlg" always has it.
    """
    if conversion not in ("airsplay", "milvlg"):
        raise ValueError(f"unknown conversion {conversion!r} of the Caffe weights; choose 'airsplay' or 'milvlg'")
    caffe = conversion == "milvlg"
    options: dict[str, Any] = {
        "input": InputSpec(
            **(_VG_INPUT | {"mean": _CAFFE_MEAN}), divisibility=1, resize="float" if caffe else "pillow"
        ),
        "blocks": _R101,
        "num_classes": _VG_CLASSES,
        "num_attributes": _VG_ATTRIBUTES if attributes or caffe else 0,
        "caffe_pool": True,
        "rpn_channels": 512,
        "anchor_sizes": (64, 128, 256, 512),
        "post_nms_top": 300,
        "pooling": "pool",
        "res5_dilation": 2,
        "attribute_none": "kept" if caffe else "dropped",
        "attribute_sees_background": True,
    }
    if caffe:
        options |= {"inclusive": True, "rpn_min_size": 16.0, "box_weights": (1.0, 1.0, 1.0, 1.0)}
    return c4_rcnn(**(options | overrides))


def _vg_d2(blocks: tuple[int, int, int, int], overrides: dict[str, Any]) -> C4RCNN:
    options: dict[str, Any] = {
        "input": InputSpec(
            **_VG_INPUT, divisibility=1, resize="float"
        ),  # as the port feeds it, not as detectron2 would
        "blocks": blocks,
        "num_classes": _VG_CLASSES,
        "num_attributes": _VG_ATTRIBUTES,
        "sampling_ratio": 2,
        "attribute_sees_background": True,
    }
    return c4_rcnn(**(options | overrides))


def vg_r50_c4_d2(**overrides: Any) -> C4RCNN:
    """bottom-up-attention.pytorch's `test-d2-r50`; grid-feats-vqa's `R-50-updn` is the same network, fed by Pillow."""
    return _vg_d2(_R50, overrides)


def vg_r101_c4_d2(**overrides: Any) -> C4RCNN:
    """bottom-up-attention.pytorch's `test-d2-r101`: the region detector of Visual Genome as trained with detectron2."""
    return _vg_d2(_R101, overrides)


def _grid(overrides: dict[str, Any], *, std: tuple[float, ...] = (1.0, 1.0, 1.0), **own: Any) -> StandardRCNN:
    options: dict[str, Any] = {
        "input": InputSpec(**(_VG_INPUT | {"std": std}), divisibility=1),
        "num_classes": _VG_CLASSES,
        "num_attributes": _VG_ATTRIBUTES,
    }
    return c5_rcnn(**(options | own | overrides))


def grid_r50(**overrides: Any) -> StandardRCNN:
    """grid-feats-vqa's `R-50-grid`, undilated as at its extraction."""
    return _grid(overrides, blocks=_R50)


def grid_x101(**overrides: Any) -> StandardRCNN:
    """grid-feats-vqa's `X-101-grid`, undilated as at its extraction: 3SHNet's grid features."""
    return _grid(overrides, blocks=_R101, std=_X101_STD, **_RESNEXT)


def grid_x152(**overrides: Any) -> StandardRCNN:
    """grid-feats-vqa's `X-152-grid`, undilated as at its extraction."""
    return _grid(overrides, blocks=_R152, **_RESNEXT)


def grid_x152_challenge(**overrides: Any) -> StandardRCNN:
    """grid-feats-vqa's `X-152-challenge` ("X-152++"): deformable convolutions in res4 and res5."""
    return _grid(overrides, blocks=_R152, deform=("", "", "v1", "v1"), sampling_ratio=0, **_RESNEXT)


def _coco_panoptic(blocks: tuple[int, int, int, int], overrides: dict[str, Any]) -> PanopticFPN:
    options: dict[str, Any] = {
        "input": InputSpec(**_ZOO_INPUT, divisibility=32),
        "blocks": blocks,
        "thing_categories": _COCO_THINGS,
        "stuff_categories": _COCO_STUFF,
    }
    return panoptic_fpn(**(options | overrides))


def panoptic_fpn_r50(**overrides: Any) -> PanopticFPN:
    """detectron2's `COCO-PanopticSegmentation/panoptic_fpn_R_50`."""
    return _coco_panoptic(_R50, overrides)


def panoptic_fpn_r101(**overrides: Any) -> PanopticFPN:
    """detectron2's `COCO-PanopticSegmentation/panoptic_fpn_R_101`."""
    return _coco_panoptic(_R101, overrides)


def panoptic_fpn_r101_dconv_cascade(**overrides: Any) -> PanopticFPN:
    """detectron2's `Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x`: its best; deformable, cascaded, group norms throughout."""
    options = {
        "stride_in_1x1": False,
        "norm": "GN",
        "deform": ("", "v1", "v1", "v1"),
        "fpn_norm": "GN",
        "mask_norm": "GN",
        "cascade": True,
    }
    return _coco_panoptic(_R101, options | overrides)


def _upsnet(blocks: tuple[int, int, int, int], overrides: dict[str, Any], **own: Any) -> UPSNet:
    options: dict[str, Any] = {
        "input": InputSpec(**(_ZOO_INPUT | {"mean": _CAFFE_MEAN}), divisibility=32, resize="float"),
        "blocks": blocks,
        "thing_categories": _COCO_THINGS,
        "stuff_categories": _COCO_STUFF,
    }
    return upsnet(**(options | own | overrides))


def upsnet_r50(**overrides: Any) -> UPSNet:
    """UPSNet's `upsnet_resnet_50_coco`."""
    return _upsnet(_R50, overrides)


def upsnet_r101_dcn(**overrides: Any) -> UPSNet:
    """UPSNet's `upsnet_resnet_101_dcn_coco`: deformable convolutions in res3, res4 and res5."""
    return _upsnet(_R101, overrides, deform=("", "v1", "v1", "v1"))


def _vse_grid(
    architecture: str, overrides: dict[str, Any], *, channels: str, mean: Any, std: Any, **own: Any
) -> GridCNN:
    side = 2 * BASE_SIDE
    spec = InputSpec(side, side, channels, mean, std, divisibility=1, resize="square")
    return grid_cnn(**({"input": spec, "architecture": architecture, "blocks": _R101} | own | overrides))


def vse_grid_detector(**overrides: Any) -> GridCNN:
    """The CNN of VSE-infinity's `*_butd_grid_*`: bottom-up attention's ResNet-101, tuned along."""
    options = {"channels": "BGR", "mean": _CAFFE_MEAN, "std": (1.0, 1.0, 1.0), "caffe_pool": True}
    return _vse_grid("vse_grid_detector", overrides, **options)


def vse_grid_wsl(**overrides: Any) -> GridCNN:
    """The CNN of VSE-infinity's `*_wsl_grid_*`: torchvision's ResNeXt-101 32x8d of weakly supervised training, tuned along."""
    mean, std = (tuple(255 * x for x in numbers) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return _vse_grid("vse_grid_wsl", overrides, channels="RGB", mean=mean, std=std, **_RESNEXT)
