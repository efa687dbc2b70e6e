"""Photographs for the tests of decoding and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from extractors.images import InputSpec

PHOTOS = [Path(skimage.data.__file__).parent / name for name in ("astronaut.png", "chelsea.png", "rocket.jpg")]
SPEC = InputSpec(32, 48, "RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1)


def by_pillow(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def saved(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    """`path`, written in the format of its suffix."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of the absolute differences."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())
