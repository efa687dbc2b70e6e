"""What the parts of an image contribute to a similarity, painted over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from core.console import UserError
from core.files import atomic_path

if TYPE_CHECKING:
    from PIL import Image

SIDE = 56  # cells of a heat map a side: a multiple of the 7 x 7 cells of grids and segmentations
FOR, AGAINST = (235, 88, 20), (32, 96, 210)  # colours of what speaks for the match and against it
_STRONGEST = 0.62  # opacity where most is contributed
_LISTED = 5  # regions with a frame
_PICTURE = 640  # longer side of a drawn picture, in pixels


class Explanation(Protocol):
    """What is needed of a `model.explain.Explanation`."""

    score: float
    words: tuple[str, ...]
    kinds: tuple[str, ...]
    shares: np.ndarray
    places: np.ndarray


def heat(explanation: Explanation, side: int = SIDE) -> np.ndarray:
    """(side, side) float64: each part's share spread evenly over its place, so that it sums to all shares that have a place."""
    edges = np.arange(side + 1) / side
    total = np.zeros((side, side))
    for place, share in zip(explanation.places, explanation.shares.sum(1), strict=True):
        if not np.isfinite(place).all():
            continue
        x, y = (_covered(edges, *place[axis::2]) for axis in (0, 1))
        total += share * y[:, None] * x
    return total


def _covered(edges: np.ndarray, low: float, high: float) -> np.ndarray:
    """How an interval is shared out among those between the edges: sums to 1."""
    parts = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None)
    if parts.sum() <= 0:  # an empty box: all in the one place where it lies
        parts = np.zeros(len(edges) - 1)
        parts[min(int(low * (len(edges) - 1)), len(parts) - 1)] = 1
    return parts / parts.sum()


def layer(values: np.ndarray, strongest: float | None = None) -> Image.Image:
    """A heat map as a transparent RGBA picture of its size: orange speaks for the match, blue against it.

    Args:
        values: (H, W). strongest: what is painted most; None: the largest there is. Give maps that are compared the same.
    """
    from PIL import Image

    strongest = strongest or float(np.abs(values).max()) or 1.0
    pixels = np.zeros((*values.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(values[..., None] >= 0, FOR, AGAINST)
    pixels[..., 3] = np.round(255 * _STRONGEST * np.clip(np.abs(values) / strongest, 0, 1))
    return Image.fromarray(pixels, "RGBA")


def strongest_parts(explanation: Explanation, count: int = _LISTED) -> list[int]:
    """Numbers of the regions or cells that contribute most, the largest share first; those without a place left out."""
    shares = explanation.shares.sum(1)
    visual = [
        number
        for number, kind in enumerate(explanation.kinds)
        if kind in ("region", "cell") and np.isfinite(explanation.places[number]).all()
    ]
    return sorted(visual, key=lambda number: -shares[number])[:count]


def part_name(classes: Sequence[int] | np.ndarray | None, number: int, names: Sequence[str]) -> str:
    """What a part is called by the number of its class, "" where that is not known."""
    known = classes is not None and number < len(classes) and 0 <= classes[number] < len(names)
    return plain_name(names[classes[number]]) if known else ""


def plain_name(name: str) -> str:
    """A category's name for readers: COCO's endings `-merged`, `-other` and `-stuff` say nothing to them."""
    for ending in ("-merged", "-stuff", "-other"):
        name = name.removesuffix(ending)
    return name


def answered(explanation: Explanation, number: int, count: int = 3) -> list[str]:
    """Words that a part speaks for most, each once; without punctuation and what text encoders add, such as [CLS]."""
    own = sorted(zip(explanation.shares[number], explanation.words, strict=True), reverse=True)
    return list(dict.fromkeys(word for share, word in own if share > 0 and word[:1].isalnum()))[:count]


def short(word: str, most: int = 30) -> str:
    """A word as it is shown; what somebody typed may be of any length."""
    return word if len(word) <= most else f"{word[:most]}..."


def draw(explanation: Explanation, image: str, output: str | Path) -> None:
    """Write a PNG: the image with its heat map, the strongest regions framed, the words beneath, coloured by their shares.

    Args:
        image: file of the upright image, or one with an orientation tag.

    Raises:
        UserError: the file cannot be read.
    """
    from PIL import Image, ImageDraw, ImageFont

    from core.pictures import load_upright

    try:
        picture = load_upright(image)
    except OSError as error:
        reason = error.strerror or "no image file"
        raise UserError(
            f"{image}: the image cannot be read ({reason}); where its path is relative, start in the folder of the workflow, or "
            "leave the picture out"
        ) from error
    factor = _PICTURE / max(picture.size)
    picture = picture.resize([max(1, round(s * factor)) for s in picture.size], Image.Resampling.LANCZOS)
    painted = layer(heat(explanation)).resize(picture.size, Image.Resampling.BICUBIC)
    picture = Image.alpha_composite(picture.convert("RGBA"), painted).convert("RGB")
    width, height = picture.size
    pen = ImageDraw.Draw(picture)
    shares = explanation.shares.sum(1)
    font = ImageFont.load_default(15)
    for place, number in reversed(list(enumerate(strongest_parts(explanation), 1))):
        x0, y0, x1, y1 = explanation.places[number] * (width, height, width, height)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline="white", width=2)
        text = f"{place}: {shares[number]:+.3f}"
        pen.rectangle(pen.textbbox((x0 + 4, y0 + 3), text, font=font), fill=(0, 0, 0))
        pen.text((x0 + 4, y0 + 3), text, fill="white", font=font)
    page = _with_words(picture, explanation, font)
    with atomic_path(output) as temporary:
        page.save(temporary, "PNG")


def _with_words(picture: Image.Image, explanation: Explanation, font: object) -> Image.Image:
    from PIL import Image, ImageDraw

    shares = explanation.shares.sum(0)
    strongest = float(np.abs(shares).max()) or 1.0
    words = [f"{short(word)} {share:+.3f}" for word, share in zip(explanation.words, shares, strict=True)]
    words = [f"similarity {explanation.score:.4f} =", *words]
    lines, x, y = [], 10, 8
    measure = ImageDraw.Draw(picture)
    for number, word in enumerate(words):
        wide = measure.textlength(word, font=font) + 16
        if x > 10 and x + wide > picture.width - 10:
            x, y = 10, y + 28
        lines.append((x, y, wide, word, number - 1))
        x += wide + 6
    page = Image.new("RGB", (picture.width, picture.height + y + 34), "white")
    page.paste(picture)
    pen = ImageDraw.Draw(page)
    for x, y, wide, word, number in lines:
        top = picture.height + y
        if number >= 0:
            colour, part = (FOR if shares[number] >= 0 else AGAINST), min(1.0, abs(shares[number]) / strongest)
            tint = tuple(round(255 - part * 0.45 * (255 - channel)) for channel in colour)
            pen.rounded_rectangle((x, top, x + wide, top + 22), 6, fill=tint)
        pen.text((x + 8, top + 2), word, fill="black", font=font)
    return page
