from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from model.kernels.fixed_linear import Fixed, reference

SIZES = [(64, 96, True), (96, 32, False)]


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(inside, outside, bias=bias) for inside, outside, bias in SIZES)


def outputs(layers, *, rows=(5, 7), dtype=torch.float32):
    inputs = torch.randn(*rows, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    return layers[1](torch.relu(layers[0](inputs)))


@torch.inference_mode()
@pytest.mark.parametrize("rows", [(5, 7), (1,), (3000,), (0,)], ids=str)
def test_the_fast_way_is_the_formula(layers, rows):
    expected = outputs(layers, rows=rows)
    with Fixed(layers):
        torch.testing.assert_close(outputs(layers, rows=rows), expected, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_rounding_is_that_of_autocast(layers):
    with torch.autocast("cpu", torch.bfloat16):
        expected = outputs(layers)
        with Fixed(layers):
            found = outputs(layers)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.02, atol=0.02)
    assert not torch.equal(found.float(), outputs(layers))


@torch.inference_mode()
def test_so_are_norms(layers):
    norm, inputs = nn.LayerNorm(64), torch.randn(5, 64)
    exact = norm(inputs)
    with torch.autocast("cpu", torch.bfloat16), Fixed(layers):
        assert torch.equal(norm(inputs), exact.bfloat16())
        assert norm.double()(inputs.double()).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(norm.float()(inputs), exact)
    with Fixed(layers):
        assert torch.equal(norm(inputs), exact)


@torch.inference_mode()
def test_weights_are_those_of_the_start_and_other_layers_stay_themselves(layers):
    other = nn.Linear(32, 8)
    expected = other(outputs(layers))
    with Fixed(layers):
        for layer in layers:
            layer.weight.zero_()
        torch.testing.assert_close(other(outputs(layers)), expected, rtol=1e-5, atol=1e-6)
        with ThreadPoolExecutor(1) as pool:  # another thread has not entered
            assert not (pool.submit(outputs, layers).result() - reference(torch.zeros(96), layers[1].weight)).any()
    assert not outputs(layers).any()


@torch.inference_mode()
def test_double_precision_stays_itself(layers):
    layers = layers.double()
    expected = outputs(layers, dtype=torch.float64)
    with Fixed(layers):
        assert torch.equal(outputs(layers, dtype=torch.float64), expected)
