"""Region features: Faster R-CNN proposals, the chosen boxes and their 2048-d (or narrower) features.

Sources: Anderson et al. 2018 (bottom-up attention); the three ways to choose boxes are those of its Caffe code, of its
adaptive variant and of LXMERT's extraction script.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.console import UserError
from extractors.images import ImageBatch
from extractors.loading import NetworkExtractor, NetworkRunner
from extractors.networks.boxes import exclusive
from extractors.networks.ops import box_iou, nms
from extractors.networks.rcnn import Proposals
from stores.features import region_arrays

# Raise when the algorithm changes so that stored features would differ: stores made with another number are made again.
RECIPE = 3

SELECTIONS = ("caffe", "adaptive", "lxmert")
_CLASS_NMS = 0.3
_ADAPTIVE_CONFIDENCE = 0.2
_ADAPTIVE_LEAST = 10
# Scores that are looked at first, then further down; more pairs of box and class than this are slower than all of them.
_FLOORS = (0.1, 0.03, 0.01, 0.001)
_MAX_PAIRS = 8192


def surviving_confidence(boxes: Tensor, probabilities: Tensor, count: int | None = None) -> Tensor:
    """A box's confidence: its largest class score that survives suppression among that class's scores.

    Args:
        boxes: (P, 4) xyxy, the same for all classes. probabilities: (P, C) without background.
        count: how many of the best boxes have to be exact; None for all.

    Returns:
        (P,) float32. Boxes that are suppressed in every class have 0, and so may boxes beyond the best `count`, whose
        order is then that of their place.
    """
    if len(boxes) == 0:
        return probabilities.new_zeros(0)
    if count is not None and len(boxes):
        # A score is suppressed by higher ones alone: what lies under a floor has no say in what is above it.
        for floor in _FLOORS:
            rows, classes = torch.nonzero(probabilities >= floor, as_tuple=True)
            if len(rows) > _MAX_PAIRS:
                break
            # Classes are moved apart so that one suppression does all; in double precision that changes no overlap.
            apart = classes.double() * (boxes.max().double() - boxes.min().double() + 2)
            scores = probabilities[rows, classes]
            kept = nms(boxes.double()[rows] + apart[:, None], scores.double(), _CLASS_NMS)
            confidence = probabilities.new_zeros(len(boxes))
            confidence.scatter_reduce_(0, rows[kept], scores[kept], "amax")
            if int((confidence > 0).sum()) >= min(count, len(boxes)):
                return confidence
    return _dense_confidence(boxes, probabilities)


def _dense_confidence(boxes: Tensor, probabilities: Tensor) -> Tensor:
    """`surviving_confidence` of every box: all classes go down their own ranking together."""
    count, classes = probabilities.shape
    overlaps = box_iou(boxes, boxes) > _CLASS_NMS
    order = probabilities.argsort(dim=0, descending=True, stable=True)
    alive = torch.ones(classes, count, dtype=torch.bool, device=boxes.device)
    survived = torch.zeros_like(alive)
    rows = torch.arange(classes, device=boxes.device)
    for rank in range(count):
        box = order[rank]
        kept = alive[rows, box]
        survived[rows, box] = kept
        alive &= ~(overlaps[box] & kept[:, None])
    return (probabilities.T * survived).amax(dim=0)


def choose_regions(
    proposals: Proposals, selection: str, limit: int, scale: tuple[float, float] = (1.0, 1.0)
) -> tuple[Tensor, Tensor, Tensor]:
    """Which proposals become regions.

    Args:
        proposals: of one image. selection: "caffe" (best `limit` by surviving confidence), "adaptive" (confidence >= 0.2 in
            the proposals' own order, as the ports have it; the best 10 where they are fewer, the best `limit` where more) or
            "lxmert" (each proposal's best class and regressed box, class-agnostic suppression at IoU 0.3, 0.4, ... until `limit` are left).
        scale: (vertical, horizontal) original pixels per network pixel.

    Returns:
        indices (n,) best first (but for "adaptive"), boxes (n, 4) in pixels of the original image, scores (n,): the number
        that the choice went by.
    """
    scales = proposals.boxes.new_tensor([scale[1], scale[0]] * 2)
    if selection == "lxmert":
        scores, classes = proposals.probabilities.max(dim=1)
        boxes = proposals.regressed(torch.arange(len(classes), device=classes.device), classes)
        ends = exclusive(boxes) if proposals.inclusive else boxes
        keep = torch.arange(0, device=scores.device)
        for tenths in range(3, 10):
            keep = nms(ends, scores, tenths / 10)
            if len(keep) >= limit:
                break
        keep = keep[:limit]
        return keep, boxes[keep] * scales, scores[keep]
    # Scaling moves no overlap, except where a pixel is added to each box: the Caffe code adds one of the original.
    boxes = exclusive(proposals.boxes * scales) if proposals.inclusive else proposals.boxes
    confidence = surviving_confidence(boxes, proposals.probabilities, max(limit, _ADAPTIVE_LEAST))
    order = confidence.argsort(descending=True, stable=True)
    count = min(limit, len(order))
    if selection == "adaptive":
        confident = torch.nonzero(confidence >= _ADAPTIVE_CONFIDENCE).flatten()
        if min(_ADAPTIVE_LEAST, limit) <= len(confident) <= limit:
            return confident, proposals.boxes[confident] * scales, confidence[confident]
        count = min(count, max(_ADAPTIVE_LEAST, len(confident)))
    keep = order[:count]
    return keep, proposals.boxes[keep] * scales, confidence[keep]


class RegionExtractor(NetworkExtractor):
    """Rows of the `regions` store for batches of images.

    Args:
        runner: around a Faster R-CNN. selection: see `choose_regions`. num_regions: K, rows are zero-padded to it.
    """

    def __init__(self, runner: NetworkRunner, *, selection: str = "caffe", num_regions: int = 36) -> None:
        if selection not in SELECTIONS:
            raise UserError(f"unknown selection {selection!r}; choose one of {', '.join(SELECTIONS)}")
        if not hasattr(runner.network, "regions"):
            raise UserError("region features need a Faster R-CNN architecture, such as vg_r101_c4_caffe")
        super().__init__(runner)
        self.selection = selection
        self.num_regions = num_regions
        known = ["boxes", "scores", "class_ids", "class_scores"]
        if getattr(runner.network.roi_heads, "attribute_predictor", None) is not None:
            known += ["attribute_ids", "attribute_scores"]
        self.arrays = region_arrays(num_regions, runner.network.region_size, known)

    @property
    def attributes(self) -> dict[str, Any]:
        """What readers of the store need to know about the numbers."""
        meta = self.runner.network.meta
        own = {
            "selection": self.selection,
            "class_names": list(meta.class_names),
            "attribute_names": list(meta.attribute_names),
        }
        return own | self.runner.attributes

    def __call__(self, batch: ImageBatch) -> list[dict[str, np.ndarray]]:
        """One dict of rows per image; `boxes` are xyxy pixels of the upright original image.

        `scores` are what regions were chosen by. `class_ids` are the largest of all class probabilities and `class_scores` these
        probabilities, as the field's files have them: where suppression took a box out of its best class, `scores` is another's.
        """
        if not batch.rows:
            return []
        scales = [self.input.scale(*size) for size in batch.original_sizes]
        with self.runner.autocast():
            proposals = self.runner.network.regions(self.runner.pixels(batch), batch.sizes, scales)
        return [
            self._rows(image, size, original)
            for image, size, original in zip(proposals, batch.sizes, batch.original_sizes, strict=True)
        ]

    def _rows(self, image: Proposals, size: tuple[int, int], original: tuple[int, int]) -> dict[str, np.ndarray]:
        rows = self.empty_rows()
        if self.input.resize == "float":
            # The Caffe code's rule: one scale for both sides, whatever the rounded sizes say.
            scale = (1 / self.input.scale(*original),) * 2
        else:
            scale = (original[0] / size[0], original[1] / size[1])
        keep, boxes, scores = choose_regions(image, self.selection, self.num_regions, scale)
        n = len(keep)
        rows["features"][:n] = image.features[keep].cpu().numpy()
        rows["boxes"][:n] = boxes.cpu().numpy()
        rows["scores"][:n] = scores.cpu().numpy()
        if n:
            best, ids = image.probabilities[keep].max(dim=1)
            rows["class_ids"][:n], rows["class_scores"][:n] = ids.cpu().numpy(), best.cpu().numpy()
        rows["counts"][...] = n
        if image.attribute_probabilities is not None:
            best, ids = image.attribute_probabilities[keep].max(dim=1)
            rows["attribute_ids"][:n] = ids.cpu().numpy()
            rows["attribute_scores"][:n] = best.cpu().numpy()
        return rows


EXTRACTOR = RegionExtractor
