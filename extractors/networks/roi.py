"""What happens to a proposal: pooling, the res5 and two-layer heads, class / box / attribute predictors, mask head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.networks.boxes import clip_boxes, decode_boxes, exclusive
from extractors.networks.layers import Conv2d, Linear, msra_init, normal_init, xavier_init
from extractors.networks.ops import batched_nms, roi_align, roi_pool


class RoIPooler(nn.Module):
    """Cuts fixed-size maps for boxes out of one or several feature levels.

    Args:
        resolution: side of the pooled map.
        scales: of the levels (1/stride), finest first.
        method: "align" (RoIAlign, half-pixel corrected), "align_legacy" (not corrected) or "pool" (max, RoIPool).
        sampling_ratio: samples per bin side for RoIAlign; 0 adapts to the box.
        canonical_size, canonical_level: a box of this side is read from this level (several levels only).
        inclusive: the sides that choose the level count both end pixels (UPSNet).
    """

    def __init__(
        self,
        resolution: int,
        scales: Sequence[float],
        method: str = "align",
        sampling_ratio: int = 0,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
        inclusive: bool = False,
    ) -> None:
        super().__init__()
        if method not in ("align", "align_legacy", "pool"):
            raise ValueError(f"unknown RoI pooling {method!r}; choose 'align', 'align_legacy' or 'pool'")
        self.resolution = resolution
        self.scales = tuple(scales)
        self.method = method
        self.sampling_ratio = sampling_ratio
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level
        self.inclusive = inclusive
        self.min_level = int(round(-torch.tensor(scales[0]).log2().item()))
        self.max_level = int(round(-torch.tensor(scales[-1]).log2().item()))

    def _pool(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        size = (self.resolution, self.resolution)
        # Half precision is too coarse for coordinates: pooling is done in float32, whatever the network runs in.
        dtype, feature = feature.dtype, feature.float()
        if self.method == "pool":
            return roi_pool(feature, rois, size, scale).to(dtype)
        return roi_align(feature, rois, size, scale, self.sampling_ratio, aligned=self.method == "align").to(dtype)

    @staticmethod
    def rois(boxes: Sequence[Tensor]) -> Tensor:
        """Per image boxes (P_b, 4) -> (sum P_b, 5): image number, xyxy."""
        return torch.cat([F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(boxes)])

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Levels (B, C, h, w) and per image boxes (P_b, 4) in input pixels -> (sum P_b, C, resolution, resolution)."""
        return self.pool(features, self.rois(boxes))

    def level(self, boxes: Tensor) -> Tensor:
        """(P, 4) -> (P,) int64: which of the levels, 0 the finest, each box is read from (Lin et al. 2017, equation 1)."""
        epsilon = 1e-8
        if self.inclusive:
            boxes, epsilon = exclusive(boxes), 1e-6
        side = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        level = torch.floor(self.canonical_level + torch.log2(side / self.canonical_size + epsilon))
        return level.clamp(self.min_level, self.max_level).long() - self.min_level

    def pool(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Levels (B, C, h, w) and boxes (P, 5) as from `rois` -> (P, C, resolution, resolution)."""
        if len(self.scales) == 1:
            return self._pool(features[0], rois, self.scales[0])
        level = self.level(rois[:, 1:])
        pooled = features[0].new_zeros((len(rois), features[0].shape[1], self.resolution, self.resolution))
        for i, (feature, scale) in enumerate(zip(features, self.scales, strict=True)):
            here = torch.nonzero(level == i).squeeze(1)
            if len(here):
                pooled = pooled.index_put((here,), self._pool(feature, rois[here], scale))
        return pooled


class BoxPredictor(nn.Module):
    """Class scores over C classes + background (last) and class-specific box deltas."""

    def __init__(self, in_features: int, num_classes: int, class_agnostic_boxes: bool = False) -> None:
        super().__init__()
        self.cls_score = Linear(in_features, num_classes + 1)
        self.bbox_pred = Linear(in_features, 4 if class_agnostic_boxes else num_classes * 4)
        normal_init(self.cls_score, 0.01)
        normal_init(self.bbox_pred, 0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(P, D) -> logits (P, C + 1), deltas (P, 4 C) or (P, 4)."""
        return self.cls_score(x), self.bbox_pred(x)


class AttributePredictor(nn.Module):
    """Attribute probabilities from the region feature and the embedded object class (Anderson et al. 2018).

    Args:
        in_features: D. num_classes: C without background. num_attributes: A.
        none_class: the head has a further, last logit for "no attribute": "" (it has none), "dropped" (left out of the
            softmax) or "kept" (takes its share of the softmax). Either way it is no attribute of a result.
        sees_background: the class the head is told may be the background.
    """

    NONE_CLASS = ("", "dropped", "kept")

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        num_attributes: int,
        embedding: int,
        hidden: int,
        none_class: str = "",
        sees_background: bool = False,
    ) -> None:
        super().__init__()
        if none_class not in self.NONE_CLASS:
            raise ValueError(f"unknown none_class {none_class!r}; choose one of {self.NONE_CLASS}")
        self.num_attributes = num_attributes
        self.none_class = none_class
        self.sees_background = sees_background
        self.obj_embed = nn.Embedding(num_classes + 1, embedding)
        self.fc = nn.Sequential(nn.Linear(in_features + embedding, hidden), nn.ReLU())
        self.attr_score = nn.Linear(hidden, num_attributes + bool(none_class))
        normal_init(self.attr_score, 0.01)

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Features (P, D) and class ids (P,) int -> logits (P, A), or (P, A + 1) with a none class."""
        return self.attr_score(self.fc(torch.cat([x, self.obj_embed(classes)], dim=-1)))

    def probabilities(self, x: Tensor, class_logits: Tensor) -> Tensor:
        """Features (P, D) and class logits (P, C + 1), background last -> (P, A) float32."""
        told = class_logits if self.sees_background else class_logits[:, :-1]
        logits = self(x, told.argmax(dim=1)).float()
        if self.none_class == "dropped":
            logits = logits[:, : self.num_attributes]
        return logits.softmax(dim=-1)[:, : self.num_attributes]


class BoxHead(nn.Module):
    """Two fully connected layers with ReLU over the flattened pooled map."""

    def __init__(self, channels: int, resolution: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels * resolution * resolution, hidden)
        self.fc2 = Linear(hidden, hidden)
        xavier_init(self.fc1)
        xavier_init(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """(P, C, r, r) -> (P, hidden)."""
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))


class MaskHead(nn.Module):
    """Four 3x3 convolutions, a 2x2 stride-2 transposed one, and one mask logit map per class (He et al. 2017)."""

    CONVS = 4

    def __init__(self, in_channels: int, channels: int, num_classes: int, norm: str = "") -> None:
        super().__init__()
        for i in range(1, self.CONVS + 1):
            conv = Conv2d(in_channels if i == 1 else channels, channels, 3, padding=1, norm=norm, relu=True)
            msra_init(conv)
            self.add_module(f"mask_fcn{i}", conv)
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, num_classes, 1)
        msra_init(self.deconv)
        normal_init(self.predictor, 0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(P, C, r, r) -> logits (P, classes, 2r, 2r)."""
        for i in range(1, self.CONVS + 1):
            x = getattr(self, f"mask_fcn{i}")(x)
        return self.predictor(F.relu(self.deconv(x)))


class Res5RoIHeads(nn.Module):
    """C4 heads: pool from res4, run res5 on each pooled map, average over space, predict.

    Args:
        res5: the stage. pooler: from res4. features: D, channels of res5.
        pool_from_res5: run res5 once on the whole image and pool from its map instead.
        num_classes: C without background. attribute_predictor: or None.
        box_weights: scales of the regression code.
    """

    # Pooled maps that go through res5 at a time: bounds memory, whatever the batch and the number of proposals.
    CHUNK = 1024

    def __init__(
        self,
        *,
        res5: nn.Sequential,
        pooler: RoIPooler,
        features: int,
        num_classes: int,
        pool_from_res5: bool = False,
        attribute_predictor: AttributePredictor | None = None,
        box_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    ) -> None:
        super().__init__()
        self.res5 = res5
        self.pooler = pooler
        self.pool_from_res5 = pool_from_res5
        self.num_classes = num_classes
        self.box_weights = tuple(box_weights)
        self.box_predictor = BoxPredictor(features, num_classes)
        self.attribute_predictor = attribute_predictor

    def region_features(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """The res4 map [(B, C, h, w)] and per image boxes (P_b, 4) -> features (sum P_b, D)."""
        if self.pool_from_res5:
            return self.pooler([self.res5(features[0])], boxes).mean(dim=(2, 3))
        rois = self.pooler.rois(boxes)
        parts = [self.res5(self.pooler.pool(features, part)).mean(dim=(2, 3)) for part in rois.split(self.CHUNK)]
        return torch.cat(parts)


class StandardRoIHeads(nn.Module):
    """Two-layer box head and, if asked for, a mask head, on one or several feature levels.

    Args:
        box_pooler, mask_pooler: over the levels. channels: of a level. hidden: D, of the box head.
        attribute_predictor: or None.
        num_classes: without background. mask_channels: 0 for no mask head.
        score_threshold, nms_threshold, detections: what is kept as final detections.
    """

    def __init__(
        self,
        *,
        box_pooler: RoIPooler,
        mask_pooler: RoIPooler | None,
        channels: int,
        hidden: int,
        num_classes: int,
        mask_channels: int = 256,
        mask_norm: str = "",
        box_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
        attribute_predictor: AttributePredictor | None = None,
    ) -> None:
        super().__init__()
        self.box_pooler = box_pooler
        self.mask_pooler = mask_pooler
        self.box_head = BoxHead(channels, box_pooler.resolution, hidden)
        self.box_predictor = BoxPredictor(hidden, num_classes)
        self.attribute_predictor = attribute_predictor
        self.mask_head = MaskHead(channels, mask_channels, num_classes, mask_norm) if mask_pooler is not None else None
        self.num_classes = num_classes
        self.box_weights = tuple(box_weights)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections = detections

    def region_features(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Levels (B, C, h, w) and per image boxes (P_b, 4) -> features (sum P_b, D)."""
        return self.box_head(self.box_pooler(features, boxes))

    def detect(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Pyramid p2..p5, per image proposals (P, 4) -> per image boxes (n, 4), scores (n,), classes (n,), best first."""
        logits, deltas = self.box_predictor(self.region_features(features, proposals))
        counts = [len(p) for p in proposals]
        result = []
        for image_logits, image_deltas, boxes, size in zip(
            logits.split(counts), deltas.split(counts), proposals, sizes, strict=True
        ):
            scores = F.softmax(image_logits.float(), dim=-1)
            regressed = decode_boxes(image_deltas, boxes, self.box_weights)
            result.append(
                select_detections(regressed, scores, size, self.score_threshold, self.nms_threshold, self.detections)[
                    :3
                ]
            )
        return result

    def masks(self, features: Sequence[Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> list[Tensor]:
        """Per image mask probabilities (n, 28, 28) of each box's own class."""
        return [logits.sigmoid() for logits in self.mask_logits(features, boxes, classes)]

    def mask_logits(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> list[Tensor]:
        """Per image mask logits (n, 28, 28) of each box's own class."""
        counts = [len(b) for b in boxes]
        if sum(counts) == 0:
            side = 2 * self.mask_pooler.resolution
            return [features[0].new_zeros((0, side, side)) for _ in counts]
        logits = self.mask_head(self.mask_pooler(features, boxes))
        own = logits[torch.arange(len(logits), device=logits.device), torch.cat(list(classes))]
        return list(own.float().split(counts))


class CascadeRoIHeads(StandardRoIHeads):
    """Three box heads in turn, each on the boxes of the one before, none told the class (Cai and Vasconcelos 2018).

    Scores are the means of the three; boxes are the last's. Arguments as of `StandardRoIHeads`.
    """

    BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))

    def __init__(self, *, channels: int, hidden: int, num_classes: int, **options: Any) -> None:
        super().__init__(channels=channels, hidden=hidden, num_classes=num_classes, **options)
        resolution = self.box_pooler.resolution
        self.box_head = nn.ModuleList(BoxHead(channels, resolution, hidden) for _ in self.BOX_WEIGHTS)
        self.box_predictor = nn.ModuleList(
            BoxPredictor(hidden, num_classes, class_agnostic_boxes=True) for _ in self.BOX_WEIGHTS
        )

    def detect(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """As `StandardRoIHeads.detect`."""
        counts = [len(p) for p in proposals]
        boxes, total = list(proposals), None
        for head, predictor, weights in zip(self.box_head, self.box_predictor, self.BOX_WEIGHTS, strict=True):
            # The last boxes are clipped with the choice of detections.
            boxes = [clip_boxes(b, size) for b, size in zip(boxes, sizes, strict=True)]
            logits, deltas = predictor(head(self.box_pooler(features, boxes)))
            scores = F.softmax(logits.float(), dim=-1)
            total = scores if total is None else total + scores
            boxes = [decode_boxes(d, b, weights) for d, b in zip(deltas.split(counts), boxes, strict=True)]
        scores = (total * (1.0 / len(self.box_head))).split(counts)
        return [
            select_detections(b, s, size, self.score_threshold, self.nms_threshold, self.detections)[:3]
            for b, s, size in zip(boxes, scores, sizes, strict=True)
        ]


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    score_threshold: float,
    nms_threshold: float,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-class suppression of one image's regressed boxes.

    Args:
        boxes: (P, 4 C) or (P, 4) xyxy. scores: (P, C + 1), background last. size: (height, width) to clip to.

    Returns:
        boxes (n, 4), scores (n,), classes (n,) and source proposal (n,), best first, n <= limit.
    """
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    boxes, scores = boxes[finite], scores[finite]
    scores = scores[:, :-1]
    per_class = boxes.shape[1] // 4
    boxes = clip_boxes(boxes.reshape(-1, 4), size).view(-1, per_class, 4)
    rows, classes = torch.nonzero(scores > score_threshold, as_tuple=True)
    boxes = boxes[rows, classes if per_class > 1 else torch.zeros_like(classes)]
    values = scores[rows, classes]
    keep = batched_nms(boxes, values, classes, nms_threshold)[:limit]
    source = torch.nonzero(finite).squeeze(1)[rows[keep]]
    return boxes[keep], values[keep], classes[keep], source
