"""Pictures to look at: upright, three channels of eight bits, as small as they are shown."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image, ImageOps

# The index has told which images have damaged metadata, by name; Pillow names none.
warnings.filterwarnings("ignore", module="PIL")


def load_upright(path: str, side: int | None = None) -> Image.Image:
    """An image as 8-bit RGB, turned as its EXIF orientation says; the first frame of an animation.

    Args:
        side: shrunk so that none is longer; a large JPEG is then decoded at a fraction of its size.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if side is not None:
                image.draft("RGB", (2 * side, 2 * side))
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):
                values = np.asarray(upright, dtype=np.float64)
                scale = 257.0 if values.max(initial=0) > 255 else 1.0
                upright = Image.fromarray(np.clip(values / scale, 0, 255).astype(np.uint8))
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            upright = upright.convert("RGB")
    except (SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(f"{path}: {error}") from error
    if side is not None:
        upright.thumbnail((side, side), Image.Resampling.LANCZOS)
    return upright
