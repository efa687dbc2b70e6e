from __future__ import annotations

import torch

from model.pooling import GeneralizedPooling
from tests.unit.model import naive


def pooling(seed: int = 0) -> GeneralizedPooling:
    torch.manual_seed(seed)
    return GeneralizedPooling(8, 6)


def double(module):
    return {f"pool.{key}": value.detach().double() for key, value in module.state_dict().items()}


@torch.no_grad()
def test_weights_equal_the_formulae_and_are_computed_once_per_length(monkeypatch):
    module = pooling()
    lengths = torch.tensor([3, 50, 1, 3, 50, 7])
    seen = []
    forward = module.gru.forward
    monkeypatch.setattr(module.gru, "forward", lambda packed: seen.append(packed.batch_sizes) or forward(packed))
    found = module.weights(lengths)
    assert found.shape == (6, 50)
    for row, length in zip(found, lengths.tolist(), strict=True):
        expected = naive.pool_weights(double(module), "pool", length)
        assert (row[:length] - expected).abs().max() < 1e-6
        assert (row[length:] == 0).all()
    assert [int(sizes[0]) for sizes in seen] == [4]  # four distinct lengths, one call


def test_pooling_takes_a_set_in_any_order():
    module = pooling(2)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, 12, 5, generator=generator, requires_grad=True)
    valid = torch.rand(3, 12, generator=generator) > 0.4
    valid[0] = False
    valid[0, 7] = True
    lengths = valid.sum(1)
    found = module(inputs, valid, lengths)
    sets = [inputs[i][valid[i]].double() for i in range(3)]
    expected = torch.stack(naive.pool(double(module), "pool", sets))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    arriving = torch.randn(3, 5, generator=generator)
    (gradient,) = torch.autograd.grad((found * arriving).sum(), inputs, retain_graph=True)
    (exact,) = torch.autograd.grad((expected * arriving).sum(), inputs)
    torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-6)
    assert (gradient[~valid] == 0).all()
    order = torch.randperm(12, generator=generator)
    torch.testing.assert_close(module(inputs[:, order], valid[:, order], lengths), found)


@torch.no_grad()
def test_autocast_does_not_touch_pooling():
    module = pooling(3)
    inputs = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(2))
    valid, lengths = torch.ones(2, 9, dtype=torch.bool), torch.tensor([9, 9])
    exact = module(inputs, valid, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(inputs, valid, lengths), exact)
