"""Region features: Faster R-CNN proposals, the chosen boxes and their 2048-d (or narrower) features.

Sources: Anderson et al. 2018 (bottom-up attention); the three ways to choose boxes are those of its Caffe code, of its
adaptive variant and of LXMERT's extraction script.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from console import UserError
from extractors.images import ImageBatch
from extractors.loading import NetworkExtractor, NetworkRunner, native_runner, with_engines
from extractors.networks.rcnn import Proposals
from stores.schema import ArraySpec

# Raise when the algorithm changes so that stored features would differ: stores made with another number are made again.
RECIPE = 1

SELECTIONS = ("caffe", "adaptive", "lxmert")
_CLASS_NMS = 0.3
_ADAPTIVE_CONFIDENCE = 0.2
_ADAPTIVE_LEAST = 10


def surviving_confidence(boxes: Tensor, probabilities: Tensor, threshold: float = _CLASS_NMS) -> Tensor:
    """A box's confidence: its largest class score that survives suppression among that class's scores.

    Args:
        boxes: (P, 4) xyxy, the same for all classes. probabilities: (P, C) without background. threshold: IoU.

    Returns:
        (P,) float32; 0 for a box suppressed in every class.
    """
    count, classes = probabilities.shape
    if count == 0:
        return probabilities.new_zeros(0)
    overlaps = box_iou(boxes, boxes) > threshold
    order = probabilities.argsort(dim=0, descending=True, stable=True)
    alive = torch.ones(classes, count, dtype=torch.bool, device=boxes.device)
    survived = torch.zeros_like(alive)
    rows = torch.arange(classes, device=boxes.device)
    # All classes go down their own ranking together: P steps instead of C suppressions.
    for rank in range(count):
        box = order[rank]
        kept = alive[rows, box]
        survived[rows, box] = kept
        alive &= ~(overlaps[box] & kept[:, None])
    return (probabilities.T * survived).amax(dim=0)


def choose_regions(proposals: Proposals, selection: str, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which proposals become regions.

    Args:
        proposals: of one image. selection: "caffe" (best `limit` by surviving confidence), "adaptive" (confidence >= 0.2,
            at least 10 and at most `limit`) or "lxmert" (each proposal's best class and regressed box, class-agnostic
            suppression at IoU 0.3, 0.4, ... until `limit` are left).

    Returns:
        indices (n,) best first, boxes (n, 4) in network pixels, scores (n,).
    """
    if selection == "lxmert":
        scores, classes = proposals.probabilities.max(dim=1)
        boxes = proposals.regressed[torch.arange(len(classes), device=classes.device), classes]
        keep = torch.arange(0, device=scores.device)
        for tenths in range(3, 10):
            keep = nms(boxes, scores, tenths / 10)
            if len(keep) >= limit:
                break
        keep = keep[:limit]
        return keep, boxes[keep], scores[keep]
    confidence = surviving_confidence(proposals.boxes, proposals.probabilities)
    order = confidence.argsort(descending=True, stable=True)
    count = min(limit, len(order))
    if selection == "adaptive":
        count = min(count, max(_ADAPTIVE_LEAST, int((confidence >= _ADAPTIVE_CONFIDENCE).sum())))
    keep = order[:count]
    return keep, proposals.boxes[keep], confidence[keep]


class RegionExtractor(NetworkExtractor):
    """Rows of the `regions` store for batches of images.

    Args:
        runner: around a C4 detector. selection: see `choose_regions`. num_regions: K, rows are zero-padded to it.
    """

    def __init__(self, runner: NetworkRunner, *, selection: str = "caffe", num_regions: int = 36) -> None:
        if selection not in SELECTIONS:
            raise UserError(f"unknown selection {selection!r}; choose one of {', '.join(SELECTIONS)}")
        if not hasattr(runner.network, "regions"):
            raise UserError("region features need a Faster R-CNN C4 architecture, such as scenes_regions")
        super().__init__(runner)
        self.selection = selection
        self.num_regions = num_regions
        heads = runner.network.roi_heads
        dim = heads.box_predictor.cls_score.in_features
        k = num_regions
        self.arrays = {
            "features": ArraySpec((k, dim), "float16", 0),
            "boxes": ArraySpec((k, 4), "float32", 0),
            "scores": ArraySpec((k,), "float32", 0),
            "class_ids": ArraySpec((k,), "int16", -1),
            "counts": ArraySpec((), "int16", 0),
        }
        if getattr(heads, "attribute_predictor", None) is not None:
            self.arrays["attribute_ids"] = ArraySpec((k,), "int16", -1)
            self.arrays["attribute_scores"] = ArraySpec((k,), "float32", 0)

    @property
    def attributes(self) -> dict[str, Any]:
        """What readers of the store need to know about the numbers."""
        meta = self.runner.network.meta
        names = {"class_names": list(meta.class_names), "attribute_names": list(meta.attribute_names)}
        return names | self.runner.attributes

    def __call__(self, batch: ImageBatch) -> list[dict[str, np.ndarray]]:
        """One dict of rows per image; `boxes` are xyxy pixels of the upright original image."""
        with self.runner.autocast():
            proposals = self.runner.network.regions(self.runner.pixels(batch), batch.sizes)
        return [
            self._rows(image, size, original)
            for image, size, original in zip(proposals, batch.sizes, batch.original_sizes, strict=True)
        ]

    def _rows(self, image: Proposals, size: tuple[int, int], original: tuple[int, int]) -> dict[str, np.ndarray]:
        rows = {name: np.full(spec.shape, spec.fill, spec.dtype) for name, spec in self.arrays.items()}
        keep, boxes, scores = choose_regions(image, self.selection, self.num_regions)
        n = len(keep)
        scale = boxes.new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
        rows["features"][:n] = image.features[keep].cpu().numpy()
        rows["boxes"][:n] = (boxes * scale).cpu().numpy()
        rows["scores"][:n] = scores.cpu().numpy()
        rows["class_ids"][:n] = image.probabilities[keep].argmax(dim=1).cpu().numpy()
        rows["counts"][...] = n
        if image.attribute_probabilities is not None:
            best, ids = image.attribute_probabilities[keep].max(dim=1)
            rows["attribute_ids"][:n] = ids.cpu().numpy()
            rows["attribute_scores"][:n] = best.cpu().numpy()
        return rows


@with_engines(detectron2="extractors.detectron:regions_extractor")
def build_extractor(
    *,
    architecture: str,
    weights: str,
    selection: str = "caffe",
    num_regions: int = 36,
    precision: str = "fp32",
    batch_size: int = 8,  # of the command that feeds the extractor; listed so that other unknown settings are errors
) -> RegionExtractor:
    """A `RegionExtractor` from flat settings (config section `features.regions`)."""
    runner = native_runner(architecture=architecture, weights=weights, precision=precision)
    return RegionExtractor(runner, selection=selection, num_regions=num_regions)
