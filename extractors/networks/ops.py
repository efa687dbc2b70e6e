"""torchvision's operators on boxes and maps, without the rest of torchvision.

`import torchvision` takes more than twice the time of `import torch`, as it loads torch's compiler; its operators are one
compiled library, which needs none of that. Only gradients are written in Python there: where one is asked for, all of it is
imported. Results are those of the functions of the same names in `torchvision.ops`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Names of the library, by version of torchvision.
_LIBRARIES = ("_C_stable", "_C")
# From so many numbers on, a class at a time is faster than all together, moved apart.
_TOGETHER = {"cpu": 4_000}
_TOGETHER_ON_DEVICES = 100_000


@functools.cache
def _operators(gradients: bool = False) -> Any:
    """torchvision's part of `torch.ops`."""
    package = importlib.util.find_spec("torchvision")
    if not gradients and package is not None and package.origin is not None:
        for path in [p for name in _LIBRARIES for p in sorted(Path(package.origin).parent.glob(f"{name}.*"))]:
            with contextlib.suppress(OSError, AttributeError):
                torch.ops.load_library(str(path))
                if torch.ops.torchvision.nms and torch.ops.torchvision.roi_align:
                    return torch.ops.torchvision
    import torchvision  # noqa: F401 - its own way to them, and its message if there is none

    return torch.ops.torchvision


def _for(*tensors: Tensor | None) -> Any:
    """The operators, with gradients if one of the tensors has them."""
    return _operators(torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: indices of the boxes (N, 4), xyxy, that are kept, by falling score (N,)."""
    return _operators().nms(boxes, scores, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among boxes of the same class (N,) alone."""
    if not boxes.numel():
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    if boxes.numel() <= _TOGETHER.get(boxes.device.type, _TOGETHER_ON_DEVICES):
        # Moved apart, boxes of two classes never meet.
        apart = classes.to(boxes) * (boxes.max() + 1)
        return nms(boxes + apart[:, None], scores, iou_threshold)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for one in classes.unique():
        rows = torch.where(classes == one)[0]
        kept[rows[nms(boxes[rows], scores[rows], iou_threshold)]] = True
    rows = torch.where(kept)[0]
    return rows[scores[rows].sort(descending=True)[1]]


def box_iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes, xyxy: (N, 4), (M, 4) -> (N, M)."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (one, other)]
    return common / (areas[0][:, None] + areas[1] - common)


def roi_align(
    x: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, *, aligned: bool
) -> Tensor:
    """RoIAlign (He et al. 2017): maps (B, C, H, W), rois (R, 5) of image and xyxy -> (R, C, *size)."""
    return _for(x).roi_align(x, rois, scale, *size, sampling_ratio, aligned)


def roi_pool(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """RoIPool (Girshick 2015), shapes as in `roi_align`."""
    return _for(x).roi_pool(x, rois, scale, *size)[0]
