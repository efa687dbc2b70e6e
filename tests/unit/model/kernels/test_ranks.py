from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from model.kernels import ranks
from tests.unit.model.kernels.together import assert_together

reference_weights, weights = (
    functools.partial(way, temperature=0.1) for way in (ranks.reference_weights, ranks.weights)
)


def layers():
    torch.manual_seed(0)
    return nn.GRU(8, 6, batch_first=True, bidirectional=True), nn.Linear(6, 1, bias=False)


@pytest.mark.parametrize("lengths", [[3, 50, 1, 3, 50, 7], [9, 5, 2, 1], [4, 4], [2]], ids=str)
def test_weights_equal_the_formula(lengths):
    assert_together(reference_weights, weights, [torch.tensor(lengths)], layers())


def test_a_set_of_one_vector_weighs_it_fully():
    """No way to weigh differently, so no gradient."""
    gru, score = layers()
    found = weights(torch.tensor([1, 1]), gru, score)
    assert found.tolist() == [[1.0], [1.0]]
    found.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in (*gru.parameters(), *score.parameters()))


@torch.no_grad()
def test_where_nothing_goes_back():
    lengths, given = torch.tensor([7, 2, 7]), layers()
    torch.testing.assert_close(weights(lengths, *given), reference_weights(lengths, *given))


def test_an_empty_set_has_no_weights():
    with pytest.raises(ValueError, match="a set of 0 vectors"):
        weights(torch.tensor([3, 0]), *layers())


def sets(sizes, longest):
    """Sets of these sizes, their vectors anywhere among `longest`, and weights of their ranks."""
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(len(sizes), longest, generator=generator).argsort(dim=1)
    inputs = torch.randn(len(sizes), longest, 5, generator=generator, dtype=torch.float64)
    of_ranks = torch.rand(len(sizes), max(sizes), generator=generator, dtype=torch.float64)
    own = torch.tensor(sizes)[:, None]
    of_ranks = of_ranks.masked_fill(torch.arange(max(sizes)) >= own, 0)
    return inputs.requires_grad_(), order < own, of_ranks.requires_grad_()


@pytest.mark.parametrize(
    ("sizes", "longest"),
    [([12, 5, 1, 7], 12), ([4, 0, 1], 9), ([1, 1], 1)],
    ids=["full", "padded, and an empty set", "one vector"],
)
def test_weighted_sum_equals_the_formula(sizes, longest):
    assert_together(ranks.reference_sum, ranks.weighted_sum, sets(sizes, longest))


def test_gradients_are_computed_only_where_asked_for():
    inputs, valid, of_ranks = sets([6, 2], 6)
    ranks.weighted_sum(inputs, valid, of_ranks).sum().backward()
    expected = inputs.grad, of_ranks.grad
    inputs.grad = of_ranks.grad = None
    ranks.weighted_sum(inputs.detach(), valid, of_ranks).sum().backward()
    assert inputs.grad is None and torch.equal(of_ranks.grad, expected[1])
    of_ranks.grad = None
    ranks.weighted_sum(inputs, valid, of_ranks.detach()).sum().backward()
    assert of_ranks.grad is None and torch.equal(inputs.grad, expected[0])
    assert (inputs.grad[~valid] == 0).all()
