"""SCAN's pair scores: the fast way against one pair at a time, values and gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from model.kernels import cross_attention
from model.kernels.cross_attention import AGGREGATES, NORMS, pair_scores, reference

CHOICES = list(itertools.product(("t2i", "i2t"), NORMS, AGGREGATES))


@pytest.fixture
def sets():
    """Images of 1 to 6 regions and captions of 1 to 5 words, padded with what must not count."""
    generator = torch.Generator().manual_seed(0)

    def draw(lengths, longest):
        values = torch.randn(len(lengths), longest, 8, generator=generator, dtype=torch.float64)
        return F.normalize(values, dim=2), torch.tensor(lengths)

    return (*draw([3, 6, 1, 6, 3], 7), *draw([5, 1, 2, 5, 3, 2, 2], 6))


@pytest.mark.parametrize(("direction", "norm", "aggregate"), CHOICES)
def test_the_fast_way_is_the_formula(sets, direction, norm, aggregate, monkeypatch):
    choice = {"direction": direction, "norm": norm, "aggregate": aggregate, "sharpness": 9.0, "lse": 6.0}
    # Blocks of a few pairs, so that their edges are met.
    monkeypatch.setattr(cross_attention, "_VALUES_AT_ONCE", 20)
    monkeypatch.setattr(cross_attention, "_PRODUCTS_AT_ONCE", 60)
    images, image_lengths, captions, caption_lengths = sets
    weights = torch.linspace(-1, 1, len(images) * len(captions), dtype=torch.float64).view(len(images), -1)
    found = []
    for score in (pair_scores, reference):
        leaves = images.clone().requires_grad_(), captions.clone().requires_grad_()
        scores = score(leaves[0], image_lengths, leaves[1], caption_lengths, **choice)
        (scores * weights).sum().backward()
        found.append((scores.detach(), leaves[0].grad, leaves[1].grad))
    for ours, formula in zip(*found, strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-9, atol=1e-10)
    assert not found[0][1][0, 3:].any(), "padding has no say"
    single = pair_scores(*(part.float() if part.is_floating_point() else part for part in sets), **choice)
    torch.testing.assert_close(single, found[1][0].float(), rtol=1e-4, atol=1e-5)


def test_vectors_that_are_all_zero_give_numbers(sets):
    """A dead embedding: cosines of nothing are 0, and their slope is a number."""
    images, image_lengths, captions, caption_lengths = sets
    images = torch.zeros_like(images).requires_grad_()
    for direction in ("t2i", "i2t"):
        scores = pair_scores(images, image_lengths, captions, caption_lengths, direction=direction, aggregate="Mean")
        scores.sum().backward()
        assert not scores.any() and images.grad.isfinite().all()


@pytest.mark.parametrize(("direction", "norm"), list(itertools.product(("t2i", "i2t"), NORMS)))
@pytest.mark.parametrize("width", [1, 64])
def test_sums_that_nearly_cancel_keep_their_direction(direction, norm, width):
    """Items on one line, to either side: of such a sum |sum|^2 alone would leave no digits, and cosines far beyond 1."""
    generator = torch.Generator().manual_seed(1)
    line = F.normalize(torch.randn(width, generator=generator, dtype=torch.float64), dim=0)
    images, captions = (
        torch.randn(24, items, 1, generator=generator, dtype=torch.float64).sign() * line for items in (6, 5)
    )
    # Lengths of which some sums nearly vanish: of equal attention weights the sum of these is 1e-9 of an item.
    images[0, :, :] = torch.tensor([1, -1, 1, -1, 1, -1 + 1e-9], dtype=torch.float64)[:, None] * line
    lengths = torch.full((24,), 6), torch.full((24,), 5)
    choice = {"direction": direction, "norm": norm, "aggregate": "Mean", "sharpness": 1e-12}
    leaves = [[part.clone().requires_grad_() for part in (images, captions)] for _ in range(2)]
    found, formula = (
        score(sides[0], lengths[0], sides[1], lengths[1], **choice)
        for score, sides in zip((pair_scores, reference), leaves, strict=True)
    )
    torch.testing.assert_close(found, formula, rtol=1e-5, atol=1e-6)
    assert found.abs().max() <= 1 + 1e-9
    alone = pair_scores(images[:, :1], lengths[0].clamp(max=1), captions[:, :1], lengths[1].clamp(max=1), **choice)
    torch.testing.assert_close(alone, (images[:, 0] @ captions[:, 0].T).sign(), rtol=1e-9, atol=1e-9)


def test_a_set_of_nothing_is_refused(sets):
    images, image_lengths, captions, caption_lengths = sets
    image_lengths[2] = 0
    with pytest.raises(ValueError, match="image 2 has nothing to attend to"):
        pair_scores(images, image_lengths, captions, caption_lengths, direction="t2i")


def test_no_pairs_at_all():
    nothing, lengths = torch.zeros(0, 3, 8), torch.zeros(0, dtype=torch.int64)
    some, its_lengths = torch.ones(2, 3, 8), torch.tensor([3, 3])
    assert pair_scores(nothing, lengths, some, its_lengths, direction="i2t").shape == (0, 2)
