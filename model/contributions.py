"""The similarity of an image and a sentence as a sum over what the two were pooled from.

A pooled embedding is a sum, feature by feature, over the vectors of a set (`model.pooling`), and the similarity an inner
product of two of them. So with the shares C[p] of the image's vectors and D[w] of the sentence's, each summing to its embedding,

    similarity = sum over p and w of C[p] . D[w]

is no estimate. A network of another kind says by a function of its own, registered with `split`, how its score comes about.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from core.console import UserError
from model.kernels.cross_attention import pair_shares
from model.layers import at_least_single
from model.network import RetrievalNetwork
from model.scan import SCAN
from model.three_shnet import ThreeSHNet


@dataclass(frozen=True)
class Split:
    """Shares of B pairs over T tokens of their sentences; what a network does not have is None.

    Attributes:
        visual: (B, K, T) of regions or cells. highlighted: (B, K, T), the part of `visual` that comes through highlighting.
        category: (B, 1, T). segments: (B, S, T). gates: (B, K). attention: (B, K, H, W).
        attended: (B, K, T), weights of words attending to regions, or of regions to words.
    """

    visual: Tensor
    highlighted: Tensor | None = None
    category: Tensor | None = None
    segments: Tensor | None = None
    gates: Tensor | None = None
    attention: Tensor | None = None
    attended: Tensor | None = None


@functools.singledispatch
def split(network: RetrievalNetwork, image: Sequence[Tensor], text: Sequence[Tensor]) -> Split:
    """The similarities of B pairs, each split over its parts.

    This is for networks that pool their visual tokens, and the sentence's, once; another kind registers its own.

    Args:
        network: in eval mode. image: the arguments of its `encode_images`. text: those of its `encode_captions`, as many.

    Raises:
        UserError: the network comes to its score in a way that nothing is registered for.
    """
    if any(getattr(side, "pool", None) is None for side in (network.image, network.text)):
        raise UserError(
            f"{type(network).__name__} does not pool both sides, so its similarity cannot be split this way; register a "
            "function for it with model.explain.split"
        )
    with _given(network.image.pool) as pooled:
        embedding = network.encode_images(*image)
    own = _shares(network.image.pool, *pooled[0], embedding)
    if own.shape[1] != image[0].shape[1]:
        raise UserError(
            f"{type(network).__name__} pools {own.shape[1]} vectors of {image[0].shape[1]} visual tokens; register a function "
            "with model.explain.split that says what they are"
        )
    return Split(visual=own @ _words(network, text).mT)


@split.register
def _three_shnet(network: ThreeSHNet, image: Sequence[Tensor], text: Sequence[Tensor]) -> Split:
    """What 3SHNet pools is, in this order: the category, the segmentation cells, the tokens, the highlighted tokens."""
    side = network.image
    with _given(side.pool) as pooled, _given(side.semantic) as semantic, _given(side.spatial) as spatial:
        embedding = network.encode_images(*image)
    table = _shares(side.pool, *pooled[0], embedding) @ _words(network, text).mT
    tokens = image[0].shape[1]
    cells = table.shape[1] - 1 - 2 * tokens
    category, segments, own, highlighted = table.split((1, cells, tokens, tokens), dim=1)
    gates, attention = side.semantic.gates(*semantic[0]), side.spatial.attention(*spatial[0])
    return Split(own + highlighted, highlighted, category, segments, gates, attention)


@split.register
def _scan(network: SCAN, image: Sequence[Tensor], text: Sequence[Tensor]) -> Split:
    """A query's cosine is a sum over what it attends to; what the aggregate makes of the cosines is shared out among them."""
    sides = [(network.encode_images(*image), image[1]), (network.encode_captions(*text), text[1])]
    score = network.image.sizes
    table, weights = (side.new_zeros(len(image[0]), image[0].shape[1], text[0].shape[1]) for side, _ in (sides[0],) * 2)
    pairs = zip(*(zip(*side, strict=True) for side in sides), strict=True)
    for pair, ((regions, count), (words, length)) in enumerate(pairs):
        own = (slice(0, max(1, int(count))), slice(0, int(length)))
        table[pair][own], weights[pair][own] = pair_shares(
            at_least_single(regions[own[0]]), at_least_single(words[own[1]]), direction=score.cross_attn,
            norm=score.raw_feature_norm, aggregate=score.agg_func, sharpness=score.lambda_softmax, lse=score.lambda_lse,
        )  # fmt: skip
    return Split(visual=table, attended=weights)


def _words(network: RetrievalNetwork, text: Sequence[Tensor]) -> Tensor:
    """(B, T, E): what each token puts into its sentence's embedding."""
    with _given(network.text.pool) as pooled:
        embedding = network.encode_captions(*text)
    return _shares(network.text.pool, *pooled[0], embedding)


def _shares(pool: nn.Module, vectors: Tensor, valid: Tensor, lengths: Tensor, embedding: Tensor) -> Tensor:
    """(B, L, E) of the vectors that were pooled, summing to `embedding` (B, E), a multiple of the pooled vector."""
    shares = pool.shares(vectors, valid, lengths)
    pooled = shares.sum(1)
    scale = (pooled * embedding).sum(1) / pooled.square().sum(1).clamp(min=1e-30)
    return shares * scale[:, None, None]


@contextlib.contextmanager
def _given(module: nn.Module) -> Iterator[list[tuple[Tensor, ...]]]:
    """The arguments that a module is called with, call by call."""
    calls: list[tuple[Tensor, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    try:
        yield calls
    finally:
        handle.remove()
