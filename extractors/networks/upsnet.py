"""UPSNet (Xiong et al. 2019): Mask R-CNN on a pyramid, a deformable semantic branch, and a panoptic head over both.

Written from a description of the released code, whose results it gives; no code of it is here. Its boxes name their first
and last pixel throughout (see `extractors.networks.boxes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.networks.bands import usual_rounding
from extractors.networks.boxes import clip_boxes, decode_boxes, exclusive, last_pixels
from extractors.networks.layers import Conv2d, DeformConv2d, Linear
from extractors.networks.ops import nms
from extractors.networks.rcnn import Meta
from extractors.networks.roi import StandardRoIHeads
from extractors.networks.rpn import RPN
from extractors.networks.semantic import DeformableSemanticHead
from extractors.networks.upsnet_panoptic import (
    Instance,
    merge_labels,
    panoptic_labels,
    panoptic_probabilities,
    remove_masks,
    semantic_labels,
    source_pixels,
    upsampled,
)


def decode_inclusive(deltas: Tensor, boxes: Tensor, weights: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Deltas (N, 4 C) and inclusive boxes (N, 4) -> inclusive boxes (N, C, 4), clipped to an image of (height, width)."""
    decoded = decode_boxes(deltas, boxes, weights, inclusive=True).view(len(deltas), -1, 4)
    return clip_boxes(last_pixels(decoded), size, inclusive=True)


class UPSNetRPN(RPN):
    """Proposals chosen level by level and by probability; none is too small."""

    @torch.no_grad()
    def select(
        self, anchors: list[Tensor], logits: list[Tensor], deltas: list[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image proposals (P, 4), inclusive, and probabilities (P,), best first."""
        result = []
        for i, size in enumerate(sizes):
            boxes, scores = [], []
            for level_anchors, level_logits, level_deltas in zip(anchors, logits, deltas, strict=True):
                # Ranked by probability: what rounds to the same keeps its order.
                probabilities = level_logits[i].float().sigmoid()
                order = probabilities.argsort(descending=True, stable=True)[: self.pre_nms_top]
                decoded = decode_inclusive(level_deltas[i, order], level_anchors[order], (1.0,) * 4, size)[:, 0]
                kept = nms(exclusive(decoded), probabilities[order], self.nms_threshold)[: self.post_nms_top]
                boxes.append(decoded[kept])
                scores.append(probabilities[order][kept])
            found, values = torch.cat(boxes), torch.cat(scores)
            order = values.argsort(descending=True, stable=True)[: self.post_nms_top]
            result.append((found[order], values[order]))
        return result


class UPSNetRoIHeads(StandardRoIHeads):
    """Box and mask head with two choices from the same scores: Mask R-CNN's detections and the panoptic head's candidates.

    Args: those of `StandardRoIHeads`, and
        candidate_threshold: what a candidate's score exceeds; as detections, they are limited to `detections`.
    """

    def __init__(self, *, candidate_threshold: float = 0.6, **options: Any) -> None:
        super().__init__(**options)
        self.candidate_threshold = candidate_threshold

    def score(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image boxes (P, C, 4) of every class, regressed and clipped, and their probabilities (P, C)."""
        logits, deltas = self.box_predictor(self.region_features(features, proposals))
        counts = [len(p) for p in proposals]
        parts = zip(logits.split(counts), deltas.split(counts), proposals, sizes, strict=True)
        return [
            (decode_inclusive(d, boxes, self.box_weights, size), F.softmax(own.float(), dim=-1)[:, :-1])
            for own, d, boxes, size in parts
        ]

    def detect(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """As `StandardRoIHeads.detect`, but class by class, best first within each."""
        return [
            select_instances(boxes, scores, self.score_threshold, self.nms_threshold, self.detections)
            for boxes, scores in self.score(features, proposals, sizes)
        ]

    def candidates(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What the panoptic head chooses from, as `detect` but best first: classes suppress each other."""
        return [
            select_instances(
                boxes, scores, self.candidate_threshold, self.nms_threshold, self.detections, across_classes=True
            )
            for boxes, scores in self.score(features, proposals, sizes)
        ]


def select_instances(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    nms_threshold: float,
    limit: int,
    across_classes: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppression of one image's inclusive boxes (P, C, 4) with scores (P, C), within classes or across them.

    Returns:
        boxes (n, 4), scores (n,) and classes (n,), best first, within classes one class after the other. All that score as
        high as the `limit`-th are kept.
    """
    rows, classes = torch.nonzero(scores > score_threshold, as_tuple=True)
    values = scores[rows, classes]
    order = values.argsort(descending=True, stable=True)
    rows, classes, values = rows[order], classes[order], values[order]
    boxes = boxes[rows, classes]
    groups = [torch.arange(len(values), device=values.device)]
    if not across_classes:
        groups = [torch.nonzero(classes == c).squeeze(1) for c in classes.unique()]
    kept = [group[nms(exclusive(boxes[group]), values[group], nms_threshold)] for group in groups]
    keep = torch.cat(kept) if kept else classes
    if len(keep) > limit:
        keep = keep[values[keep] >= values[keep].topk(limit).values[-1]]
    return boxes[keep], values[keep], classes[keep]


@dataclass
class UPSNetSemantic:
    """One image's semantic result: `labels` (H, W) uint8 at original size, in UPSNet's order.

    `probabilities()` gives (C, h, w) float32 in the same order: what the labels are the largest of, at each pixel of the
    network's input that a pixel of the original is taken from.
    """

    labels: Tensor
    probabilities: Callable[[], Tensor]


@dataclass
class UPSNetPanoptic(UPSNetSemantic):
    """One image's panoptic result, at original size.

    `segment_map` (H, W) int32 ids, 0 void; `segments` as from `merge_labels`; `instances` that took part.
    """

    segment_map: Tensor
    segments: list[dict]
    instances: list[Instance]


class UPSNet(nn.Module):
    """The whole network; parameter names are in the manner of detectron2.

    Args:
        meta: things in the order of the heads' classes, stuff in that of the semantic branch, whose classes are all stuff and
            then all things.
        max_overlap: see `remove_masks`. stuff_area_limit: see `merge_labels`.
    """

    PROPOSAL_LEVELS = ("p2", "p3", "p4", "p5", "p6")
    ROI_LEVELS = ("p2", "p3", "p4", "p5")

    def __init__(
        self,
        *,
        backbone: nn.Module,
        proposal_generator: UPSNetRPN,
        roi_heads: UPSNetRoIHeads,
        sem_seg_head: DeformableSemanticHead,
        meta: Meta,
        max_overlap: float = 0.3,
        stuff_area_limit: int = 4096,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.sem_seg_head = sem_seg_head
        self.meta = meta
        self.max_overlap = max_overlap
        self.stuff_area_limit = stuff_area_limit
        self.num_stuff = len(meta.stuff_categories)
        # Or scores and boxes would move by more than the original's do between its versions. Masks have digits to spare.
        for part in (backbone, proposal_generator, roi_heads.box_head, roi_heads.box_predictor):
            for layer in part.modules():
                if isinstance(layer, Conv2d | DeformConv2d | Linear):
                    layer.rounds_less = True

    @usual_rounding()
    @torch.inference_mode()
    def semantic(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], original_sizes: Sequence[tuple[int, int]]
    ) -> list[UPSNetSemantic]:
        """The semantic branch alone: the class of every pixel, none void. Arguments as of `panoptic`.

        Its logits are as near to the original's as theirs to each other without sums that round less, which are for scores.
        """
        results: list[Any] = [None] * len(sizes)
        for rows, part in self._by_padding(pixels, sizes):
            for i, logits in zip(rows, self.sem_seg_head(self.backbone(part)), strict=True):
                sampled, there = self._sampling(sizes[i], original_sizes[i])
                labels = semantic_labels(logits, *sampled)[there]
                results[i] = UPSNetSemantic(labels, partial(_softmax, logits, *sampled))
        return results

    @torch.inference_mode()
    def panoptic(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], original_sizes: Sequence[tuple[int, int]]
    ) -> list[UPSNetPanoptic]:
        """Panoptic results of a batch.

        Args:
            pixels: (B, 3, H, W) normalised, H and W multiples of 32. sizes: unpadded (height, width) of the network input.
            original_sizes: (height, width) of the results, from which the input was made as `meta.input` says.
        """
        results: list[Any] = [None] * len(sizes)
        for rows, part in self._by_padding(pixels, sizes):
            features = self.backbone(part)
            own_sizes = [sizes[i] for i in rows]
            found = self.instances(features, own_sizes, tuple(part.shape[2:]))
            for i, logits, instances in zip(rows, self.sem_seg_head(features), found, strict=True):
                sampled, there = self._sampling(sizes[i], original_sizes[i])
                ids, labels = (x[there] for x in panoptic_labels(logits, instances, *sampled, self.num_stuff))
                segment_map, segments = merge_labels(ids, labels, instances, self.num_stuff, self.stuff_area_limit)
                probabilities = partial(panoptic_probabilities, logits, instances, *sampled, self.num_stuff)
                results[i] = UPSNetPanoptic(labels, probabilities, segment_map, segments, instances)
        return results

    def instances(
        self, features: dict[str, Tensor], sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> list[list[Instance]]:
        """Of each image of a batch the instances that mask removal leaves; `padded`: (height, width) of the input."""
        proposals = [b for b, _ in self.proposal_generator([features[p] for p in self.PROPOSAL_LEVELS], sizes)]
        pyramid = [features[p] for p in self.ROI_LEVELS]
        chosen = self.roi_heads.candidates(pyramid, proposals, sizes)
        masks = self.roi_heads.mask_logits(pyramid, [c[0] for c in chosen], [c[2] for c in chosen])
        return [remove_masks(*own, m, padded, self.max_overlap) for own, m in zip(chosen, masks, strict=True)]

    def _by_padding(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Places in the batch and pixels of those images that have the same padding when each is padded by itself.

        The pyramid looks at the mean of the whole input: further padding would change an image's results.
        """
        step = self.meta.input.divisibility
        groups: dict[tuple[int, int], list[int]] = {}
        for i, size in enumerate(sizes):
            groups.setdefault(tuple(-(-side // step) * step for side in size), []).append(i)
        for (height, width), rows in groups.items():
            whole = len(groups) == 1
            part = (pixels if whole else pixels[rows])[:, :, :height, :width]
            yield rows, part.contiguous(memory_format=torch.channels_last)

    def _sampling(
        self, size: tuple[int, int], original: tuple[int, int]
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[Tensor, Tensor]]:
        """The rows and columns of the input that the original's pixels are taken from; where among them each finds its own."""
        scale = self.meta.input.scale(*original)
        taken = [source_pixels(*sides, scale) for sides in zip(size, original, strict=True)]
        (rows, row), (columns, column) = (np.unique(places, return_inverse=True) for places in taken)
        return (rows, columns), (torch.from_numpy(row)[:, None], torch.from_numpy(column)[None, :])


def _softmax(logits: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    parts = [values.softmax(dim=2).permute(2, 0, 1) for _, values in upsampled(logits, rows, columns)]
    return torch.cat(parts, dim=1)
