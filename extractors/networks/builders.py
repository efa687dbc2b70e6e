"""The kinds of network, put together from their parts: their arguments are the parts' own, their sizes come from `zoo` and `scenes`."""

from __future__ import annotations

from typing import Any

from extractors.images import InputSpec
from extractors.networks.fpn import FPN
from extractors.networks.rcnn import C4RCNN, Meta, PanopticFPN, StandardRCNN
from extractors.networks.resnet import ResNet, make_stage
from extractors.networks.roi import AttributePredictor, CascadeRoIHeads, Res5RoIHeads, RoIPooler, StandardRoIHeads
from extractors.networks.rpn import RPN
from extractors.networks.semantic import DeformableSemanticHead, SemanticFPNHead
from extractors.networks.upsnet import UPSNet, UPSNetRoIHeads, UPSNetRPN
from extractors.networks.vse_grid import GridCNN


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
    num_classes: int,
    num_attributes: int = 0,
    class_names: tuple[str, ...] = (),
    attribute_names: tuple[str, ...] = (),
    res5_dilation: int = 1,
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512),
    pre_nms_top: int = 6000,
    post_nms_top: int = 1000,
    pool_resolution: int = 1,
    sampling_ratio: int = 2,
    box_hidden: int = 1024,
    attribute_embedding: int = 256,
    attribute_hidden: int = 512,
    **body: Any,
) -> StandardRCNN:
    """A ResNet (`body`: its own arguments) with all on top of res5: proposals, pooling, a two-layer head (Jiang et al. 2020)."""
    backbone = ResNet(res5_dilation=res5_dilation, **body)
    channels, stride = backbone.channels["res5"], 32 // res5_dilation
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
        backbone=backbone,
        proposal_generator=rpn,
        roi_heads=heads,
        proposal_levels=("res5",),
        roi_levels=("res5",),
        meta=Meta(input=input, class_names=class_names, attribute_names=attribute_names),
    )


# Of an FPN: anchors of p2..p6, and what the coordinates of regions are multiplied with on p2..p5.
_ANCHOR_SIZES = ((32,), (64,), (128,), (256,), (512,))
_ROI_SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def _pyramid_rpn(
    channels: int, anchor_sizes: tuple[tuple[float, ...], ...], pre_nms_top: int, post_nms_top: int
) -> RPN:
    return RPN(
        in_channels=channels,
        anchor_sizes=anchor_sizes,
        strides=(4, 8, 16, 32, 64),
        pre_nms_top=pre_nms_top,
        post_nms_top=post_nms_top,
    )


def fpn_rcnn(
    *,
    input: InputSpec,
    num_classes: int,
    class_names: tuple[str, ...] = (),
    fpn_channels: int = 256,
    box_hidden: int = 1024,
    anchor_sizes: tuple[tuple[float, ...], ...] = _ANCHOR_SIZES,
    pre_nms_top: int = 1000,
    post_nms_top: int = 1000,
    **body: Any,
) -> StandardRCNN:
    """A ResNet-FPN Faster R-CNN (Lin et al. 2017); `body` are `ResNet`'s own arguments."""
    resnet = ResNet(**body)
    rpn = _pyramid_rpn(fpn_channels, anchor_sizes, pre_nms_top, post_nms_top)
    heads = StandardRoIHeads(
        box_pooler=RoIPooler(7, _ROI_SCALES),
        mask_pooler=None,
        channels=fpn_channels,
        hidden=box_hidden,
        num_classes=num_classes,
    )
    return StandardRCNN(
        backbone=FPN(resnet, fpn_channels),
        proposal_generator=rpn,
        roi_heads=heads,
        proposal_levels=("p2", "p3", "p4", "p5", "p6"),
        roi_levels=("p2", "p3", "p4", "p5"),
        meta=Meta(input=input, class_names=class_names),
    )


def panoptic_fpn(
    *,
    input: InputSpec,
    thing_categories: tuple[int, ...],
    stuff_categories: tuple[int, ...],
    fpn_channels: int = 256,
    fpn_norm: str = "",
    cascade: bool = False,
    box_hidden: int = 1024,
    mask_channels: int = 256,
    mask_norm: str = "",
    semantic_channels: int = 128,
    semantic_norm: str = "GN",
    anchor_sizes: tuple[tuple[float, ...], ...] = _ANCHOR_SIZES,
    pre_nms_top: int = 1000,
    post_nms_top: int = 1000,
    canonical_size: float = 224.0,
    score_threshold: float = 0.05,
    stuff_area_limit: int = 4096,
    instance_threshold: float = 0.5,
    **body: Any,
) -> PanopticFPN:
    """A ResNet Panoptic FPN; the semantic branch has label 0 for any thing, then one per stuff category.

    `body` are `ResNet`'s own arguments.
    """
    resnet = ResNet(**body)
    rpn = _pyramid_rpn(fpn_channels, anchor_sizes, pre_nms_top, post_nms_top)
    heads = (CascadeRoIHeads if cascade else StandardRoIHeads)(
        box_pooler=RoIPooler(7, _ROI_SCALES, canonical_size=canonical_size),
        mask_pooler=RoIPooler(14, _ROI_SCALES, canonical_size=canonical_size),
        channels=fpn_channels,
        hidden=box_hidden,
        num_classes=len(thing_categories),
        mask_channels=mask_channels,
        mask_norm=mask_norm,
        score_threshold=score_threshold,
    )
    return PanopticFPN(
        backbone=FPN(resnet, fpn_channels, fpn_norm),
        proposal_generator=rpn,
        roi_heads=heads,
        sem_seg_head=SemanticFPNHead(fpn_channels, semantic_channels, 1 + len(stuff_categories), semantic_norm),
        meta=Meta(input=input, thing_categories=thing_categories, stuff_categories=stuff_categories),
        stuff_area_limit=stuff_area_limit,
        instance_threshold=instance_threshold,
    )


def upsnet(
    *,
    input: InputSpec,
    thing_categories: tuple[int, ...],
    stuff_categories: tuple[int, ...],
    fpn_channels: int = 256,
    box_hidden: int = 1024,
    mask_channels: int = 256,
    semantic_channels: tuple[int, ...] = (256, 128, 128),
    anchor_sizes: tuple[tuple[float, ...], ...] = _ANCHOR_SIZES,
    pre_nms_top: int = 1000,
    post_nms_top: int = 1000,
    canonical_size: float = 224.0,
    score_threshold: float = 0.05,
    candidate_threshold: float = 0.6,
    max_overlap: float = 0.3,
    stuff_area_limit: int = 4096,
    **body: Any,
) -> UPSNet:
    """A ResNet UPSNet (Xiong et al. 2019); `body` are `ResNet`'s own arguments."""
    pooling = {"method": "align_legacy", "sampling_ratio": 2, "canonical_size": canonical_size, "inclusive": True}
    return UPSNet(
        backbone=FPN(ResNet(**body), fpn_channels, global_context=True),
        proposal_generator=UPSNetRPN(
            in_channels=fpn_channels,
            anchor_sizes=anchor_sizes,
            strides=(4, 8, 16, 32, 64),
            pre_nms_top=pre_nms_top,
            post_nms_top=post_nms_top,
            rounded_anchors=True,
        ),
        roi_heads=UPSNetRoIHeads(
            box_pooler=RoIPooler(7, _ROI_SCALES, **pooling),
            mask_pooler=RoIPooler(14, _ROI_SCALES, **pooling),
            channels=fpn_channels,
            hidden=box_hidden,
            num_classes=len(thing_categories),
            mask_channels=mask_channels,
            score_threshold=score_threshold,
            candidate_threshold=candidate_threshold,
        ),
        sem_seg_head=DeformableSemanticHead(
            fpn_channels, semantic_channels, len(stuff_categories) + len(thing_categories)
        ),
        meta=Meta(input=input, thing_categories=thing_categories, stuff_categories=stuff_categories),
        max_overlap=max_overlap,
        stuff_area_limit=stuff_area_limit,
    )


def grid_cnn(*, input: InputSpec, architecture: str, **body: Any) -> GridCNN:
    """A ResNet (`body`: its own arguments) without a detector; `architecture`: the name whose weights it takes."""
    return GridCNN(backbone=ResNet(**body), meta=Meta(input=input, options={"architecture": architecture}))
