"""Panoptic segmentation as 3SHNet eats it: a 64x64 map of class ids, a 133-class presence vector, 133x7x7 features.

Conventions (COCO class order, void 255, area fractions) are recorded in the store's attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from catalog.categories import NUM_CATEGORIES, VOID
from core.console import UserError
from extractors.images import ImageBatch
from extractors.loading import NetworkExtractor, NetworkRunner
from extractors.networks.rcnn import Meta, Panoptic
from extractors.networks.upsnet import UPSNetPanoptic, UPSNetSemantic
from stores.features import GRID_SIDE, MAP_SIDE, PANOPTIC_ARRAYS

# Raise when the algorithm changes so that stored features would differ: stores made with another number are made again.
RECIPE = 3

SEG_FEATURES = ("area", "soft")
SOURCES = ("semantic", "panoptic")


def category_map(result: Panoptic | UPSNetPanoptic, meta: Meta) -> np.ndarray:
    """(H, W) uint8 category 0..132 of every pixel, 255 where the panoptic result is void."""
    lookup = np.full(len(result.segments) + 1, VOID, np.uint8)
    for segment in result.segments:
        index = segment["category"]
        lookup[segment["id"]] = (
            meta.thing_categories[index] if segment["is_thing"] else meta.stuff_categories[index - 1]
        )
    return lookup[result.segment_map.cpu().numpy()]


def map_segments(segment_map: np.ndarray, categories: Mapping[int, int]) -> np.ndarray:
    """(H, W) segment ids -> (H, W) uint8 categories; ids that are not in `categories` (id -> category) are void."""
    result = np.full(segment_map.shape, VOID, np.uint8)
    for segment, category in categories.items():
        result[segment_map == segment] = category
    return result


def nearest_map(categories: np.ndarray, side: int = MAP_SIDE) -> np.ndarray:
    """(H, W) -> (side, side): cell i is pixel floor(i * H / side), aspect ignored.

    So did the authors, by OpenCV's nearest neighbour (which at a few sizes rounds a pixel short); not the cells' centres.
    """
    height, width = categories.shape
    rows = np.arange(side) * height // side
    columns = np.arange(side) * width // side
    return categories[rows[:, None], columns[None, :]]


def category_presence(categories: np.ndarray, min_pixels: int) -> np.ndarray:
    """(133,) uint8: 1 where a category covers more than `min_pixels` pixels of the original image."""
    counts = np.bincount(categories.ravel(), minlength=256)[:NUM_CATEGORIES]
    return (counts > min_pixels).astype(np.uint8)


def area_fractions(categories: np.ndarray, side: int = GRID_SIDE) -> np.ndarray:
    """(133, side, side) float16: the share of each cell's pixels per category; cells as in adaptive average pooling.

    A cell sums to 1 less its share of void.
    """
    height, width = categories.shape
    result = np.zeros((NUM_CATEGORIES, side, side), np.float16)
    for i in range(side):
        rows = slice(i * height // side, -(-(i + 1) * height // side))
        for j in range(side):
            cell = categories[rows, j * width // side : -(-(j + 1) * width // side)]
            counts = np.bincount(cell.ravel(), minlength=256)
            result[:, i, j] = counts[:NUM_CATEGORIES] / cell.size
    return result


def soft_probabilities(result: Panoptic, meta: Meta) -> Tensor:
    """(133, H, W) float32 per-pixel probabilities that sum to at most 1.

    Stuff: the semantic branch's softmax. Things: the largest of score x mask probability over a class's instances.
    """
    height, width = result.semantic_logits.shape[1:]
    soft = result.semantic_logits.new_zeros((NUM_CATEGORIES, height, width))
    soft[list(meta.stuff_categories)] = result.semantic_logits.softmax(dim=0)[1:]
    for mask, score, thing in zip(result.mask_probabilities, result.scores, result.classes.tolist(), strict=True):
        category = meta.thing_categories[thing]
        soft[category] = torch.maximum(soft[category], mask * score)
    return soft / soft.sum(dim=0, keepdim=True).clamp(min=1.0)


def upsnet_order(meta: Meta) -> tuple[int, ...]:
    """Our category of each of UPSNet's: stuff first, then things."""
    return (*meta.stuff_categories, *meta.thing_categories)


def in_our_order(result: UPSNetSemantic, meta: Meta) -> Tensor:
    """(133, h, w) float32 of UPSNet's probabilities."""
    probabilities = result.probabilities()
    soft = probabilities.new_zeros((NUM_CATEGORIES, *probabilities.shape[1:]))
    soft[list(upsnet_order(meta))] = probabilities
    return soft


class Segments(NamedTuple):
    """What an image's rows are made of: (H, W) uint8 categories, and what gives (133, h, w) probabilities, if anything does."""

    categories: np.ndarray
    probabilities: Callable[[], Tensor] | None = None


class PanopticExtractor(NetworkExtractor):
    """Rows of the `panoptic` store for batches of images.

    Args:
        runner: its network's `panoptic(pixels, sizes, original_sizes)` gives a `Panoptic`, `UPSNetPanoptic` or `Segments` per
            image. If the last have no probabilities, it says so: `gives_probabilities = False`. Its `semantic`, if it has
            one, gives an `UPSNetSemantic`.
        seg_features: "area" (fractions of the hard map) or "soft" (probabilities).
        min_pixels: see `category_presence`.
        source: "semantic" (the best of all categories at every pixel, none void) or "panoptic" (the merge of instances and
            semantic branch). None: the first if the network can, which is most likely what the authors' arrays are.
    """

    def __init__(
        self,
        runner: NetworkRunner,
        *,
        seg_features: str = "area",
        min_pixels: int = 100,
        source: str | None = None,
    ) -> None:
        if seg_features not in SEG_FEATURES:
            raise UserError(f"unknown seg_features {seg_features!r}; choose one of {', '.join(SEG_FEATURES)}")
        if not hasattr(runner.network, "panoptic"):
            raise UserError("panoptic segmentation needs a Panoptic FPN architecture, such as scenes_panoptic")
        if seg_features == "soft" and not getattr(runner.network, "gives_probabilities", True):
            raise UserError(
                f"{type(runner.network.model).__name__} gives no probabilities; set seg_features: area, or choose a Panoptic FPN"
            )
        semantic = hasattr(runner.network, "semantic")
        if source not in (None, *SOURCES):
            raise UserError(f"unknown source {source!r}; choose one of {', '.join(SOURCES)}")
        if source == "semantic" and not semantic:
            raise UserError(
                "source: semantic needs a network whose semantic branch tells all categories apart, such as upsnet_r50; "
                f"that of {type(runner.network).__name__} does not: choose source: panoptic"
            )
        super().__init__(runner)
        self.source = source or ("semantic" if semantic else "panoptic")
        self.seg_features = seg_features
        self.min_pixels = min_pixels
        self.arrays = PANOPTIC_ARRAYS

    @property
    def attributes(self) -> dict[str, Any]:
        """What readers of the store need to know about the numbers."""
        own = {"class_order": "coco", "void": VOID, "seg_features": self.seg_features, "min_pixels": self.min_pixels}
        return own | {"source": self.source} | self.runner.attributes

    def segment(self, batch: ImageBatch) -> Iterator[Segments]:
        """Per image, upright and in its own size."""
        look = getattr(self.runner.network, self.source)
        with self.runner.autocast():
            results = look(self.runner.pixels(batch), batch.sizes, batch.original_sizes)
        meta = self.runner.network.meta
        for result in results:
            if isinstance(result, Panoptic):
                yield Segments(category_map(result, meta), partial(soft_probabilities, result, meta))
            elif isinstance(result, UPSNetPanoptic):
                yield Segments(category_map(result, meta), partial(in_our_order, result, meta))
            elif isinstance(result, UPSNetSemantic):
                order = np.array(upsnet_order(meta), np.uint8)
                yield Segments(order[result.labels.cpu().numpy()], partial(in_our_order, result, meta))
            else:
                yield result

    def __call__(self, batch: ImageBatch) -> list[dict[str, np.ndarray]]:
        """One dict of rows per image."""
        rows = []
        for categories, probabilities in self.segment(batch):
            if self.seg_features == "area":
                features = area_fractions(categories)
            else:
                pooled = F.adaptive_avg_pool2d(probabilities(), GRID_SIDE)
                features = pooled.to(torch.float16).cpu().numpy()
            rows.append(
                {
                    "seg_maps": nearest_map(categories),
                    "category_onehots": category_presence(categories, self.min_pixels),
                    "seg_features": features,
                }
            )
        return rows


EXTRACTOR = PanopticExtractor
