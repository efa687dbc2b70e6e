"""Deformable convolution (Dai et al. 2017; with modulation, Zhu et al. 2019): torchvision's, and a faster way on CPUs.

    y(p) = bias + sum_k W_k m_k(p) x(p + p_k + o_k(p))

Tap k of the kernel looks at its place p_k moved by an offset o_k; x between pixels is bilinear, x outside of the map is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Sampled values, of all taps and channels, that are multiplied at a time: they stay in a core's cache.
_CHUNK = 2**20


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    mask: Tensor | None = None,
    in_double: bool = False,
) -> Tensor:
    """As `torchvision.ops.deform_conv2d`, in float32.

    Args:
        x: (B, C, H, W). offset: (B, 2 T, H', W') as (y, x) pairs, T taps row by row. weight: (C', C / groups, kh, kw).
        bias: (C',). mask: (B, T, H', W'), of the taps.
        in_double: on a CPU, where nothing is learnt, products are added up in double precision (see `extractors.networks.bands`).

    Returns:
        (B, C', H', W'), in channels-last memory on a CPU.
    """
    x, offset = x.float(), offset.float()
    mask = None if mask is None else mask.float()
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (x, offset, weight, bias, mask) if t is not None)
    if x.device.type != "cpu" or learns or weight.shape[1] != x.shape[1] or offset.shape[1] != 2 * weight[0, 0].numel():
        from torchvision.ops import deform_conv2d as reference

        # torchvision's kernel takes contiguous maps only.
        mask = None if mask is None else mask.contiguous()
        return reference(x.contiguous(), offset.contiguous(), weight, bias, stride, padding, dilation, mask)
    (height, width), (kh, kw) = x.shape[2:], weight.shape[2:]
    out_height, out_width = offset.shape[2:]
    kernel = weight.permute(2, 3, 1, 0).reshape(-1, len(weight)).to(torch.float64 if in_double else torch.float32)
    result = x.new_empty((len(x), out_height, out_width, len(weight)))
    for i, table in enumerate(x.permute(0, 2, 3, 1).reshape(len(x), height * width, -1)):
        moved = offset[i].view(kh * kw, 2, out_height, out_width)
        ys = moved[:, 0] + _places(kh, out_height, stride, padding, dilation).repeat_interleave(kw, 0)[:, :, None]
        xs = moved[:, 1] + _places(kw, out_width, stride, padding, dilation).repeat(kh, 1)[:, None, :]
        corners, shares = _corners(ys.flatten(1).T, xs.flatten(1).T, height, width)
        if mask is not None:
            shares *= mask[i].flatten(1).T[..., None]
        out = result[i].view(-1, len(weight))
        step = max(1, _CHUNK // len(kernel))
        for places, weights, part in zip(corners.split(step), shares.split(step), out.split(step), strict=True):
            sampled = weighted_rows(table, places.flatten(0, 1), weights.flatten(0, 1))
            if in_double:
                part.copy_(sampled.view(len(part), -1).double() @ kernel)
            else:
                torch.mm(sampled.view(len(part), -1), kernel, out=part)
    if bias is not None:
        result += bias
    return result.permute(0, 3, 1, 2)


def weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sums of rows of `table` (N, C): rows (P, k) int of it with weights (P, k) -> (P, C)."""
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


def _places(taps: int, size: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(taps, size) float32: where each tap of a side looks for each of the result's `size` pixels."""
    return (torch.arange(size) * stride - padding + torch.arange(taps)[:, None] * dilation).float()


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The pixels around each place (P, T): their rows in a flat map (P, T, 4) int32, and their bilinear shares."""
    top, left = y.floor(), x.floor()
    below, right = y - top, x - left
    rows, shares = [], []
    for row, share_y in ((top, 1 - below), (top + 1, below)):
        for column, share_x in ((left, 1 - right), (left + 1, right)):
            outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
            rows.append((row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).int())
            shares.append((share_y * share_x).masked_fill_(outside, 0.0))
    return torch.stack(rows, -1), torch.stack(shares, -1)
