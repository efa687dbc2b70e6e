"""Named architectures: everything about a network but its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from catalog.categories import COCO_PANOPTIC, NUM_CATEGORIES, NUM_THINGS
from extractors.images import InputSpec
from extractors.networks.fpn import FPN
from extractors.networks.rcnn import C4RCNN, Meta, PanopticFPN, StandardRCNN
from extractors.networks.resnet import ResNet, make_stage
from extractors.networks.roi import AttributePredictor, CascadeRoIHeads, Res5RoIHeads, RoIPooler, StandardRoIHeads
from extractors.networks.rpn import RPN
from extractors.networks.semantic import SemanticFPNHead


def c4_rcnn(
    *,
    input: InputSpec,
    blocks: tuple[int, int, int, int],
    num_classes: int,
    num_attributes: int = 0,
    class_names: tuple[str, ...] = (),
    attribute_names: tuple[str, ...] = (),
    stem_channels: int = 64,
    res2_channels: int = 256,
    groups: int = 1,
    width_per_group: int = 64,
    stride_in_1x1: bool = True,
    caffe_pool: bool = False,
    norm: str = "FrozenBN",
    rpn_channels: int | None = None,
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512),
    pre_nms_top: int = 6000,
    post_nms_top: int = 1000,
    rpn_nms_threshold: float = 0.7,
    rpn_min_size: float = 0.0,
    inclusive: bool = False,
    pooling: str = "align",
    pool_resolution: int = 14,
    sampling_ratio: int = 0,
    pool_from_res5: bool = False,
    res5_dilation: int = 1,
    attribute_embedding: int = 256,
    attribute_hidden: int = 512,
    attribute_none: str = "",
    attribute_sees_background: bool = False,
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0),
) -> C4RCNN:
    """A ResNet-C4 Faster R-CNN; `blocks` are the bottlenecks of res2..res5, `res2_channels` doubles per stage.

    The other arguments are those of the parts: `ResNet`, `RPN`, `RoIPooler`, `Res5RoIHeads`, `AttributePredictor`.
    """
    res4_channels = res2_channels * 4
    width = groups * width_per_group
    body = ResNet(
        blocks=blocks[:3],
        stem_channels=stem_channels,
        res2_channels=res2_channels,
        groups=groups,
        width_per_group=width_per_group,
        stride_in_1x1=stride_in_1x1,
        caffe_pool=caffe_pool,
        norm=norm,
    )
    rpn = RPN(
        in_channels=res4_channels,
        channels=rpn_channels,
        anchor_sizes=(anchor_sizes,),
        strides=(16,),
        pre_nms_top=pre_nms_top,
        post_nms_top=post_nms_top,
        nms_threshold=rpn_nms_threshold,
        min_size=rpn_min_size,
        inclusive=inclusive,
    )
    res5 = make_stage(
        blocks[3],
        res4_channels,
        res4_channels * 2,
        bottleneck_channels=width * 8,
        first_stride=1 if res5_dilation > 1 else 2,
        groups=groups,
        dilation=res5_dilation,
        stride_in_1x1=stride_in_1x1,
        norm=norm,
    )
    heads = Res5RoIHeads(
        res5=res5,
        # Pooling 1x1 from the whole-image res5 map replaces running res5 on every pooled region.
        pooler=RoIPooler(
            1 if pool_from_res5 else pool_resolution, (1 / (32 if pool_from_res5 else 16),), pooling, sampling_ratio
        ),
        pool_from_res5=pool_from_res5,
        features=res4_channels * 2,
        num_classes=num_classes,
        attribute_predictor=_attributes(
            res4_channels * 2,
            num_classes,
            num_attributes,
            attribute_embedding,
            attribute_hidden,
            attribute_none,
            attribute_sees_background,
        ),
        box_weights=box_weights,
    )
    meta = Meta(input=input, inclusive=inclusive, class_names=class_names, attribute_names=attribute_names)
    return C4RCNN(backbone=body, proposal_generator=rpn, roi_heads=heads, meta=meta)


def _attributes(features: int, num_classes: int, num_attributes: int, *options: Any) -> AttributePredictor | None:
    return AttributePredictor(features, num_classes, num_attributes, *options) if num_attributes else None


def c5_rcnn(
    *,
    input: InputSpec,
    blocks: tuple[int, int, int, int],
    num_classes: int,
    num_attributes: int = 0,
    class_names: tuple[str, ...] = (),
    attribute_names: tuple[str, ...] = (),
    stem_channels: int = 64,
    res2_channels: int = 256,
    groups: int = 1,
    width_per_group: int = 64,
    stride_in_1x1: bool = True,
    norm: str = "FrozenBN",
    deform: tuple[str, ...] = (),
    res5_dilation: int = 1,
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512),
    pre_nms_top: int = 6000,
    post_nms_top: int = 1000,
    pool_resolution: int = 1,
    sampling_ratio: int = 2,
    box_hidden: int = 1024,
    attribute_embedding: int = 256,
    attribute_hidden: int = 512,
) -> StandardRCNN:
    """A ResNet with everything on top of res5: proposals, pooling and a two-layer head (Jiang et al. 2020)."""
    body = ResNet(
        blocks=blocks,
        stem_channels=stem_channels,
        res2_channels=res2_channels,
        groups=groups,
        width_per_group=width_per_group,
        stride_in_1x1=stride_in_1x1,
        norm=norm,
        res5_dilation=res5_dilation,
        deform=deform,
    )
    channels, stride = body.channels["res5"], 32 // res5_dilation
    rpn = RPN(
        in_channels=channels,
        anchor_sizes=(anchor_sizes,),
        strides=(stride,),
        pre_nms_top=pre_nms_top,
        post_nms_top=post_nms_top,
    )
    heads = StandardRoIHeads(
        box_pooler=RoIPooler(pool_resolution, (1 / stride,), sampling_ratio=sampling_ratio),
        mask_pooler=None,
        channels=channels,
        hidden=box_hidden,
        num_classes=num_classes,
        attribute_predictor=_attributes(
            box_hidden, num_classes, num_attributes, attribute_embedding, attribute_hidden, "", True
        ),
    )
    return StandardRCNN(
        backbone=body,
        proposal_generator=rpn,
        roi_heads=heads,
        proposal_levels=("res5",),
        roi_levels=("res5",),
        meta=Meta(input=input, class_names=class_names, attribute_names=attribute_names),
    )


def fpn_rcnn(
    *,
    input: InputSpec,
    blocks: tuple[int, int, int, int],
    num_classes: int,
    class_names: tuple[str, ...] = (),
    stem_channels: int = 64,
    res2_channels: int = 256,
    groups: int = 1,
    width_per_group: int = 64,
    stride_in_1x1: bool = True,
    norm: str = "FrozenBN",
    fpn_channels: int = 256,
    box_hidden: int = 1024,
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,)),
    pre_nms_top: int = 1000,
    post_nms_top: int = 1000,
) -> StandardRCNN:
    """A ResNet-FPN Faster R-CNN (Lin et al. 2017)."""
    body = ResNet(
        blocks=blocks,
        stem_channels=stem_channels,
        res2_channels=res2_channels,
        groups=groups,
        width_per_group=width_per_group,
        stride_in_1x1=stride_in_1x1,
        norm=norm,
    )
    rpn = RPN(
        in_channels=fpn_channels,
        anchor_sizes=anchor_sizes,
        strides=(4, 8, 16, 32, 64),
        pre_nms_top=pre_nms_top,
        post_nms_top=post_nms_top,
    )
    heads = StandardRoIHeads(
        box_pooler=RoIPooler(7, (1 / 4, 1 / 8, 1 / 16, 1 / 32)),
        mask_pooler=None,
        channels=fpn_channels,
        hidden=box_hidden,
        num_classes=num_classes,
    )
    return StandardRCNN(
        backbone=FPN(body, fpn_channels),
        proposal_generator=rpn,
        roi_heads=heads,
        proposal_levels=("p2", "p3", "p4", "p5", "p6"),
        roi_levels=("p2", "p3", "p4", "p5"),
        meta=Meta(input=input, class_names=class_names),
    )


def panoptic_fpn(
    *,
    input: InputSpec,
    blocks: tuple[int, int, int, int],
    thing_categories: tuple[int, ...],
    stuff_categories: tuple[int, ...],
    stem_channels: int = 64,
    res2_channels: int = 256,
    width_per_group: int = 64,
    stride_in_1x1: bool = True,
    norm: str = "FrozenBN",
    deform: tuple[str, ...] = (),
    fpn_channels: int = 256,
    fpn_norm: str = "",
    cascade: bool = False,
    box_hidden: int = 1024,
    mask_channels: int = 256,
    mask_norm: str = "",
    semantic_channels: int = 128,
    semantic_norm: str = "GN",
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,)),
    pre_nms_top: int = 1000,
    post_nms_top: int = 1000,
    canonical_size: float = 224.0,
    score_threshold: float = 0.05,
    stuff_area_limit: int = 4096,
    instance_threshold: float = 0.5,
) -> PanopticFPN:
    """A ResNet Panoptic FPN; the semantic branch has label 0 for any thing, then one per stuff category."""
    body = ResNet(
        blocks=blocks,
        stem_channels=stem_channels,
        res2_channels=res2_channels,
        width_per_group=width_per_group,
        stride_in_1x1=stride_in_1x1,
        norm=norm,
        deform=deform,
    )
    rpn = RPN(
        in_channels=fpn_channels,
        anchor_sizes=anchor_sizes,
        strides=(4, 8, 16, 32, 64),
        pre_nms_top=pre_nms_top,
        post_nms_top=post_nms_top,
    )
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    heads = (CascadeRoIHeads if cascade else StandardRoIHeads)(
        box_pooler=RoIPooler(7, scales, canonical_size=canonical_size),
        mask_pooler=RoIPooler(14, scales, canonical_size=canonical_size),
        channels=fpn_channels,
        hidden=box_hidden,
        num_classes=len(thing_categories),
        mask_channels=mask_channels,
        mask_norm=mask_norm,
        score_threshold=score_threshold,
    )
    return PanopticFPN(
        backbone=FPN(body, fpn_channels, fpn_norm),
        proposal_generator=rpn,
        roi_heads=heads,
        sem_seg_head=SemanticFPNHead(fpn_channels, semantic_channels, 1 + len(stuff_categories), semantic_norm),
        meta=Meta(input=input, thing_categories=thing_categories, stuff_categories=stuff_categories),
        stuff_area_limit=stuff_area_limit,
        instance_threshold=instance_threshold,
    )


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
        "input": InputSpec(**_VG_INPUT, divisibility=1),
        "blocks": blocks,
        "num_classes": _VG_CLASSES,
        "num_attributes": _VG_ATTRIBUTES,
        "sampling_ratio": 2,
        "attribute_sees_background": True,
    }
    return c4_rcnn(**(options | overrides))


def vg_r50_c4_d2(**overrides: Any) -> C4RCNN:
    """grid-feats-vqa's `R-50-updn`, which is `test-d2-r50` of bottom-up-attention.pytorch too."""
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


def _scenes_vocabulary() -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    from catalog.scenes import COLORS, STUFFS, THINGS

    names = tuple(COCO_PANOPTIC[i].name for i in (*THINGS, *STUFFS))
    return names, tuple(COLORS), tuple(THINGS), tuple(STUFFS)


def _scenes_input(min_size: int, max_size: int) -> InputSpec:
    return InputSpec(
        min_size=min_size,
        max_size=max_size,
        channels="RGB",
        mean=(127.5, 127.5, 127.5),
        std=(64.0, 64.0, 64.0),
        divisibility=32,
    )


def scenes_regions(**overrides: Any) -> C4RCNN:
    """A quarter-width ResNet-C4 detector of the embedded scenes: things and stuff as objects, colours as attributes."""
    names, colors, _, _ = _scenes_vocabulary()
    options: dict[str, Any] = {
        "input": _scenes_input(176, 288),
        "blocks": (1, 2, 3, 1),
        "num_classes": len(names),
        "num_attributes": len(colors),
        "class_names": names,
        "attribute_names": colors,
        "stem_channels": 16,
        "res2_channels": 64,
        "width_per_group": 16,
        "stride_in_1x1": False,
        "rpn_channels": 128,
        "anchor_sizes": (20, 40, 80, 160),
        "pre_nms_top": 1000,
        "post_nms_top": 100,
        "pool_resolution": 7,
        "attribute_embedding": 32,
        "attribute_hidden": 64,
    }
    return c4_rcnn(**(options | overrides))


def scenes_grids(**overrides: Any) -> C4RCNN:
    """The same body as `scenes_regions`, larger input, trained with 1x1 regions pooled from the whole-image res5 map."""
    return scenes_regions(**({"input": _scenes_input(224, 320), "pool_from_res5": True} | overrides))


def scenes_panoptic(**overrides: Any) -> PanopticFPN:
    """A narrow Panoptic FPN of the embedded scenes."""
    _, _, things, stuffs = _scenes_vocabulary()
    options: dict[str, Any] = {
        "input": _scenes_input(176, 288),
        "blocks": (1, 2, 3, 1),
        "thing_categories": things,
        "stuff_categories": stuffs,
        "stem_channels": 16,
        "res2_channels": 64,
        "width_per_group": 16,
        "stride_in_1x1": False,
        "fpn_channels": 64,
        "box_hidden": 192,
        "mask_channels": 48,
        "semantic_channels": 48,
        "semantic_norm": "FrozenBN",
        "anchor_sizes": ((12,), (24,), (48,), (96,), (176,)),
        "pre_nms_top": 300,
        "post_nms_top": 100,
        "canonical_size": 96.0,
        "score_threshold": 0.1,
        "stuff_area_limit": 256,
    }
    return panoptic_fpn(**(options | overrides))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "faster_rcnn_r50_c4": faster_rcnn_r50_c4,
    "faster_rcnn_r101_c4": faster_rcnn_r101_c4,
    "faster_rcnn_r50_fpn": faster_rcnn_r50_fpn,
    "faster_rcnn_r101_fpn": faster_rcnn_r101_fpn,
    "faster_rcnn_x101_fpn": faster_rcnn_x101_fpn,
    "vg_r101_c4_caffe": vg_r101_c4_caffe,
    "vg_r101_c4_caffe_attr": partial(vg_r101_c4_caffe, attributes=True),
    "vg_r101_c4_caffe_milvlg": partial(vg_r101_c4_caffe, conversion="milvlg"),
    "vg_r50_c4_d2": vg_r50_c4_d2,
    "vg_r101_c4_d2": vg_r101_c4_d2,
    "grid_r50": grid_r50,
    "grid_x101": grid_x101,
    "grid_x152": grid_x152,
    "grid_x152_challenge": grid_x152_challenge,
    "panoptic_fpn_r50": panoptic_fpn_r50,
    "panoptic_fpn_r101": panoptic_fpn_r101,
    "panoptic_fpn_r101_dconv_cascade": panoptic_fpn_r101_dconv_cascade,
    "scenes_regions": scenes_regions,
    "scenes_grids": scenes_grids,
    "scenes_panoptic": scenes_panoptic,
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
