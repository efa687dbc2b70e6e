"""Images for the report: small JPEGs, panoptic maps and region boxes, each stored once and referred to by its key."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from catalog.categories import COCO_PANOPTIC
from catalog.index import Index
from core.overlay import plain_name
from core.pictures import load_upright
from reporting.words import shorten

# Side in pixels and JPEG quality, tried in turn until the report's images fit their budget.
LADDER = ((240, 80), (200, 72), (160, 66), (112, 58))


@dataclass(frozen=True)
class Box:
    """A region in pixels of the upright image; `label` may be empty."""

    x: float
    y: float
    width: float
    height: float
    label: str
    score: float


@dataclass(frozen=True)
class Area:
    """One category of a panoptic map: its name, its colour (#rrggbb) and the share of the map it covers, in %."""

    name: str
    colour: str
    share: float


@dataclass
class Picture:
    """One image of the report. `jpeg` and `map_png` are data addresses; `jpeg` is empty for an unreadable image."""

    key: str
    path: str
    image_id: str
    alt: str
    width: int
    height: int
    boxes: Sequence[Box] = ()
    areas: Sequence[Area] = ()
    map_png: str = ""
    jpeg: str = field(default="")


def data_uri(image: Image.Image, kind: str, **options: object) -> str:
    """`image` encoded as `kind` (JPEG or PNG) in a data address."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def jpeg_uri(image: Image.Image, side: int, quality: int) -> str:
    """`image` shrunk to at most `side` pixels and encoded as JPEG in a data address."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(small, "JPEG", quality=quality, optimize=True)


# What fills most images looks like itself; all others are as unlike these and each other as can be.
_NATURAL = {
    "sky-other-merged": "#5aa9e6",
    "sea": "#14539a",
    "grass-merged": "#7bc043",
    "tree-merged": "#1f6b3a",
    "mountain-merged": "#8d6346",
    "sand": "#e6c569",
    "road": "#77798a",
    "snow": "#d5e9f2",
    "person": "#e4342f",
}


@functools.cache
def _colours() -> tuple[tuple[int, int, int], ...]:
    natural = {name: tuple(bytes.fromhex(colour[1:])) for name, colour in _NATURAL.items()}
    levels = np.arange(24, 256, 21)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(candidates / 255)
    # Neither so dark nor so pale that a half-transparent layer only shades the photo, and no grey.
    usable = (lab[:, 0] > 30) & (lab[:, 0] < 85) & (np.hypot(lab[:, 1], lab[:, 2]) > 25)
    candidates, lab = candidates[usable], lab[usable]
    taken = _lab(np.array(list(natural.values())) / 255)
    distance = ((lab[:, None] - taken[None]) ** 2).sum(axis=-1).min(axis=1)
    colours = []
    for category in COCO_PANOPTIC:
        if category.name in natural:
            colours.append(natural[category.name])
            continue
        chosen = int(np.argmax(distance))
        colours.append(tuple(int(level) for level in candidates[chosen]))
        distance = np.minimum(distance, ((lab - lab[chosen]) ** 2).sum(axis=1))
    return tuple(colours)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """(n, 3) sRGB in 0..1 -> CIELAB (D65), in which equal distances look about equally different."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def category_colour(index: int) -> tuple[int, int, int]:
    """A fixed RGB colour per panoptic category; no two are equal."""
    return _colours()[index]


def panoptic_overlay(seg_map: np.ndarray) -> tuple[str, list[Area]]:
    """A panoptic map as a palette PNG (void is transparent) and its categories, largest first.

    Args:
        seg_map: (64, 64) uint8 category ids, 255 void.

    Returns:
        the data address and the areas; ("", []) where all is void.
    """
    values, inverse, counts = np.unique(seg_map, return_inverse=True, return_counts=True)
    known = values < len(COCO_PANOPTIC)
    if not known.any():
        return "", []
    colours = [category_colour(int(value)) if ok else (0, 0, 0) for value, ok in zip(values, known, strict=True)]
    image = Image.fromarray(inverse.reshape(seg_map.shape).astype(np.uint8), "P")
    image.putpalette([channel for colour in colours for channel in colour])
    options = {"transparency": bytes(255 if ok else 0 for ok in known)}
    areas = [
        Area(plain_name(COCO_PANOPTIC[int(value)].name), "#" + bytes(colour).hex(), 100 * int(count) / seg_map.size)
        for value, count, colour, ok in zip(values, counts, colours, known, strict=True)
        if ok
    ]
    return data_uri(image, "PNG", optimize=True, **options), sorted(areas, key=lambda area: -area.share)


def top_boxes(
    boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, class_names: Sequence[str], limit: int = 10
) -> list[Box]:
    """The `limit` regions of highest score.

    Args:
        boxes: (n, 4) float xyxy. scores: (n,). class_ids: (n,) int. class_names: may be empty or too short.
    """
    chosen = []
    for row in np.argsort(-scores, kind="stable")[:limit]:
        x0, y0, x1, y1 = (float(value) for value in boxes[row])
        label = plain_name(str(class_names[class_ids[row]])) if 0 <= class_ids[row] < len(class_names) else ""
        chosen.append(Box(x0, y0, max(x1 - x0, 0.0), max(y1 - y0, 0.0), label, float(scores[row])))
    return chosen


def encode_pictures(pictures: Sequence[Picture], budget: int) -> tuple[int, int]:
    """Fill in `jpeg` of all pictures, as large as the budget allows.

    Args:
        budget: bytes of the encoded pictures together.

    Returns:
        (side, quality) that were used. An unreadable file leaves `jpeg` empty.
    """
    originals = {}
    for picture in pictures:
        try:
            image = load_upright(picture.path)
            image.thumbnail((LADDER[0][0], LADDER[0][0]), Image.Resampling.LANCZOS)
            originals[picture.key] = image
        except OSError:
            picture.jpeg = ""
    for side, quality in LADDER:
        total = 0
        for picture in pictures:
            if picture.key in originals:
                picture.jpeg = jpeg_uri(originals[picture.key], side, quality)
                total += len(picture.jpeg)
        if total <= budget:
            break
    return side, quality


def indexed_pictures(index: Index, rows: np.ndarray, prefix: str) -> list[Picture]:
    """Pictures (not yet encoded) of the given rows of the index, described by their first caption."""
    images = index.images.take(pa.array(rows, pa.int64())).to_pylist()
    ids = pa.array([image["image_id"] for image in images], pa.string())
    captions = index.captions.filter(pc.is_in(index.captions["image_id"], value_set=ids))
    first: dict[str, str] = {}
    for image_id, text in zip(captions["image_id"].to_pylist(), captions["text"].to_pylist(), strict=True):
        first.setdefault(image_id, text)
    return [
        Picture(
            key=f"{prefix}{number}",
            path=image["path"],
            image_id=image["image_id"],
            alt=shorten(first.get(image["image_id"], f"image {image['image_id']}"), 200),
            width=max(1, image["width"] or 1),
            height=max(1, image["height"] or 1),
        )
        for number, image in enumerate(images)
    ]
