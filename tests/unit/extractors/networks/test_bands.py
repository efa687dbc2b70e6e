"""Convolutions and products that round less."""

import pytest
import torch
from torch.nn import functional as F

from extractors.networks import bands
from extractors.networks.layers import Conv2d, DeformConv2d, Linear, fold_norms
from tests.unit.extractors.networks.narrow_upsnet import narrow


@pytest.mark.parametrize("at_once", [1, 3000, 2**20])
@pytest.mark.parametrize(
    ("shape", "side", "options"),
    [
        ((2, 6, 9, 7), 3, {"padding": 1}),
        ((1, 3, 23, 16), 7, {"padding": 3, "stride": 2}),
        ((1, 4, 1, 5), 3, {"padding": 1}),
        ((3, 4, 12, 9), 3, {"padding": 2, "stride": (2, 1), "dilation": 2, "groups": 2}),
        ((1, 4, 6, 5), (3, 1), {"padding": (0, 2)}),
        ((0, 2, 3, 3), 3, {"padding": 1}),
    ],
    ids=str,
)
def test_a_convolution_is_rounded_once(monkeypatch, shape, side, options, at_once):
    monkeypatch.setattr(bands, "_FACTORS_AT_ONCE", at_once)
    torch.manual_seed(0)
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    for bias in (True, False):
        conv = Conv2d(shape[1], 8, side, bias=bias, **options)
        exact = conv.double()(x.double())
        conv.float().rounds_less = True
        with torch.inference_mode():
            found = conv(x)
        assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, exact.float(), rtol=1e-6, atol=1e-12)


def test_a_3x3_convolution_rounds_less():
    torch.manual_seed(0)
    conv = Conv2d(256, 32, 3, padding=1, relu=True).to(memory_format=torch.channels_last)
    x = torch.randn(1, 256, 20, 20).to(memory_format=torch.channels_last)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1).relu()
    conv.rounds_less = True
    with torch.inference_mode():
        off = (conv(x) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert off < 4e-8  # one sum of 2,304 products in float32: 6e-7
    assert conv(x).requires_grad  # where it learns, it is the usual convolution


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_products_in_double_precision_are_the_convolution(stride, layout):
    torch.manual_seed(0)
    for batch, bias in ((2, True), (0, False)):
        conv = Conv2d(70, 9, 1, stride=stride, bias=bias)
        x = torch.randn(batch, 70, 17, 23).to(memory_format=layout)
        conv.rounds_less = True
        with torch.inference_mode():
            found = conv(x)
            exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if bias else None, stride)
        assert found.shape == exact.shape and found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, exact.float())


def test_deformable_and_connected_layers_are_rounded_once():
    torch.manual_seed(0)
    layer, x = Linear(3000, 5), torch.randn(600, 3000)
    layer.rounds_less = True
    with torch.inference_mode():
        assert torch.equal(layer(x), F.linear(x.double(), layer.weight.double(), layer.bias.double()).float())
    assert layer(x).requires_grad
    deform = DeformConv2d(64, 8, bias=True)
    x, none = torch.randn(1, 64, 9, 9), torch.zeros(1, 18, 9, 9)
    exact = F.conv2d(x.double(), deform.weight.double(), padding=1).float().relu()
    off = []
    for deform.rounds_less in (False, True):
        with torch.inference_mode():
            off.append((deform(x, none) - exact).abs().max())
    assert off[1] == 0 < off[0]


def test_where_upsnet_rounds_less():
    """Where scores and boxes come from; masks and the semantic branch have digits to spare."""
    network = narrow()
    heavy = [(name, layer) for name, layer in network.named_modules() if hasattr(layer, "rounds_less")]
    usual = {name.rsplit(".", 1)[0] for name, layer in heavy if not layer.rounds_less}
    assert usual == {"roi_heads.mask_head", "sem_seg_head"} and len(heavy) > 40
    fold_norms(network)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = network.backbone(x)["p2"]
        with bands.usual_rounding():
            with bands.usual_rounding():
                usual = network.backbone(x)["p2"]
            assert torch.equal(network.backbone(x)["p2"], usual)
        assert torch.equal(network.backbone(x)["p2"], found)
    assert not torch.equal(found, usual)
    torch.testing.assert_close(found, usual, rtol=1e-5, atol=1e-5)
