"""Region proposal network (Ren et al. 2015), numerics of detectron2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from extractors.networks.boxes import AnchorGenerator, clip_boxes, decode_boxes, exclusive, nonempty
from extractors.networks.layers import Conv2d, normal_init
from extractors.networks.ops import batched_nms, nms


class RPNHead(nn.Module):
    """3x3 convolution + ReLU, then objectness (A) and box deltas (4A) by 1x1 convolutions, shared by all levels."""

    def __init__(self, in_channels: int, channels: int, anchors_per_cell: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, channels, 3, padding=1, relu=True)
        self.objectness_logits = Conv2d(channels, anchors_per_cell, 1)
        self.anchor_deltas = Conv2d(channels, anchors_per_cell * 4, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            normal_init(layer, 0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels (B, C, h, w) -> logits (B, h*w*A) and deltas (B, h*w*A, 4) per level, row-major, anchors innermost."""
        logits, deltas = [], []
        for x in features:
            x = self.conv(x)
            objectness = self.objectness_logits(x)
            logits.append(objectness.permute(0, 2, 3, 1).flatten(1))
            delta = self.anchor_deltas(x)
            b, _, h, w = delta.shape
            deltas.append(delta.view(b, -1, 4, h, w).permute(0, 3, 4, 1, 2).reshape(b, -1, 4))
        return logits, deltas


class RPN(nn.Module):
    """Proposals from feature maps.

    Args:
        in_channels: of every level. channels: of the hidden convolution (None: as `in_channels`).
        anchor_sizes, aspect_ratios, strides: see `AnchorGenerator`.
        pre_nms_top: candidates kept per level before suppression. post_nms_top: proposals per image.
        nms_threshold: IoU above which the lower-scored of two proposals of one level goes.
        min_size: proposals with a side at most this long, in input pixels, are dropped.
        inclusive: the order of work and the box convention of the Caffe code: `min_size` is in pixels of the original image,
            and small proposals are dropped before the best are taken. Cell anchors come from the checkpoint.
        rounded_anchors: see `AnchorGenerator`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int | None = None,
        anchor_sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        strides: Sequence[int],
        pre_nms_top: int = 6000,
        post_nms_top: int = 1000,
        nms_threshold: float = 0.7,
        min_size: float = 0.0,
        inclusive: bool = False,
        rounded_anchors: bool = False,
    ) -> None:
        super().__init__()
        self.anchor_generator = AnchorGenerator(
            anchor_sizes, aspect_ratios, strides, from_checkpoint=inclusive, rounded=rounded_anchors
        )
        self.rpn_head = RPNHead(in_channels, channels or in_channels, self.anchor_generator.anchors_per_cell)
        self.pre_nms_top = pre_nms_top
        self.post_nms_top = post_nms_top
        self.nms_threshold = nms_threshold
        self.min_size = min_size
        self.inclusive = inclusive

    def forward(
        self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]], scales: Sequence[float] | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Proposals of a batch.

        Args:
            features: levels (B, C, h, w). sizes: the images' unpadded (height, width).
            scales: input pixels per original pixel of each image; needed with `inclusive`.

        Returns:
            per image proposals (P, 4) xyxy and logits (P,), best first.
        """
        logits, deltas = self.rpn_head(features)
        anchors = self.anchor_generator(features)
        if not self.inclusive:
            return self.select(anchors, logits, deltas, sizes)
        if scales is None:
            raise ValueError("proposals in Caffe's convention need the images' scales")
        return self.select_inclusive(anchors, logits, deltas, sizes, scales)

    @torch.no_grad()
    def select(
        self, anchors: list[Tensor], logits: list[Tensor], deltas: list[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Decode the best candidates of each level, clip, drop the tiny, suppress within levels, keep the best."""
        level_boxes, level_scores, level_ids = [], [], []
        for i, (level_anchors, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas, strict=True)):
            count = min(level_logits.shape[1], self.pre_nms_top)
            scores, index = level_logits.float().topk(count, dim=1)
            chosen = level_deltas.gather(1, index[..., None].expand(-1, -1, 4))
            boxes = decode_boxes(chosen.reshape(-1, 4), level_anchors[index.reshape(-1)], (1.0, 1.0, 1.0, 1.0))
            level_boxes.append(boxes.view(*index.shape, 4))
            level_scores.append(scores)
            level_ids.append(torch.full((count,), i, dtype=torch.int64, device=scores.device))
        boxes, scores, ids = torch.cat(level_boxes, 1), torch.cat(level_scores, 1), torch.cat(level_ids)
        result = []
        for image_boxes, image_scores, size in zip(boxes, scores, sizes, strict=True):
            image_boxes = clip_boxes(image_boxes, size)
            keep = nonempty(image_boxes, self.min_size) & torch.isfinite(image_scores)
            image_boxes, image_scores, image_ids = image_boxes[keep], image_scores[keep], ids[keep]
            order = batched_nms(image_boxes, image_scores, image_ids, self.nms_threshold)[: self.post_nms_top]
            result.append((image_boxes[order], image_scores[order]))
        return result

    @torch.no_grad()
    def select_inclusive(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        sizes: Sequence[tuple[int, int]],
        scales: Sequence[float],
    ) -> list[tuple[Tensor, Tensor]]:
        """As `select`, in the order of the Caffe code: decode all, clip, drop the small, keep the best, suppress."""
        (anchors,), (logits,), (deltas,) = anchors, logits, deltas
        result = []
        for scores, image_deltas, size, scale in zip(logits.float(), deltas, sizes, scales, strict=True):
            boxes = decode_boxes(image_deltas, anchors, (1.0, 1.0, 1.0, 1.0), inclusive=True)
            boxes = clip_boxes(boxes, size, inclusive=True)
            keep = nonempty(boxes) & nonempty(exclusive(boxes), self.min_size * scale) & torch.isfinite(scores)
            boxes, scores = boxes[keep], scores[keep]
            order = scores.argsort(descending=True, stable=True)[: self.pre_nms_top]
            boxes, scores = boxes[order], scores[order]
            kept = nms(exclusive(boxes), scores, self.nms_threshold)[: self.post_nms_top]
            result.append((boxes[kept], scores[kept]))
        return result
