"""The narrow networks of the embedded scenes, whose weights are in the repository."""

from __future__ import annotations

from typing import Any

from catalog.categories import COCO_PANOPTIC
from extractors.images import InputSpec
from extractors.networks.builders import c4_rcnn, panoptic_fpn
from extractors.networks.rcnn import C4RCNN, PanopticFPN


def _scenes_vocabulary() -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    from catalog.scenes_things import COLORS, STUFFS, THINGS

    names = tuple(COCO_PANOPTIC[i].name for i in (*THINGS, *STUFFS))
    return names, tuple(COLORS), tuple(THINGS), tuple(STUFFS)


def _scenes_input(min_size: int, max_size: int) -> InputSpec:
    return InputSpec(
        min_size=min_size,
        max_size=max_size,
        channels="RGB",
        mean=(127.5, 127.5, 127.5),
        std=(64.0, 64.0, 64.0),
        divisibility=32,
    )


def scenes_regions(**overrides: Any) -> C4RCNN:
    """A quarter-width ResNet-C4 detector of the embedded scenes: things and stuff as objects, colours as attributes."""
    names, colors, _, _ = _scenes_vocabulary()
    options: dict[str, Any] = {
        "input": _scenes_input(176, 288),
        "blocks": (1, 2, 3, 1),
        "num_classes": len(names),
        "num_attributes": len(colors),
        "class_names": names,
        "attribute_names": colors,
        "stem_channels": 16,
        "res2_channels": 64,
        "width_per_group": 16,
        "stride_in_1x1": False,
        "rpn_channels": 128,
        "anchor_sizes": (20, 40, 80, 160),
        "pre_nms_top": 1000,
        "post_nms_top": 64,
        "pool_resolution": 7,
        "attribute_embedding": 32,
        "attribute_hidden": 64,
    }
    return c4_rcnn(**(options | overrides))


def scenes_grids(**overrides: Any) -> C4RCNN:
    """The same body as `scenes_regions`, larger input, trained with 1x1 regions pooled from the whole-image res5 map."""
    return scenes_regions(**({"input": _scenes_input(224, 320), "pool_from_res5": True} | overrides))


def scenes_panoptic(**overrides: Any) -> PanopticFPN:
    """A narrow Panoptic FPN of the embedded scenes."""
    _, _, things, stuffs = _scenes_vocabulary()
    options: dict[str, Any] = {
        "input": _scenes_input(176, 288),
        "blocks": (1, 2, 3, 1),
        "thing_categories": things,
        "stuff_categories": stuffs,
        "stem_channels": 16,
        "res2_channels": 64,
        "width_per_group": 16,
        "stride_in_1x1": False,
        "fpn_channels": 64,
        "box_hidden": 192,
        "mask_channels": 48,
        "semantic_channels": 48,
        "semantic_norm": "FrozenBN",
        "anchor_sizes": ((12,), (24,), (48,), (96,), (176,)),
        "pre_nms_top": 300,
        "post_nms_top": 64,
        "canonical_size": 96.0,
        "score_threshold": 0.1,
        "stuff_area_limit": 256,
    }
    return panoptic_fpn(**(options | overrides))
