"""How the page paints why an image and a sentence match, from what `reporting.why` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.overlay import layer, part_name
from reporting.pictures import data_uri

SIDE = 28  # cells of a heat map a side


def pair(caption_id: str, image_id: str) -> str:
    """The key of a caption and an image."""
    return f"{caption_id}\n{image_id}"


def overlay(told: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> dict[str, Any]:
    """What the page paints over an image: the mean of what a system's runs say; frames and words of the first.

    Args:
        names: of the regions' classes.

    Returns:
        `png` (a data address), `frames` (x, y, width, height from 0 to 1, text, called, answers: the words that speak for it), `words` (text, share, level from -4 to 4).
    """
    values = np.mean([np.array(one["heat"].split(), float) for one in told], axis=0).reshape(SIDE, SIDE)
    picture = layer(values, float(np.quantile(np.abs(values), 0.98)) or None).quantize(32)
    frames = []
    for frame in told[0]["frames"]:
        x0, y0, x1, y1 = frame["place"]
        called = part_name([frame.get("class", -1)], 0, names)
        text = f"{called + ' ' if called else ''}{frame['share']:+.3f}: {frame['said']}"
        frames.append({"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "text": text})
        frames[-1] |= {"called": called or frame.get("kind", "region"), "answers": frame.get("answers", ())}
    spelt = [word for word, _ in told[0]["words"]]
    same = [one for one in told if [word for word, _ in one["words"]] == spelt]
    shares = np.mean([[share for _, share in one["words"]] for one in same], axis=0)
    most = float(np.abs(shares).max(initial=0)) or 1.0
    words = [(name, float(share), round(4 * float(share) / most)) for name, share in zip(spelt, shares, strict=True)]
    return {"png": data_uri(picture, "PNG", optimize=True), "frames": frames, "words": words}
