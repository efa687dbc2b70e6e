"""Bootstrap confidence intervals of retrieval metrics, from per-query ranks or values.

Images are drawn with replacement, each with all its captions, as queries of one image are not independent. The gallery
stays whole, so a query's rank is computed once and a resample is a weighted mean: intervals cost no second ranking. They
tell how far the metrics would move with other queries, not with another training.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from core.scores import CUTOFFS, RECALLS

LEVEL = 0.95
RESAMPLES = 1000
_WEIGHTS_AT_ONCE = 1 << 22  # numbers held at a time


def resample_ranks(
    ranks: np.ndarray, image: np.ndarray, images: int, *, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Resampled `model.ranking.recalls`.

    Args:
        ranks: (Q,) integers, 0 is best. image: (Q,) integers, the image that each query belongs to, in 0..images-1.
        images: how many images are drawn each time. resamples, seed: equal ones draw the same images, so that samples
            of several calls belong together and may be added.

    Returns:
        `{r1, r5, r10, medr, meanr}`, each (resamples,) float64; NaN where a resample has no query at all.
    """
    ranks, image = np.asarray(ranks), np.asarray(image)
    values = np.stack([*(100.0 * (ranks < k) for k in CUTOFFS), ranks + 1.0], axis=1)
    means = resample_means(values, image, images, resamples=resamples, seed=seed)
    order = np.argsort(ranks, kind="stable")
    ascending, owner = ranks[order], image[order]
    medians = []
    for weights in _weights(images, resamples, seed, width=max(images, len(ranks))):
        # Of n queries the median lies between the places (n-1)//2 and n//2.
        places = np.cumsum(weights[:, owner], axis=1)
        total = places[:, -1]
        middle = [
            ascending[np.minimum((places <= place[:, None]).sum(axis=1), len(ascending) - 1)]
            for place in ((total - 1) // 2, total // 2)
        ]
        medians.append(np.where(total > 0, np.floor((middle[0] + middle[1]) / 2) + 1, np.nan))
    return {name: means[:, k] for k, name in enumerate(RECALLS)} | {
        "medr": np.concatenate(medians),
        "meanr": means[:, len(RECALLS)],
    }


def resample_means(values: np.ndarray, image: np.ndarray, images: int, *, resamples: int, seed: int) -> np.ndarray:
    """(resamples, C) float64: means of the columns of `values` (Q, C) over resampled images; arguments as above."""
    sums = np.zeros((images, values.shape[1] + 1))
    np.add.at(sums, np.asarray(image), np.column_stack([values, np.ones(len(values))]))
    drawn = np.concatenate([weights @ sums for weights in _weights(images, resamples, seed, width=images)])
    with np.errstate(invalid="ignore"):
        return drawn[:, :-1] / drawn[:, -1:]


def interval(samples: np.ndarray) -> list[float]:
    """The percentile interval `[low, high]` at `LEVEL`, resamples without a query left out."""
    low, high = np.nanquantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def _weights(images: int, resamples: int, seed: int, *, width: int) -> Iterator[np.ndarray]:
    """(up to resamples, images) integers per block: how often each image is drawn. Blocks do not change the draws."""
    generator = np.random.default_rng(seed)
    step = max(1, _WEIGHTS_AT_ONCE // max(1, width))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, images, (count, images))
        drawn += np.arange(count)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images)
