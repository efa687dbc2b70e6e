"""The semantic branches of Panoptic FPN (Kirillov et al. 2019) and UPSNet (Xiong et al. 2019), and the former's panoptic merge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.networks.layers import Conv2d, DeformConv2d, msra_init


class SemanticFPNHead(nn.Module):
    """Brings p2..p5 to stride 4, adds them and predicts one logit per class.

    Args:
        in_channels: pyramid width. channels: of the head. num_classes: logits. norm: after every convolution.
    """

    LEVELS = (2, 3, 4, 5)
    STRIDE = 4

    def __init__(self, in_channels: int, channels: int, num_classes: int, norm: str = "GN") -> None:
        super().__init__()
        for level in self.LEVELS:
            steps = []
            length = max(1, int(math.log2(2**level) - math.log2(self.STRIDE)))
            for i in range(length):
                conv = Conv2d(in_channels if i == 0 else channels, channels, 3, padding=1, norm=norm, relu=True)
                msra_init(conv)
                steps.append(conv)
                if 2**level != self.STRIDE:
                    steps.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.add_module(f"p{level}", nn.Sequential(*steps))
        self.predictor = Conv2d(channels, num_classes, 1)
        msra_init(self.predictor)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """{"p2": (B, C, H/4, W/4), ...} -> logits (B, classes, H/4, W/4)."""
        total = None
        for level in self.LEVELS:
            x = getattr(self, f"p{level}")(features[f"p{level}"])
            total = x if total is None else total + x
        return self.predictor(total)

    def upsample(self, logits: Tensor) -> Tensor:
        """Logits at stride 4 -> at input resolution (bilinear)."""
        return F.interpolate(logits.float(), scale_factor=self.STRIDE, mode="bilinear", align_corners=False)


class DeformableSemanticHead(nn.Module):
    """UPSNet's: deformable convolutions shared by p2..p5, all brought to stride 4, side by side, and one logit per class.

    Args:
        in_channels: pyramid width. channels: after each deformable convolution. num_classes: logits.
    """

    LEVELS = (2, 3, 4, 5)
    STRIDE = 4

    def __init__(self, in_channels: int, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.depth = len(channels)
        for i, (before, after) in enumerate(zip((in_channels, *channels), channels, strict=False)):
            offset = Conv2d(before, 18, 3, padding=1)
            nn.init.zeros_(offset.weight)
            nn.init.zeros_(offset.bias)
            self.add_module(f"conv{i}_offset", offset)
            self.add_module(f"conv{i}", DeformConv2d(before, after, bias=True))
        self.predictor = Conv2d(len(self.LEVELS) * channels[-1], num_classes, 1)
        msra_init(self.predictor)

    def features(self, pyramid: dict[str, Tensor]) -> Tensor:
        """{"p2": (B, C, H/4, W/4), ...} -> (B, 4 * last channels, H/4, W/4), finest level first."""
        maps = []
        for level in self.LEVELS:
            x = pyramid[f"p{level}"]
            for i in range(self.depth):
                x = getattr(self, f"conv{i}")(x, getattr(self, f"conv{i}_offset")(x))
            factor = 2**level // self.STRIDE
            if factor > 1:
                x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
            maps.append(x)
        return torch.cat(maps, dim=1)

    def forward(self, pyramid: dict[str, Tensor]) -> Tensor:
        """{"p2": (B, C, H/4, W/4), ...} -> logits (B, classes, H/4, W/4)."""
        return self.predictor(self.features(pyramid))


def resize_logits(logits: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Input-resolution logits (C, Hp, Wp) of a padded image -> (C, H, W) of the original image."""
    logits = logits[:, : size[0], : size[1]]
    return F.interpolate(logits[None], size=original, mode="bilinear", align_corners=False)[0]


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask probabilities (n, m, m) inside boxes (n, 4) xyxy -> probabilities (n, H, W), 0 outside of the boxes' reach.

    A pixel is sampled bilinearly at its centre; the map's outer half cell fades to zero.
    """
    height, width = size
    result = masks.new_zeros((len(masks), height, width))
    for i, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        x0, y0, x1, y1 = box.tolist()
        left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
        right, bottom = min(math.ceil(x1) + 1, width), min(math.ceil(y1) + 1, height)
        if right <= left or bottom <= top:
            continue
        xs = torch.arange(left, right, device=masks.device, dtype=torch.float32) + 0.5
        ys = torch.arange(top, bottom, device=masks.device, dtype=torch.float32) + 0.5
        xs = (xs - box[0]) / (box[2] - box[0]) * 2 - 1
        ys = (ys - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack([xs[None, :].expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], dim=-1)
        result[i, top:bottom, left:right] = F.grid_sample(
            mask[None, None].float(), grid[None].float(), align_corners=False
        )[0, 0]
    return result


def merge_panoptic(
    masks: Tensor,
    scores: Tensor,
    classes: Tensor,
    semantic: Tensor,
    *,
    overlap_threshold: float = 0.5,
    stuff_area_limit: int = 4096,
    score_threshold: float = 0.5,
) -> tuple[Tensor, list[dict]]:
    """One panoptic map from instances and semantic labels (Kirillov et al. 2019, section 4; detectron2's order).

    Args:
        masks: (n, H, W) bool. scores: (n,). classes: (n,) thing index. semantic: (H, W) int, 0 = any thing, 1.. = stuff.

    Returns:
        (H, W) int32 segment ids (0 = void) and the segments [{id, is_thing, category, score | area}], where `category` is the
        thing index or the semantic label.
    """
    panoptic = torch.zeros_like(semantic, dtype=torch.int32)
    segments: list[dict] = []
    # Stable: equal scores keep the detector's order on every device.
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        score = float(scores[i])
        if score < score_threshold:
            break
        mask = masks[i]
        area = int(mask.sum())
        if area == 0:
            continue
        taken = int((mask & (panoptic > 0)).sum())
        if taken / area > overlap_threshold:
            continue
        if taken:
            mask = mask & (panoptic == 0)
        segments.append({"id": len(segments) + 1, "is_thing": True, "category": int(classes[i]), "score": score})
        panoptic[mask] = len(segments)
    for label in torch.unique(semantic).tolist():
        if label == 0:
            continue
        mask = (semantic == label) & (panoptic == 0)
        area = int(mask.sum())
        if area < stuff_area_limit:
            continue
        segments.append({"id": len(segments) + 1, "is_thing": False, "category": label, "area": area})
        panoptic[mask] = len(segments)
    return panoptic, segments
