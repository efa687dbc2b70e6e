"""Anchors and the box regression code (Ren et al. 2015; conventions of detectron2).

`inclusive` stands for the convention of the Caffe code: a box names its first and last pixel, so its width is
x1 - x0 + 1 and it is clipped to width - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

# Larger predicted log-scales are clipped: a box may grow at most to 1000 pixels from a 16-pixel anchor.
_MAX_LOG_SCALE = math.log(1000.0 / 16)


def _anchor(size: float, ratio: float) -> list[float]:
    w = math.sqrt(size**2.0 / ratio)
    h = ratio * w
    return [-w / 2, -h / 2, w / 2, h / 2]


def _rounded_anchor(size: float, ratio: float, stride: int) -> list[float]:
    # The sides of an anchor as large as the cell are rounded (half to even), then made as large as asked for.
    w = round(math.sqrt(stride**2.0 / ratio))
    h = round(w * ratio)
    w, h, centre = w * size / stride, h * size / stride, (stride - 1) / 2
    return [centre - (w - 1) / 2, centre - (h - 1) / 2, centre + (w - 1) / 2, centre + (h - 1) / 2]


class AnchorGenerator(nn.Module):
    """Anchors of every feature cell.

    They are centred on the cell's top-left corner, or, `rounded`, in py-faster-rcnn's way: with whole sides, named by their
    first and last pixel, around the middle of the cell's pixels.

    Args:
        sizes: for every feature level, the anchors' side lengths (square root of the area) in input pixels.
        aspect_ratios: height / width.
        strides: of the feature levels in input pixels.
        from_checkpoint: the cell anchors of a weights file, where it has any, replace those computed from the sizes.
        rounded: see above.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        strides: Sequence[int],
        from_checkpoint: bool = False,
        rounded: bool = False,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.from_checkpoint = from_checkpoint
        for i, (level_sizes, stride) in enumerate(zip(sizes, strides, strict=True)):
            anchor = partial(_rounded_anchor, stride=stride) if rounded else _anchor
            cells = [anchor(size, ratio) for size in level_sizes for ratio in aspect_ratios]
            # Otherwise no part of a file: they follow from the architecture alone.
            cells = torch.tensor(cells, dtype=torch.float32)
            self.register_buffer(f"cell_anchors_{i}", cells, persistent=from_checkpoint)
        self.anchors_per_cell = len(sizes[0]) * len(aspect_ratios)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps (B, C, h_i, w_i) -> per level anchors (h_i * w_i * A, 4) xyxy in input pixels, row-major."""
        result = []
        for i, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            h, w = feature.shape[-2:]
            cells = getattr(self, f"cell_anchors_{i}")
            xs = torch.arange(0, w * stride, stride, dtype=torch.float32, device=cells.device)
            ys = torch.arange(0, h * stride, stride, dtype=torch.float32, device=cells.device)
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            result.append((shifts + cells).reshape(-1, 4))
        return result


def encode_boxes(source: Tensor, target: Tensor, weights: Sequence[float]) -> Tensor:
    """Regression targets (N, 4) that move `source` onto `target`, both (N, 4) xyxy."""
    sw, sh = source[:, 2] - source[:, 0], source[:, 3] - source[:, 1]
    tw, th = target[:, 2] - target[:, 0], target[:, 3] - target[:, 1]
    dx = weights[0] * ((target[:, 0] + 0.5 * tw) - (source[:, 0] + 0.5 * sw)) / sw
    dy = weights[1] * ((target[:, 1] + 0.5 * th) - (source[:, 1] + 0.5 * sh)) / sh
    dw = weights[2] * torch.log(tw / sw)
    dh = weights[3] * torch.log(th / sh)
    return torch.stack([dx, dy, dw, dh], dim=1)


def decode_boxes(deltas: Tensor, boxes: Tensor, weights: Sequence[float], inclusive: bool = False) -> Tensor:
    """Apply deltas (N, 4*C) to boxes (N, 4) xyxy -> (N, 4*C) xyxy."""
    deltas = deltas.float()
    boxes = boxes.to(deltas.dtype)
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    if inclusive:
        widths, heights = widths + 1, heights + 1
    centre_x, centre_y = boxes[:, 0] + 0.5 * widths, boxes[:, 1] + 0.5 * heights
    dx, dy = deltas[:, 0::4] / weights[0], deltas[:, 1::4] / weights[1]
    dw = torch.clamp(deltas[:, 2::4] / weights[2], max=_MAX_LOG_SCALE)
    dh = torch.clamp(deltas[:, 3::4] / weights[3], max=_MAX_LOG_SCALE)
    x = dx * widths[:, None] + centre_x[:, None]
    y = dy * heights[:, None] + centre_y[:, None]
    w = torch.exp(dw) * widths[:, None]
    h = torch.exp(dh) * heights[:, None]
    return torch.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], dim=-1).reshape(deltas.shape)


def clip_boxes(boxes: Tensor, size: tuple[int, int], inclusive: bool = False) -> Tensor:
    """Clip boxes (..., 4) xyxy into an image of `size` = (height, width)."""
    h, w = (size[0] - 1, size[1] - 1) if inclusive else size
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([x0.clamp(0, w), y0.clamp(0, h), x1.clamp(0, w), y1.clamp(0, h)], dim=-1)


def nonempty(boxes: Tensor, threshold: float = 0.0) -> Tensor:
    """(N,) bool: boxes whose both sides exceed `threshold` pixels."""
    return ((boxes[:, 2] - boxes[:, 0]) > threshold) & ((boxes[:, 3] - boxes[:, 1]) > threshold)


def exclusive(boxes: Tensor) -> Tensor:
    """Inclusive boxes (..., 4) in the usual convention: their overlaps are then the inclusive ones."""
    return boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])


def last_pixels(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) in the usual convention as inclusive ones: the reverse of `exclusive`."""
    return boxes - boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
