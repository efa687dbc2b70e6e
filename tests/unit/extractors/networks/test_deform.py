"""The CPU's way of a deformable convolution against torchvision's."""

import pytest
import torch
from torchvision.ops import deform_conv2d as reference

from extractors.networks.deform import deform_conv2d


def arguments(channels, out, size, *, batch=1, stride=1, padding=1, dilation=1, kernel=3, groups=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, *size, generator=generator)
    h, w = ((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in size)
    offset = 3 * torch.randn(batch, 2 * kernel**2, h, w, generator=generator)
    offset[0, :, 0] *= 1e6  # far outside
    offset[0, :, -1, -1] = -1.0  # whole pixels
    weight = torch.randn(out, channels // groups, kernel, kernel, generator=generator)
    mask = torch.rand(batch, kernel**2, h, w, generator=generator)
    return x, offset, weight, torch.randn(out, generator=generator), mask


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((16, 8, (20, 31)), {"batch": 2}),
        ((8, 12, (17, 9)), {"stride": 2}),
        ((8, 8, (17, 9)), {"dilation": 2, "padding": 2}),
        ((4, 4, (6, 7)), {"kernel": 1, "padding": 0}),
        ((4, 6, (1, 1)), {}),
        ((8, 8, (9, 6)), {"groups": 2}),
        ((300, 4, (40, 33)), {"batch": 2}),  # several chunks
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_fast_way_is_torchvisions(shape, options, masked):
    x, offset, weight, bias, mask = arguments(*shape, **options)
    own = {name: options.get(name, default) for name, default in (("stride", 1), ("padding", 1), ("dilation", 1))}
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            result = deform_conv2d(
                x.to(memory_format=layout), offset, weight, bias, **own, mask=mask if masked else None
            )
            expected = reference(x, offset, weight, bias, *own.values(), mask if masked else None)
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("part", ["weight", "bias", "mask", "offset", "x"])
def test_any_part_can_learn_alone(part):
    x, offset, weight, bias, mask = arguments(4, 4, (6, 6))
    parts = {"x": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    parts[part].requires_grad_()
    deform_conv2d(**parts, padding=1).sum().backward()
    assert parts[part].grad.abs().sum() > 0
