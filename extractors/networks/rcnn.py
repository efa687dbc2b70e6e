"""The detectors as whole networks: body, proposals, heads, and what the extractors ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.images import InputSpec
from extractors.networks.boxes import clip_boxes, decode_boxes, nonempty
from extractors.networks.resnet import stage_stride
from extractors.networks.roi import Res5RoIHeads, StandardRoIHeads
from extractors.networks.rpn import RPN
from extractors.networks.semantic import SemanticFPNHead, merge_panoptic, paste_masks, resize_logits


@dataclass
class Proposals:
    """One image's proposals with everything the choice of regions needs; pixels of the network input.

    Attributes:
        boxes: (P, 4) xyxy. probabilities: (P, C) without background. features: (P, D).
        attribute_probabilities: (P, A) or None. All float32 on the network's device.
        deltas: (P, 4 C) or (P, 4) of the box regression, coded with `box_weights`.
        size: (height, width) of the image in the network input.
        inclusive: the boxes are in the Caffe code's convention (see `extractors.networks.boxes`).
    """

    boxes: Tensor
    deltas: Tensor
    probabilities: Tensor
    features: Tensor
    attribute_probabilities: Tensor | None
    size: tuple[int, int]
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    inclusive: bool = False

    def regressed(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Boxes (n, 4) of proposals `rows` (n,) as regressed for `classes` (n,), clipped to the image."""
        per_class = self.deltas.shape[1] // 4
        own = classes if per_class > 1 else torch.zeros_like(classes)
        deltas = self.deltas.view(len(self.deltas), per_class, 4)[rows, own]
        boxes = decode_boxes(deltas, self.boxes[rows], self.box_weights, self.inclusive)
        return clip_boxes(boxes, self.size, self.inclusive)


@dataclass
class Panoptic:
    """One image's panoptic result at original resolution.

    `segment_map` (H, W) int32 ids, 0 void; `segments` as from `merge_panoptic`; `semantic_logits` (S, H, W) float32;
    `masks` (n, H, W) bool, `mask_probabilities` (n, H, W), `scores` (n,), `classes` (n,), `boxes` (n, 4) of the kept instances.
    """

    segment_map: Tensor
    segments: list[dict]
    semantic_logits: Tensor
    masks: Tensor
    mask_probabilities: Tensor
    scores: Tensor
    classes: Tensor
    boxes: Tensor


@dataclass
class Meta:
    """What a network's numbers mean: its input, its class and attribute names, and options of its results."""

    input: InputSpec
    #: Boxes are in the Caffe code's convention.
    inclusive: bool = False
    class_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    # Panoptic networks: our 133-category index of every thing class and of every semantic label 1.. .
    thing_categories: tuple[int, ...] = ()
    stuff_categories: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def _proposals(
    heads: Res5RoIHeads | StandardRoIHeads,
    features: Sequence[Tensor],
    boxes: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    inclusive: bool,
) -> list[Proposals]:
    """What the heads say of per image proposal boxes (P_b, 4)."""
    x = heads.region_features(features, boxes)
    logits, deltas = heads.box_predictor(x)
    probabilities = F.softmax(logits.float(), dim=-1)[:, :-1]
    attributes = None if heads.attribute_predictor is None else heads.attribute_predictor.probabilities(x, logits)
    counts = [len(b) for b in boxes]
    parts = zip(
        boxes,
        deltas.float().split(counts),
        probabilities.split(counts),
        x.float().split(counts),
        [None] * len(counts) if attributes is None else attributes.split(counts),
        sizes,
        strict=True,
    )
    return [Proposals(*part, box_weights=heads.box_weights, inclusive=inclusive) for part in parts]


class C4RCNN(nn.Module):
    """Faster R-CNN with a res5 head on res4 (Ren et al. 2015; Anderson et al. 2018), regions and grids.

    Parameter names are detectron2's: `backbone.*`, `proposal_generator.rpn_head.*`, `roi_heads.*`.
    """

    def __init__(self, *, backbone: nn.Module, proposal_generator: RPN, roi_heads: Res5RoIHeads, meta: Meta) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.meta = meta
        self.region_size = self.grid_size = roi_heads.box_predictor.cls_score.in_features
        #: Pixels of the input per cell of the grid: 32, or 16 where res5 is dilated.
        self.grid_stride = backbone.strides["res4"] * stage_stride(roi_heads.res5)

    @torch.inference_mode()
    def regions(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], scales: Sequence[float] | None = None
    ) -> list[Proposals]:
        """Proposals with features of a batch.

        Args:
            pixels: (B, 3, H, W) normalised input. sizes: unpadded (height, width) of each image.
            scales: network pixels per original pixel; only networks in the Caffe code's convention need them.
        """
        feature = self.backbone(pixels)["res4"]
        proposals = [boxes for boxes, _ in self.proposal_generator([feature], sizes, scales)]
        return _proposals(self.roi_heads, [feature], proposals, sizes, self.meta.inclusive)

    @torch.inference_mode()
    def grid(self, pixels: Tensor) -> Tensor:
        """Whole-image res5 map: (B, 3, H, W) -> (B, D, ~H/s, ~W/s) float32; s is `grid_stride`."""
        return self.roi_heads.res5(self.backbone(pixels)["res4"]).float()


class StandardRCNN(nn.Module):
    """Faster R-CNN with a two-layer box head, on a feature pyramid or on res5 alone (Jiang et al. 2020, grid features).

    Parameter names are detectron2's, as of `C4RCNN`.

    Args:
        backbone: an `FPN`, or a `ResNet` up to res5.
        proposal_levels, roi_levels: outputs of the backbone that proposals come from and regions are cut out of.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        proposal_generator: RPN,
        roi_heads: StandardRoIHeads,
        proposal_levels: tuple[str, ...],
        roi_levels: tuple[str, ...],
        meta: Meta,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.proposal_levels = proposal_levels
        self.roi_levels = roi_levels
        self.meta = meta
        self.region_size = roi_heads.box_predictor.cls_score.in_features
        self.grid_size, self.grid_stride = self._body.channels["res5"], self._body.strides["res5"]

    @property
    def _body(self) -> nn.Module:
        return getattr(self.backbone, "bottom_up", self.backbone)

    @torch.inference_mode()
    def regions(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], scales: Sequence[float] | None = None
    ) -> list[Proposals]:
        """As `C4RCNN.regions`; the features are the box head's output."""
        features = self.backbone(pixels)
        levels = [features[level] for level in self.proposal_levels]
        proposals = [boxes for boxes, _ in self.proposal_generator(levels, sizes, scales)]
        levels = [features[level] for level in self.roi_levels]
        return _proposals(self.roi_heads, levels, proposals, sizes, self.meta.inclusive)

    @torch.inference_mode()
    def grid(self, pixels: Tensor) -> Tensor:
        """Whole-image res5 map of the body: (B, 3, H, W) -> (B, D, ~H/s, ~W/s) float32; s is `grid_stride`."""
        return self._body(pixels)["res5"].float()


class PanopticFPN(nn.Module):
    """Panoptic FPN (Kirillov et al. 2019): Mask R-CNN on a pyramid plus a semantic branch.

    Parameter names are detectron2's: `backbone.*`, `proposal_generator.*`, `roi_heads.*`, `sem_seg_head.*`.
    """

    PROPOSAL_LEVELS = ("p2", "p3", "p4", "p5", "p6")
    ROI_LEVELS = ("p2", "p3", "p4", "p5")

    def __init__(
        self,
        *,
        backbone: nn.Module,
        proposal_generator: RPN,
        roi_heads: StandardRoIHeads,
        sem_seg_head: SemanticFPNHead,
        meta: Meta,
        overlap_threshold: float = 0.5,
        stuff_area_limit: int = 4096,
        instance_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.sem_seg_head = sem_seg_head
        self.meta = meta
        self.overlap_threshold = overlap_threshold
        self.stuff_area_limit = stuff_area_limit
        self.instance_threshold = instance_threshold

    @torch.inference_mode()
    def panoptic(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], original_sizes: Sequence[tuple[int, int]]
    ) -> list[Panoptic]:
        """Panoptic results of a batch.

        Args:
            pixels: (B, 3, H, W) normalised, H and W multiples of 32. sizes: unpadded (height, width) of the network input.
            original_sizes: (height, width) of the results.
        """
        features = self.backbone(pixels)
        proposals = [b for b, _ in self.proposal_generator([features[p] for p in self.PROPOSAL_LEVELS], sizes)]
        pyramid = [features[p] for p in self.ROI_LEVELS]
        detections = self.roi_heads.detect(pyramid, proposals, sizes)
        mask_maps = self.roi_heads.masks(pyramid, [d[0] for d in detections], [d[2] for d in detections])
        logits = self.sem_seg_head.upsample(self.sem_seg_head(features))
        result = []
        for (boxes, scores, classes), maps, image_logits, size, original in zip(
            detections, mask_maps, logits, sizes, original_sizes, strict=True
        ):
            scale = boxes.new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
            boxes = clip_boxes(boxes * scale, original)
            keep = nonempty(boxes)
            boxes, scores, classes, maps = boxes[keep], scores[keep], classes[keep], maps[keep]
            probabilities = paste_masks(maps, boxes, original)
            masks = probabilities >= 0.5
            semantic = resize_logits(image_logits, size, original)
            segment_map, segments = merge_panoptic(
                masks,
                scores,
                classes,
                semantic.max(dim=0).indices,  # `argmax`, in a fifth of its time on a CPU
                overlap_threshold=self.overlap_threshold,
                stuff_area_limit=self.stuff_area_limit,
                score_threshold=self.instance_threshold,
            )
            result.append(Panoptic(segment_map, segments, semantic, masks, probabilities, scores, classes, boxes))
        return result
