"""Convolutions and products on CPUs that round less, for networks whose scores must agree to 1e-5.

3x3: over channels-last maps oneDNN adds the 9 C products of each value one after the other; over contiguous ones it adds them in
parts, which rounds less: of 256 channels 1.7e-7 of the values instead of 6.0e-7, of 512 1.9e-7 instead of 7.6e-7. Bands of rows
that stay in the cache are copied to and from contiguous memory, which costs a tenth of a wide convolution's time; copies of whole
maps would cost a third.

1x1, deformable and fully connected: a product of matrices, which is added up in double precision and rounded once: 2.5e-8 instead
of 1.8e-7 (1,024 channels), for twice its time. Of a ResNet's hundred layers these sums make most of the noise.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_VALUES_AT_ONCE = 2**20  # of the input
_FEWEST_ROWS = 4
_DOUBLES_AT_ONCE = 2**18  # of factors and sums
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


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W), (C', C, 3, 3), (C',) -> (B, C', H, W) channels-last: padding 1, stride 1; without gradients."""
    batch, channels, height, width = x.shape
    weight = weight.contiguous()
    result = torch.empty(
        (batch, len(weight), height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    together = max(1, _VALUES_AT_ONCE // max(1, channels * height * width))
    rows = max(_FEWEST_ROWS, _VALUES_AT_ONCE // max(1, channels * width)) if together == 1 else height
    for images, out in zip(x.split(together), result.split(together), strict=True):
        for top in range(0, height, rows):
            end = min(top + rows, height)
            band = images[:, :, max(0, top - 1) : end + 1].contiguous()
            if top == 0 or end == height:
                band = F.pad(band, (0, 0, int(top == 0), int(end == height)))
            out[:, :, top:end] = F.conv2d(band, weight, bias, padding=(0, 1))
    return result


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    """(B, C, H, W), (C', C, 1, 1), (C',) -> (B, C', H', W') channels-last: no padding; without gradients."""
    pixels = x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)
    sums = product(pixels.reshape(-1, x.shape[1]), weight.flatten(1), bias)
    return sums.view(*pixels.shape[:3], len(weight)).permute(0, 3, 1, 2)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, K), (M, K), (M,) float32 -> (N, M) float32, added up in double precision; without gradients."""
    result = rows.new_empty(len(rows), len(weight))
    factors = weight.T.double().contiguous()
    start = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
    step = max(_FEWEST_SUMS, _DOUBLES_AT_ONCE // max(1, sum(weight.shape)))
    for part, out in zip(rows.split(step), result.split(step), strict=True):
        out.copy_(torch.addmm(start, part.double(), factors))
    return result
