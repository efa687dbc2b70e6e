"""3x3 convolutions in bands: the convolution, rounded less than over channels-last maps."""

import pytest
import torch
from torch.nn import functional as F

from extractors.networks import bands
from extractors.networks.layers import Conv2d


@pytest.mark.parametrize("shape", [(2, 5, 9, 7), (1, 3, 1, 4), (3, 2, 13, 5), (0, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("at_once", [1, 100, 2**20])
def test_bands_are_the_convolution(monkeypatch, shape, at_once):
    monkeypatch.setattr(bands, "_VALUES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(4, shape[1], 3, 3, generator=generator), torch.randn(4, generator=generator)
    found = bands.conv3x3(x, weight, bias)
    torch.testing.assert_close(found, F.conv2d(x, weight, bias, padding=1), rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_convolution_with_short_sums_rounds_less():
    torch.manual_seed(0)
    conv = Conv2d(256, 32, 3, padding=1, relu=True).to(memory_format=torch.channels_last)
    x = torch.randn(1, 256, 40, 40).to(memory_format=torch.channels_last)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1).relu()
    conv.short_sums = True
    with torch.inference_mode():
        off = (conv(x) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert off < 3e-7  # one sum of 2,304 products: 6e-7
    assert conv(x).requires_grad  # where it learns, it is the usual convolution
