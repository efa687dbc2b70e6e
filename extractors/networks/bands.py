"""Sums in double precision on CPUs, for networks whose scores must agree to 1e-5.

The sums of convolutions and connected layers make most of a deep network's noise: oneDNN adds the 9 C products of a 3x3 convolution
one after the other, in float32, and is off by 6.0e-7 of the values (256 channels). Here they are the same functions, added up in double
precision and rounded once, which leaves 2.5e-8, whatever the processor. It takes two (1x1) to five times (3x3) as long.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_FACTORS_AT_ONCE = 2**21  # of a band of rows, as one matrix: little memory, yet threads seldom wait for each other
_DOUBLES_AT_ONCE = 2**18  # of factors and sums of a product
_FEWEST_SUMS = 256  # or each weight would be fetched too often
_this_thread = threading.local()


@contextlib.contextmanager
def usual_rounding() -> Iterator[None]:
    """Within, in this thread, no layer rounds less: for results that have digits to spare."""
    before, _this_thread.usual = roundings_are_usual(), True
    try:
        yield
    finally:
        _this_thread.usual = before


def roundings_are_usual() -> bool:
    """Whether this thread is within `usual_rounding`."""
    return getattr(_this_thread, "usual", False)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """As `F.conv2d` of float32, channels-last: (B, C, H, W), (C', C / groups, kh, kw), (C',) -> (B, C', H', W')."""
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    reach = [(side - 1) * step + 1 for side, step in zip(weight.shape[2:], dilation, strict=True)]
    height, width = ((n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, stride, strict=True))
    result = torch.empty((len(x), len(weight), height, width), memory_format=torch.channels_last)
    factors, start = weight.double(), None if bias is None else bias.double()
    rows = max(1, _FACTORS_AT_ONCE // max(1, width * x.shape[1] * weight[0, 0].numel()))
    for image, out in zip(padded.split(1), result.split(1), strict=True):
        for top in range(0, height, rows):
            part = out[:, :, top : top + rows]
            band = image[:, :, top * stride[0] :][:, :, : (part.shape[2] - 1) * stride[0] + reach[0]]
            part.copy_(F.conv2d(band.double(), factors, start, stride, 0, dilation, groups))
    return result


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    """As `conv2d`, faster: (B, C, H, W), (C', C, 1, 1), (C',) -> (B, C', H', W'), no padding."""
    pixels = x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)
    sums = product(pixels.reshape(-1, x.shape[1]), weight.flatten(1), bias)
    return sums.view(*pixels.shape[:3], len(weight)).permute(0, 3, 1, 2)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `F.linear` of float32: (N, K), (M, K), (M,) -> (N, M)."""
    result = rows.new_empty(len(rows), len(weight))
    factors = weight.T.double().contiguous()
    start = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
    step = max(_FEWEST_SUMS, _DOUBLES_AT_ONCE // max(1, sum(weight.shape)))
    for part, out in zip(rows.split(step), result.split(step), strict=True):
        out.copy_(torch.addmm(start, part.double(), factors))
    return result
