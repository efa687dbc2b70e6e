"""A similarity is the sum of what its parts contribute, for every network that can be asked."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from core.console import UserError
from model.contributions import split
from model.kernels import ranks
from model.layers import l2_normalise
from model.network import RetrievalNetwork
from model.pooling import GeneralizedPooling
from model.scan import SCAN
from model.scan import ImageEncoder as ScanImages
from model.scan import Sizes as ScanSizes
from model.text import WordEncoder
from tests.unit.model.test_network import batch_of, small_network


def captions(lengths, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.as_tensor(lengths)
    ids = torch.randint(5, 50, (len(lengths), int(lengths.max())), generator=generator)
    ids[torch.arange(ids.shape[1]) >= lengths[:, None]] = 0
    return ids, lengths


@torch.no_grad()
@pytest.mark.parametrize("tokens", [[36, 1, 12, 0, 36], [49] * 5], ids=["regions", "grid"])
def test_the_parts_add_up_to_the_score(tokens):
    network = small_network(3).eval()
    image, text = batch_of(tokens, seed=2), captions([4, 9, 3, 12, 7])
    scores = (network.encode_images(*image) * network.encode_captions(*text)).sum(1)
    parts = split(network, image, text)
    total = sum(part.sum((1, 2)) for part in (parts.visual, parts.category, parts.segments))
    assert (total - scores).abs().max() < 1e-5
    # By words alone, each the inner product of its own share with the image, and nothing of padding.
    by_word = sum(part.sum(1) for part in (parts.visual, parts.category, parts.segments))
    assert (by_word[torch.arange(by_word.shape[1]) >= text[1][:, None]] == 0).all()
    padding = torch.arange(image[0].shape[1]) >= image[1][:, None]
    for part in (parts.visual, parts.highlighted, parts.gates, parts.attention):
        assert (part[padding] == 0).all()
    assert parts.category.shape[1] == 1 and parts.segments.shape[1] == 49


@torch.no_grad()
def test_the_parts_are_those_of_the_named_vectors():
    """Without the vectors of one kind in the set, the others would be pooled differently; so a hand-made set says which is which."""
    network = small_network(1).eval()
    image, text = batch_of([5, 5], seed=4), captions([6, 6])
    with_vectors = []
    network.image.pool.register_forward_pre_hook(lambda _, given: with_vectors.append(given))
    embedding = network.encode_images(*image)
    vectors, valid, lengths = with_vectors[0]
    shares = network.image.pool.shares(vectors, valid, lengths)
    shares = shares * (embedding.norm(dim=1) / shares.sum(1).norm(dim=1))[:, None, None]
    table = torch.einsum("ble,be->bl", shares, network.encode_captions(*text))
    parts = split(network, image, text)
    torch.testing.assert_close(parts.category.sum(2), table[:, :1])
    torch.testing.assert_close(parts.segments.sum(2), table[:, 1:50])
    torch.testing.assert_close(parts.visual.sum(2), table[:, 50:55] + table[:, 55:])
    torch.testing.assert_close(parts.highlighted.sum(2), table[:, 55:])


@torch.no_grad()
def test_gates_and_attention_are_the_networks_own():
    network = small_network(2).eval()
    visual, lengths, maps, onehots, segments = batch_of([6, 3])
    parts = split(network, (visual, lengths, maps, onehots, segments), captions([5, 5]))
    inside = torch.arange(6) < lengths[:, None]
    assert ((parts.gates > 0) == inside).all() and (parts.gates < 1).all()
    assert parts.attention.shape == (2, 6, *maps.shape[1:])
    torch.testing.assert_close(parts.attention.sum((2, 3)), inside.float())
    # The context that the branch reads is its keys under that attention: pixel by pixel against the kernel's own.
    seen = []
    side = network.image.spatial
    side.fusion_mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    queries = []
    side.token_mlp.register_forward_hook(lambda *given: queries.append(given[2]))
    network.encode_images(visual, lengths, maps, onehots, segments)
    from model.kernels.class_map import _keys

    keys = _keys(side.map_values[maps.int()], side.map_conv, side.map_norm)
    context = parts.attention.flatten(2) @ keys
    torch.testing.assert_close(context, seen[0] - queries[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1], [4, 7, 2], [9, 9]])
def test_shares_sum_to_what_is_pooled_and_equal_vectors_share_alike(sizes):
    torch.manual_seed(0)
    pool, lengths = GeneralizedPooling(8, 6), torch.tensor(sizes)
    vectors = torch.randn(len(sizes), max(sizes), 5)
    valid = torch.arange(max(sizes)) < lengths[:, None]
    if max(sizes) > 3:
        vectors[0, 3] = vectors[0, 1]
    shares = pool.shares(vectors, valid, lengths)
    torch.testing.assert_close(shares.sum(1), pool(vectors, valid, lengths), rtol=1e-5, atol=1e-6)
    assert (shares[~valid] == 0).all()
    if max(sizes) > 3:
        torch.testing.assert_close(shares[0, 3], shares[0, 1])


def test_shares_are_the_formula_where_no_values_are_equal():
    generator = torch.Generator().manual_seed(1)
    vectors, valid = torch.randn(3, 6, 4, generator=generator), torch.ones(3, 6, dtype=torch.bool)
    valid[1, ::2] = False
    weights = torch.rand(3, 6, generator=generator)
    found = ranks.shares(vectors, valid, weights)
    for b in range(3):
        for e in range(4):
            own = [j for j in range(6) if valid[b, j]]
            own.sort(key=lambda j: -float(vectors[b, j, e]))
            for rank, j in enumerate(own):
                assert found[b, j, e] == pytest.approx(float(weights[b, rank] * vectors[b, j, e]), abs=1e-6)


@dataclass(frozen=True)
class Sizes:
    img_dim: int
    embed_size: int


class Pooled(nn.Module):
    """An image side that pools its tokens and nothing else."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.projection = sizes, nn.Linear(sizes.img_dim, sizes.embed_size)
        self.pool = GeneralizedPooling(4, 4)

    def forward(self, visual, valid, lengths):
        return l2_normalise(self.pool(self.projection(visual), valid, lengths))


class Plain(RetrievalNetwork):
    needs = ("visual",)
    Sizes, ImageEncoder = Sizes, Pooled


@torch.no_grad()
def test_a_network_that_pools_its_tokens_alone_needs_no_function_of_its_own():
    torch.manual_seed(1)
    network = Plain(Pooled(Sizes(24, 16)), small_network().text).eval()
    image, text = batch_of([7, 2, 4])[:2], captions([5, 3, 8])
    scores = (network.encode_images(*image) * network.encode_captions(*text)).sum(1)
    parts = split(network, image, text)
    assert (parts.visual.sum((1, 2)) - scores).abs().max() < 1e-5
    assert parts.visual.shape[1] == 7 and parts.category is None and parts.gates is None


def scan(text, **numbers):
    sizes = {"cross_attn": "t2i", "raw_feature_norm": "clipped_l2norm", "agg_func": "LogSumExp", "lambda_lse": 6.0}
    sizes |= {"lambda_softmax": 9.0, "weight_norm": False, "normalise_images": True}
    return SCAN(ScanImages(ScanSizes(img_dim=24, embed_size=16, **(sizes | numbers))), text).eval()


@torch.no_grad()
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("aggregate", ["LogSumExp", "Mean", "Max", "Sum"])
@pytest.mark.parametrize("norm", ["clipped_l2norm", "softmax"])
def test_pair_scores_are_shared_out_among_regions_and_words(direction, aggregate, norm):
    torch.manual_seed(2)
    network = scan(
        WordEncoder(50, 16, word_size=8, pool=False), cross_attn=direction, agg_func=aggregate, raw_feature_norm=norm
    )
    image, text = batch_of([7, 2, 4])[:2], captions([5, 3, 8])
    scores = network.similarity(
        network.encode_images(*image), image[1], network.encode_captions(*text), text[1]
    ).diagonal()
    parts = split(network, image, text)
    assert (parts.visual.sum((1, 2)) - scores).abs().max() < 1e-5
    # Who attends spends all attention, and nothing behind the lengths has any part.
    whole = parts.attended.sum(1 if direction == "t2i" else 2)
    lengths = text[1] if direction == "t2i" else image[1]
    torch.testing.assert_close(whole, (torch.arange(whole.shape[1]) < lengths[:, None]).float())
    outside = (torch.arange(7) >= image[1][:, None])[:, :, None] | (torch.arange(8) >= text[1][:, None])[:, None]
    assert (parts.visual[outside] == 0).all() and (parts.attended[outside] == 0).all()


def test_other_ways_to_a_score_are_refused():
    network = Plain(Pooled(Sizes(24, 16)), small_network().text).eval()
    del network.image.pool
    with pytest.raises(UserError, match="Plain does not pool both sides.*register"):
        split(network, batch_of([3])[:2], captions([4]))
