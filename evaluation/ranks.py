"""The ranks that a metrics file sums up, kept beside it: with them, systems are compared query by query and nothing is ranked again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from core.console import UserError
from core.files import atomic_path, digest_json

RANKS_VERSION = "1"
_ARRAYS = ("images", "captions", "caption_image")


@dataclass(frozen=True)
class Ranked:
    """The ranks of one system on one test set, whatever its scores come from.

    Attributes:
        images: (N,) integers, of the best caption of each image, 0 is best. captions: (M,) integers, of the image of each caption.
        caption_image: (M,) integers, each caption's image. items: digest of which images and captions these are, and of their order.
    """

    images: np.ndarray
    captions: np.ndarray
    caption_image: np.ndarray
    items: str


def items_digest(image_ids: Sequence[str], caption_ids: Sequence[str], caption_image: np.ndarray) -> str:
    """Equal for systems that were scored on the same images and captions."""
    return digest_json([list(map(str, image_ids)), list(map(str, caption_ids)), caption_image.tolist()])


def write_ranks(path: str | os.PathLike[str], ranked: Ranked) -> None:
    """Write them to `path`, atomically; equal ranks give equal bytes."""
    arrays = {name: np.ascontiguousarray(getattr(ranked, name), dtype=np.int32) for name in _ARRAYS}
    with atomic_path(path) as temporary:
        # One entry: safetensors writes several in an order of its own.
        save_file(arrays, temporary, {"ranks": json.dumps({"version": RANKS_VERSION, "items": ranked.items})})


def read_ranks(path: str | os.PathLike[str]) -> Ranked:
    """What `write_ranks` wrote.

    Raises:
        UserError: there is no such file, or it is damaged or of another version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("ranks", "{}"))
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} holds no ranks ({error}): delete it and run the evaluation again") from error
    if (version := about.get("version")) != RANKS_VERSION:
        raise UserError(
            f"{path} has ranks version {version}, this program reads {RANKS_VERSION}: run the evaluation again"
        )
    return Ranked(**arrays, items=about["items"])
