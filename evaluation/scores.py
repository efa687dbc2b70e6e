"""Similarities of all pairs of a test set by one run that scores pairs (SCAN): a small Zarr group, (N, M) float32.

Where a similarity is an inner product, embeddings are kept instead and similarities made block by block
(`evaluation.embeddings`). COCO's 5,000 x 25,000 take 500 MB; they are in memory once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.console import UserError
from evaluation.embeddings import AGAIN, Embeddings, open_group, read_embeddings, read_items, write_group

SCORES_VERSION = 1
_COLUMNS_PER_CHUNK = 4096


@dataclass(frozen=True)
class PairScores:
    """Similarities of the images and captions of a test set.

    Attributes:
        similarity: (N, M) float32, rows and columns as `Embeddings` has its images and captions.
        caption_image, image_ids, caption_ids, attributes: as of `Embeddings`.
    """

    similarity: np.ndarray
    caption_image: np.ndarray
    image_ids: np.ndarray
    caption_ids: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)

    def of_images(self, rows: np.ndarray | slice) -> np.ndarray:
        """(k, M) similarities of these images with all captions."""
        return self.similarity[rows]

    def of_captions(self, rows: np.ndarray | slice) -> np.ndarray:
        """(k, N) similarities of these captions with all images."""
        return self.similarity[:, rows].T


Scored = Embeddings | PairScores


def write_scores(path: str | os.PathLike[str], scores: PairScores) -> None:
    """Write the group to `path` as `write_embeddings` does; every chunk carries a checksum."""
    floats, marks = {"similarity": scores.similarity}, {"scores_version": SCORES_VERSION}
    write_group(path, floats, scores, marks, columns=_COLUMNS_PER_CHUNK, checked=True)


def read_scores(path: str | os.PathLike[str]) -> PairScores:
    """Read and check a group written by `write_scores`.

    Raises:
        UserError: `path` is no such group, is of another version, is incomplete or damaged, or holds a NaN or infinite
            number.
    """
    group = open_group(path, "scores", SCORES_VERSION)
    try:
        items = read_items(group)
        scores = PairScores(np.asarray(group["similarity"][:]), **items)
    except KeyError as error:
        raise UserError(f"{path} lacks the array {error}: {AGAIN}") from error
    except (ValueError, RuntimeError) as error:  # a checksum
        raise UserError(f"{path} is damaged ({error}): {AGAIN}") from error
    expected = (len(scores.image_ids), len(scores.caption_ids))
    if scores.similarity.shape != expected or scores.caption_image.shape != expected[1:]:
        raise UserError(f"{path} has scores of shape {scores.similarity.shape}, its ids say {expected}: {AGAIN}")
    if not np.isfinite(scores.similarity.sum(axis=1, dtype=np.float64)).all():
        raise UserError(
            f"{path} holds scores that are not finite: the run's training has diverged or its input features hold NaN"
        )
    return scores


def read_scored(path: str | os.PathLike[str]) -> Scored:
    """The embeddings (`embeddings.zarr`) or pair scores (`scores.zarr`) at `path`."""
    return read_scores(path) if Path(path).name == "scores.zarr" else read_embeddings(path)
