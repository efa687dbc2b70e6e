from __future__ import annotations

import pytest
import torch

from model.losses import triplet_loss
from tests.unit.model import naive


@pytest.mark.parametrize("hardest", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradients_equal_the_loops(hardest, masked):
    generator = torch.Generator().manual_seed(3)
    images, captions = (torch.randn(9, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    images, captions = (torch.nn.functional.normalize(x, dim=1).requires_grad_() for x in (images, captions))
    of_image = torch.tensor([0, 1, 2, 0, 3, 4, 2, 2, 5])
    same = of_image[:, None] == of_image[None] if masked else None
    expected = naive.triplet_loss(images, captions, 0.2, hardest, same)
    found = triplet_loss(images, captions, margin=0.2, hardest=hardest, same_image=same)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(
        torch.autograd.grad(found, (images, captions)), torch.autograd.grad(expected, (images, captions)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_masking_removes_false_negatives_only():
    images = torch.eye(3)
    captions = torch.eye(3)
    captions[1] = captions[0]  # a second caption of image 0 sits in row 1
    plain = triplet_loss(images, captions, 0.2, False)
    masked = triplet_loss(images, captions, 0.2, False, torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool())
    assert plain > masked > 0
