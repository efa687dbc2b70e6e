"""Whether one system beats another: a paired bootstrap over the images of a test set.

Both systems are scored on the same resamples of the images (`evaluation.bootstrap`), so what makes an image hard for both drops out
of their difference, whose interval is narrower than the systems' own intervals suggest. Like those it tells how far the difference
would move with other images, not with another training. All systems are resampled at once: one pass over the draws, however many
pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from core.scores import CUTOFFS, RECALLS, SUMMED
from evaluation.bootstrap import RESAMPLES, interval, resample_means
from evaluation.ranks import Ranked

_SUMMED_CUTOFFS = [k for k, name in zip(CUTOFFS, RECALLS, strict=True) if name in SUMMED]


@dataclass(frozen=True)
class Difference:
    """By how much the rSum of `better` exceeds that of `other` on the same images, and the bounds of its interval."""

    better: str
    other: str
    rsum: float
    low: float
    high: float

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0


def compare(systems: Mapping[str, Ranked], *, resamples: int = RESAMPLES, seed: int = 0) -> list[Difference]:
    """Every pair of systems that were scored on the same images and captions, in the order of `systems`.

    Args:
        systems: by name. resamples, seed: of the images; those of the metrics' own intervals.
    """
    found = []
    for items in dict.fromkeys(ranked.items for ranked in systems.values()):
        group = {name: ranked for name, ranked in systems.items() if ranked.items == items}
        if len(group) < 2:
            continue
        observed, drawn = _resampled(list(group.values()), resamples, seed)
        for one, two in combinations(range(len(group)), 2):
            if observed[two] > observed[one]:
                one, two = two, one
            low, high = interval(drawn[:, one] - drawn[:, two])
            names = list(group)
            found.append(Difference(names[one], names[two], float(observed[one] - observed[two]), low, high))
    return found


def _resampled(group: list[Ranked], resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """rSums (S,) of S systems, and resampled ones (resamples, S): every system's on the same draws."""
    first = group[0]
    observed, drawn = np.zeros(len(group)), np.zeros((resamples, len(group)))
    for ranks, image in (
        ([ranked.images for ranked in group], np.arange(len(first.images))),
        ([ranked.captions for ranked in group], first.caption_image),
    ):
        hits = np.stack([sum(100.0 * (own < k) for k in _SUMMED_CUTOFFS) for own in ranks], axis=1)
        observed += hits.mean(axis=0)
        # One seed for both directions: an image is drawn together with its captions.
        drawn += resample_means(hits, image, len(first.images), resamples=resamples, seed=seed)
    return observed, drawn
