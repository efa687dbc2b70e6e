"""SCAN's score of an image and a caption: how well the items of one side are met by what they attend to on the other.

    s[q, a] = <query q, attended a>                                   queries: words (t2i) or regions (i2t)
    weights[q, :] = softmax_a(sharpness * norm_q(s))[q, :]            norm over the queries of each attended item
    score = aggregate_q cos(query q, sum_a weights[q, a] attended a)

The reference goes pair by pair, as the paper has it. The fast way never builds the weighted sums: with G the products of the
attended items with each other, <query, sum> is the weighted sum of s and |sum|^2 is weights G weights^T. So all that is
left per pair is the one product s, and everything else stays in a processor's cache. Where attended items nearly cancel, as those
of few dimensions or on one line may, |sum|^2 would be a small difference of large numbers: there, and there alone, the sum is
built. Items of one count are scored together: nothing is padded, nothing is masked. The product is of captions of several
lengths at once, as those of one length are often few; G is of a whole side, once.

Source: "Stacked cross attention for image-text matching" (SCAN), `model.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Direction = Literal["t2i", "i2t"]
Norm = Literal["clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"]
Aggregate = Literal["LogSumExp", "Mean", "Max", "Sum"]

SLOPE = 0.1  # of the leaky ReLU that the paper writes as [x]+
_EPS = 1e-8
_CANCELLED = 1e-3  # of |sum|^2, as a share of the longest attended item's: below it too few digits are left
_VALUES_AT_ONCE = 1 << 17  # attention weights of a block: half a megabyte
_WORDS_AT_ONCE = 1024  # of one matrix product
_PRODUCTS_AT_ONCE = 1 << 21  # of s, computed by one matrix product: 8 MB

NORMS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "clipped_l2norm": lambda s, queries: _unit(F.leaky_relu(s, SLOPE), queries),
    "l2norm": lambda s, queries: _unit(s, queries),
    "softmax": lambda s, queries: s.softmax(queries),
    "clipped": lambda s, queries: F.leaky_relu(s, SLOPE),
    "no_norm": lambda s, queries: s,
}
AGGREGATES: dict[str, Callable[[Tensor, int, float], Tensor]] = {
    # Without 1/n, as published: a longer caption scores higher by log(n) / sharpness.
    "LogSumExp": lambda c, queries, sharpness: (c * sharpness).logsumexp(queries) / sharpness,
    "Mean": lambda c, queries, sharpness: c.mean(queries),
    "Max": lambda c, queries, sharpness: c.amax(queries),
    "Sum": lambda c, queries, sharpness: c.sum(queries),
}


def _unit(values: Tensor, dim: int) -> Tensor:
    return values / (values.square().sum(dim, keepdim=True).clamp(min=0).sqrt() + _EPS)


def reference(
    images: Tensor,
    image_lengths: Tensor,
    captions: Tensor,
    caption_lengths: Tensor,
    *,
    direction: Direction,
    norm: Norm = "clipped_l2norm",
    aggregate: Aggregate = "LogSumExp",
    sharpness: float = 9.0,
    lse: float = 6.0,
) -> Tensor:
    """The scores of all pairs, one after the other as the formula says; arguments and result as of `pair_scores`."""
    scores = images.new_zeros(len(images), len(captions))
    for i, j in itertools.product(range(len(images)), range(len(captions))):
        regions, words = images[i, : image_lengths[i]], captions[j, : caption_lengths[j]]
        queries, attended = (words, regions) if direction == "t2i" else (regions, words)
        weights = torch.softmax(sharpness * NORMS[norm](queries @ attended.T, 0), dim=1)
        context = weights @ attended
        lengths = (queries.norm(dim=1) * context.norm(dim=1)).clamp(min=_EPS)
        scores[i, j] = AGGREGATES[aggregate]((queries * context).sum(1) / lengths, 0, lse)
    return scores


def pair_shares(
    regions: Tensor,
    words: Tensor,
    *,
    direction: Direction,
    norm: Norm,
    aggregate: Aggregate,
    sharpness: float,
    lse: float,
) -> tuple[Tensor, Tensor]:
    """Where the score of one image (R, E) and one caption (n, E) comes from; arguments as `pair_scores`.

    <query q, context q> is a sum over the attended items, so the cosines are. The mean and the sum of cosines are sums again;
    the largest is one of them; and LogSumExp is, with the weights p = softmax(lse * cosines),

        sum_q p[q] (cosine[q] - log(p[q]) / lse)

    whose second part goes to the attended items by their weights.

    Returns:
        (R, n) shares, which sum to the score, and (R, n) attention weights.
    """
    queries, attended = (words, regions) if direction == "t2i" else (regions, words)
    products = queries @ attended.T
    weights = torch.softmax(sharpness * NORMS[norm](products, 0), dim=1)
    lengths = (queries.norm(dim=1) * (weights @ attended).norm(dim=1)).clamp(min=_EPS)
    shares = weights * products / lengths[:, None]
    cosines = shares.sum(1)
    if aggregate == "LogSumExp":
        part = torch.softmax(lse * cosines, dim=0)
        shares = part[:, None] * (shares - torch.log_softmax(lse * cosines, dim=0)[:, None] / lse * weights)
    elif aggregate == "Max":
        shares = shares * F.one_hot(cosines.argmax(), len(cosines))[:, None]
    elif aggregate == "Mean":
        shares = shares / len(cosines)
    return (shares.T, weights.T) if direction == "t2i" else (shares, weights)


def pair_scores(
    images: Tensor,
    image_lengths: Tensor,
    captions: Tensor,
    caption_lengths: Tensor,
    *,
    direction: Direction,
    norm: Norm = "clipped_l2norm",
    aggregate: Aggregate = "LogSumExp",
    sharpness: float = 9.0,
    lse: float = 6.0,
) -> Tensor:
    """The scores of all pairs.

    Args:
        images: (N, R, E) floats, the first `image_lengths[i]` >= 1 of image i are its regions.
        captions: (M, T, E) floats, the first `caption_lengths[j]` >= 1 of caption j are its words.
        image_lengths, caption_lengths: (N,) and (M,) integers in host memory.
        direction: "t2i": words attend to regions; "i2t": regions attend to words.
        norm: of s over the queries, a key of `NORMS`. aggregate: over the queries, a key of `AGGREGATES`.
        sharpness: of the softmax (lambda_softmax). lse: of LogSumExp (lambda_lse).

    Returns:
        (N, M) in the embeddings' dtype.

    Raises:
        ValueError: an image without regions or a caption without words.
    """
    for what, lengths in (("image", image_lengths), ("caption", caption_lengths)):
        if len(lengths) and int(lengths.min()) < 1:
            raise ValueError(
                f"{what} {int(lengths.argmin())} has nothing to attend to; every length must be at least 1"
            )
    pairs = (_TextToImage if direction == "t2i" else _ImageToText)(NORMS[norm], AGGREGATES[aggregate], sharpness, lse)
    runs = _by_length(caption_lengths)
    words = [captions[rows.to(captions.device), :length] for length, rows in runs]
    scores: list[Tensor] = []
    image_order: list[Tensor] = []
    for count, rows in _by_length(image_lengths):
        found = pairs.scores(images[rows.to(images.device), :count], words)
        scores.append(_in_order(found, [columns for _, columns in runs], dim=1))
        image_order.append(rows)
    return _in_order(scores, image_order, dim=0) if scores and runs else images.new_zeros(len(images), len(captions))


def _by_length(lengths: Tensor) -> list[tuple[int, Tensor]]:
    """(length, (k,) the rows of that length), by rising length."""
    lengths = lengths.cpu().long()
    return [(int(length), (lengths == length).nonzero().squeeze(1)) for length in lengths.unique()]


def _blocks(runs: Sequence[Tensor], words: int) -> list[list[tuple[int, Tensor]]]:
    """The runs (C, n, E) in blocks of about so many words: (number of the run, some of its captions), in order."""
    blocks: list[list[tuple[int, Tensor]]] = []
    room = 0
    for number, run in enumerate(runs):
        for part in run.split(max(1, words // run.shape[1])):
            size = part.shape[0] * part.shape[1]
            if size > room:
                blocks.append([])
                room = max(words, size)
            blocks[-1].append((number, part))
            room -= size
    return blocks


def _in_order(parts: list[Tensor], order: list[Tensor], dim: int) -> Tensor:
    """The parts side by side, each row (or column) back in its place."""
    if len(parts) == 1:
        return parts[0]
    places = torch.cat(order).argsort()
    return torch.cat(parts, dim).index_select(dim, places.to(parts[0].device))


class _Pairs:
    """Scores of images (I, R, E) with one count of regions and runs of captions (C, n, E), each with one count of words."""

    def __init__(self, norm: Callable, aggregate: Callable, sharpness: float, lse: float) -> None:
        self.norm, self.aggregate, self.sharpness, self.lse = norm, aggregate, sharpness, lse

    def scores(self, images: Tensor, runs: Sequence[Tensor]) -> list[Tensor]:
        """(I, C) of each run."""
        number, regions, _ = images.shape
        region_norms = images.norm(dim=2)
        image_grams = images @ images.mT if isinstance(self, _TextToImage) else None
        found: list[list[Tensor]] = [[] for _ in runs]
        # Words of several lengths side by side, enough for a fast product; then in parts that stay in the cache.
        for block in _blocks(runs, _WORDS_AT_ONCE):
            words = torch.cat([part.flatten(0, 1) for _, part in block])
            grams = [part @ part.mT if image_grams is None else None for _, part in block]
            word_norms = [part.norm(dim=2) for _, part in block]
            columns: list[list[Tensor]] = [[] for _ in block]
            high = max(1, min(number, _PRODUCTS_AT_ONCE // (len(words) * regions)))
            for top in range(0, number, high):
                band = images[top : top + high]
                products = (words @ band.flatten(0, 1).T).view(len(words), len(band), regions)
                own = products.split([part.shape[0] * part.shape[1] for _, part in block])
                for i, (s, (_, part)) in enumerate(zip(own, block, strict=True)):
                    s = s.unflatten(0, part.shape[:2])
                    low = max(1, _VALUES_AT_ONCE // (part.shape[0] * part.shape[1] * regions))
                    for start in range(0, len(band), low):
                        here = slice(top + start, min(top + start + low, top + len(band)))
                        attended = grams[i] if image_grams is None else image_grams[here]
                        norms = region_norms[here] if image_grams is None else word_norms[i]
                        columns[i].append(self.block(s[:, :, start : start + low], attended, norms, images[here], part))
            for (run, _), cells in zip(block, columns, strict=True):
                found[run].append(torch.cat(cells))
        return [torch.cat(cells, dim=1) for cells in found]

    def cosines(
        self,
        inner: Tensor,
        weights: Tensor,
        squared: Tensor,
        *,
        attended: Tensor,
        grams: Tensor,
        queries: Tensor,
        norms: Tensor,
    ) -> Tensor:
        """Of every query and its weighted sum over each set of attended items.

        Args:
            inner: (S, Q) their products. weights: (S, Q, A). squared: (S, Q), of the sums' lengths.
            attended: (S, A, E). grams: (S, A, A). queries: (Q, E). norms: of them, any shape of Q.

        Returns:
            (S, Q).
        """
        near = squared < _CANCELLED * grams.diagonal(dim1=1, dim2=2).amax(1)[:, None]
        if near.any():
            inner, squared = _built(inner, weights, squared, near, attended, queries)
        # The tiny number: the root's slope at 0 is infinite.
        return inner / (norms.flatten() * squared.clamp(min=1e-30).sqrt()).clamp(min=_EPS)


def _built(
    inner: Tensor, weights: Tensor, squared: Tensor, near: Tensor, attended: Tensor, queries: Tensor
) -> tuple[Tensor, Tensor]:
    """`inner` and `squared` with those of the sums that are `near` zero, (S, Q) bool, from the sums themselves."""
    products, squares = [], []
    for number in near.any(1).nonzero().squeeze(1).tolist():
        own = near[number]
        sums = weights[number, own] @ attended[number]
        products.append((sums * queries[own]).sum(1))
        squares.append(sums.square().sum(1))
    places = near.nonzero(as_tuple=True)
    return inner.index_put(places, torch.cat(products)), squared.index_put(places, torch.cat(squares))


class _TextToImage(_Pairs):
    def block(self, s: Tensor, grams: Tensor, norms: Tensor, images: Tensor, words: Tensor) -> Tensor:
        """s (C, n, I, R), grams (I, R, R), norms of words (C, n), images (I, R, E), words (C, n, E) -> (I, C)."""
        weights = self.norm(s, 1).mul(self.sharpness).softmax(3)
        inner = (weights * s).sum(3).flatten(0, 1).T  # (I, C*n)
        flat = weights.flatten(0, 1).transpose(0, 1)  # (I, C*n, R)
        squared = ((flat @ grams) * flat).sum(2)
        queries = words.flatten(0, 1)
        found = self.cosines(inner, flat, squared, attended=images, grams=grams, queries=queries, norms=norms)
        return self.aggregate(found.unflatten(1, s.shape[:2]), 2, self.lse)


class _ImageToText(_Pairs):
    def block(self, s: Tensor, grams: Tensor, norms: Tensor, images: Tensor, words: Tensor) -> Tensor:
        """s (C, n, I, R), grams (C, n, n), norms of regions (I, R), images (I, R, E), words (C, n, E) -> (I, C)."""
        weights = self.norm(s, 3).mul(self.sharpness).softmax(1)
        inner = (weights * s).sum(1).flatten(1)  # (C, I*R)
        flat = weights.flatten(2)  # (C, n, I*R)
        squared = ((grams @ flat) * flat).sum(1)
        queries = images.flatten(0, 1)
        found = self.cosines(inner, flat.mT, squared, attended=words, grams=grams, queries=queries, norms=norms)
        return self.aggregate(found.unflatten(1, s.shape[2:]), 2, self.lse).T
