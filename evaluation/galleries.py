"""Images against captions, whatever their similarities come from: inner products of embeddings, or scores of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from evaluation.scores import PairScores, Scored
from model.ranking import ranks_from_embeddings, ranks_from_similarity

Ranks = tuple[np.ndarray, np.ndarray]  # of images (N,) and of captions (M,), see `model.ranking`


class Gallery(Protocol):
    """N images and M captions."""

    def __len__(self) -> int:
        """N."""

    def part(self, images: Any, captions: Any) -> Gallery:
        """Some rows of both."""

    def ranks(self, owner: np.ndarray) -> Ranks:
        """Ranks in both directions; `owner` (M,) is the image of each caption."""

    def moved_ranks(self, order: np.ndarray, owner: np.ndarray) -> Ranks:
        """Ranks after image `order[i]` has taken the place of image i; those of the images come in any order."""


@dataclass(frozen=True)
class Vectors:
    """Embeddings (N, E) and (M, E); similarities are compared block by block and never held together."""

    images: np.ndarray
    captions: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def part(self, images: Any, captions: Any) -> Vectors:
        return Vectors(self.images[images], self.captions[captions])

    def ranks(self, owner: np.ndarray) -> Ranks:
        return ranks_from_embeddings(self.images, self.captions, owner)

    def moved_ranks(self, order: np.ndarray, owner: np.ndarray) -> Ranks:
        return ranks_from_embeddings(self.images[order], self.captions, owner)


@dataclass(frozen=True)
class Matrix:
    """Similarities (N, M)."""

    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.similarity)

    def part(self, images: Any, captions: Any) -> Matrix:
        return Matrix(self.similarity[images][:, captions])

    def ranks(self, owner: np.ndarray) -> Ranks:
        return ranks_from_similarity(self.similarity, owner)

    def moved_ranks(self, order: np.ndarray, owner: np.ndarray) -> Ranks:
        return ranks_from_similarity(self.similarity, order[owner])  # a matrix stays where it is


def gallery_of(scored: Scored) -> Gallery:
    """All images and captions of a test set."""
    if isinstance(scored, PairScores):
        return Matrix(scored.similarity)
    return Vectors(scored.images, scored.captions)
