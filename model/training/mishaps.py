"""What to say when training cannot go on: where it was, and what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from core.console import UserError
from model.parallel import processes

if TYPE_CHECKING:
    from model.data import Batch, TrainingPairs
    from model.training.state import Progress, SavedState

# Memory that is spent, as the allocators of torch for CPUs (on Linux and Windows) and CUDA's libraries word it.
_MEMORY_WORDS = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


@contextlib.contextmanager
def memory_explained(place: str, batch_size: int, precision: str) -> Iterator[None]:
    """Turns running out of memory, on a GPU or a CPU, into a message that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in text for words in _MEMORY_WORDS):
            raise
        bf16 = " set training.precision: bf16," if precision == "fp32" else ""
        raise UserError(
            f"out of memory in {place}: lower training.batch_size (now {batch_size}) or text.max_tokens,{bf16} train in "
            f"more processes (now {processes()}; each takes its part of the batch), or set training.preload: false "
            f"({text.partition(chr(10))[0] or type(error).__name__})"
        ) from error


def diverged(what: str, run: str, now: Progress, pairs: TrainingPairs, batch: Batch, saved: SavedState) -> UserError:
    """What to say of a loss or gradient that is not finite: where it was, and which images are to blame if any are."""
    split, images = pairs.split, np.unique(batch.images.numpy())
    found = pairs.features.rows(split.image_rows[images])
    floats = [values for values in found.values() if values.dtype.kind == "f"]
    bad = ~np.all([np.isfinite(values).reshape(len(images), -1).all(axis=1) for values in floats], axis=0)
    if bad.any():
        advice = f"The stores hold NaN or infinite features for {_some(split.image_ids[i] for i in images[bad])}: extract them again"
    else:
        advice = "The features of its images are finite: lower training.learning_rate, or use training.precision fp32"
    if saved.path.exists():
        advice += f". The last good state is kept in {saved.path.parent}"
    return UserError(
        f"run {run}: {what} at step {now.step + 1} (epoch {now.epoch + 1}, batch {now.position + 1} of {len(pairs)}: "
        f"captions {_some(split.caption_ids[i] for i in batch.captions)} of images "
        f"{_some(split.image_ids[i] for i in batch.images.tolist())}). {advice}"
    )


def _some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names of many."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
