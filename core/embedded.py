"""The detectors in weights/: trained on what the embedded renderer draws, and on nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from core.files import digest_file

SOURCE = "scenes"  # of the datasets that the renderer draws
_WEIGHTS = Path(__file__).parent.parent / "weights"


def knows_drawings_only(weights_digest: str | None) -> bool:
    """Whether features were made by weights with this digest that have seen drawings alone."""
    return weights_digest in _digests()


@functools.cache
def _digests() -> frozenset[str]:
    return frozenset(digest_file(path) for path in _WEIGHTS.glob("scenes_*.safetensors"))


def is_ours(weights: str | None) -> bool:
    """Whether a path leads to such weights."""
    return weights is not None and Path(weights).resolve().parent == _WEIGHTS.resolve()


def warning(dataset: str, features: Iterable[str]) -> str:
    """What to say where such weights made features of another dataset."""
    *others, last = features
    named = f"{', '.join(others)} and {last}" if others else last
    return (
        f"The {named} of {dataset} were made by the embedded detectors, which have seen nothing but the "
        "renderer's drawings. On photographs the names of their classes mean nothing and scores stay far below what is "
        "published; docs/detectors.md says how to take detectors for photographs."
    )
