"""Attention of tokens over the positions of a class map.

    keys    = ReLU(norm(conv([number; position])))      a key, which is its value too, for each pixel
    context = softmax(scale * queries keys^T) keys      0 for padding

`position` is the sinusoidal encoding of a pixel's row-major place, as wide as `conv` has further input channels.

The fast way never holds the keys of a whole batch (64 images of 4,096 pixels and 128 channels: 134 MB, as much again for
each step back): `_folded` makes convolution and norm one small matrix product, `_by_image` attends while an image's keys
are in a CPU's cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import sinusoidal_positions
from model.parallel import whole_mean


def reference(queries: Tensor, valid: Tensor, numbers: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, scale: float):
    """The formula, as `attend`; in training mode only within one process."""
    keys = _keys(numbers, conv, norm)
    return torch.softmax(scale * queries @ keys.mT, dim=2) @ keys * valid[:, :, None]


def weights(
    queries: Tensor, valid: Tensor, numbers: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, scale: float
) -> Tensor:
    """The softmax itself, to look at: inputs as `attend` -> (B, K, H, W), zero for padding."""
    found = torch.softmax(scale * queries @ _keys(numbers, conv, norm).mT, dim=2) * valid[:, :, None]
    return found.unflatten(2, numbers.shape[1:])


def _keys(numbers: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """(B, H*W, C)."""
    place = _positions(numbers, conv).expand(len(numbers), -1, -1, -1)
    return norm(conv(torch.cat((numbers[:, None], place), dim=1))).relu().flatten(2).mT


def attend(
    queries: Tensor, valid: Tensor, numbers: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, scale: float
) -> Tensor:
    """Context of each token in its image's class map.

    Args:
        queries: (B, K, C) floats.
        valid: (B, K) bool: tokens first, then padding.
        numbers: (B, H, W) float32 (float64), what is read at each pixel. They get no gradient.
        conv: of 1 + the positions' width channels to C, its kernel square and odd, keeping height and width.
        norm: of C channels. In training mode its batch are the maps of all processes, and it notes their statistics.
        scale: of the scores.

    Returns:
        (B, K, C) in the type of `queries`, zero for padding.
    """
    with torch.autocast(queries.device.type, enabled=False):
        folded = _folded(numbers, conv, norm)
        # Rounded keys and scores would take longer on a CPU, whose cache holds exact ones as well.
        if queries.device.type == "cpu":
            return _by_image(queries.to(numbers.dtype), valid, *folded, scale).to(queries.dtype)
    return _all_at_once(queries, valid, *folded, scale)


def _positions(numbers: Tensor, conv: nn.Conv2d) -> Tensor:
    """(1, channels of `conv` after the first, H, W): the encoding of each pixel's row-major place."""
    height, width = numbers.shape[1:]
    positions = sinusoidal_positions(height * width, conv.in_channels - 1)
    positions = positions.to(numbers.device, numbers.dtype, non_blocking=True)
    return positions.T.reshape(1, conv.in_channels - 1, height, width)


# Convolution and norm as one matrix product.


def _folded(numbers: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """norm(conv([number; position])) as `patches.mT @ weight + offset`.

    The convolution is linear in the (say 3 x 3) numbers around a pixel plus a part that depends on the position alone
    and is the same for every image. So the batch statistics of its output follow from the moments of those 9 numbers,
    and the normalisation folds into weight and offset: neither needs the large tensor (B, H*W, C).

    Returns:
        `patches` (B, 9, H*W), `weight` (9, C) and `offset` (H*W, C).
    """
    size = conv.kernel_size[0]
    # As F.unfold, which on a GPU goes image by image.
    patches = F.pad(numbers, [size // 2] * 4).unfold(1, size, 1).unfold(2, size, 1)
    patches = patches.permute(0, 3, 4, 1, 2).reshape(len(numbers), size**2, -1)
    weight = conv.weight[:, 0].flatten(1)
    offset = F.conv2d(_positions(numbers, conv), conv.weight[:, 1:], conv.bias, padding=size // 2)
    offset = offset.flatten(2)[0].T
    if norm.training:
        mean, variance, count = _moments(patches, weight, offset)
        _note_statistics(norm, mean, variance, count)
    else:
        mean, variance = norm.running_mean, norm.running_var
    gain = norm.weight * torch.rsqrt(variance + norm.eps)
    return patches, (weight * gain[:, None]).T, offset * gain + (norm.bias - mean * gain)


def _moments(patches: Tensor, weight: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
    """Mean and biased variance (C,) of `weight @ patch + offset[position]` over the positions of the whole batch.

    And how many these are. The batch's own moments need no gradient, so processes share nothing else here.
    """
    images, _, positions = patches.shape
    with torch.no_grad():
        # Class numbers reach 132 and vary little: centred first, so that no digits cancel.
        patch_mean, count = whole_mean(patches.mean(dim=(0, 2)), images * positions)
        centred = patches - patch_mean[:, None]
        covariance, _ = whole_mean(torch.bmm(centred, centred.mT).sum(0) / (images * positions), images)
        mean_patch, _ = whole_mean(centred.mean(dim=0), images)  # (9, H*W): what the batch shows at each position
    offset_mean = offset.mean(dim=0)
    offset_centred = offset - offset_mean
    cross = mean_patch @ offset_centred / positions  # (9, C)
    mean = weight @ patch_mean + offset_mean
    variance = (weight @ covariance * weight).sum(1) + 2 * (weight * cross.T).sum(1) + offset_centred.square().mean(0)
    return mean, variance.clamp(min=0), count


@torch.no_grad()
def _note_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)


# Attention over the keys ReLU(patches.mT @ weight + offset), in two ways.


def _all_at_once(
    queries: Tensor, valid: Tensor, patches: Tensor, weight: Tensor, offset: Tensor, scale: float
) -> Tensor:
    """With the fused attention of a GPU."""
    keys = torch.baddbmm(offset[None], patches.mT, weight.expand(len(patches), -1, -1)).relu_().to(queries.dtype)
    context = F.scaled_dot_product_attention(queries[:, None], keys[:, None], keys[:, None], scale=scale)[:, 0]
    return context * valid[:, :, None]


def _by_image(queries: Tensor, valid: Tensor, patches: Tensor, weight: Tensor, offset: Tensor, scale: float) -> Tensor:
    """Image by image, so that an image's keys and scores stay in a CPU's cache; nothing is computed for padding."""
    return _ByImage.apply(queries, patches, weight.contiguous(), offset.contiguous(), valid.sum(1).tolist(), scale)


class _ByImage(torch.autograd.Function):
    """Going back, the keys are computed again and the attention is read back.

    Keys lie as (C, P): long rows multiply faster.
    """

    @staticmethod
    def forward(
        ctx, queries: Tensor, patches: Tensor, weight: Tensor, offset: Tensor, lengths: list[int], scale: float
    ) -> Tensor:
        context = torch.zeros_like(queries)
        weight, offset = weight.T.contiguous(), offset.T.contiguous()
        keys, scaled = torch.empty_like(offset), queries * scale
        kept = any(ctx.needs_input_grad)
        rows = sum(lengths) if kept else max(lengths, default=0)
        attention = queries.new_empty(rows, offset.shape[1])
        start = 0
        for image, length in enumerate(lengths):
            torch.addmm(offset, weight, patches[image], out=keys).relu_()
            own = attention[start : start + length]
            torch.mm(scaled[image, :length], keys, out=own)
            torch.softmax(own, dim=1, out=own)
            torch.mm(own, keys.T, out=context[image, :length])
            start += length if kept else 0
        if kept:
            ctx.save_for_backward(scaled, patches, weight, offset, context, attention)
            ctx.lengths, ctx.scale = lengths, scale
        return context

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, patches, weight, offset, context, attention = ctx.saved_tensors
        for_scaled, for_weight, for_offset = (torch.zeros_like(part) for part in (scaled, weight, offset))
        keys, for_keys = torch.empty_like(offset), torch.empty_like(offset)
        for_scores = scaled.new_empty(max(ctx.lengths, default=0), offset.shape[1])
        inner = (gradient * context).sum(dim=2, keepdim=True)
        start = 0
        for image, length in enumerate(ctx.lengths):
            torch.addmm(offset, weight, patches[image], out=keys).relu_()
            own, arriving = attention[start : start + length], gradient[image, :length]
            start += length
            changed = torch.mm(arriving, keys, out=for_scores[:length]).sub_(inner[image, :length]).mul_(own)
            torch.mm(changed, keys.T, out=for_scaled[image, :length])
            torch.mm(arriving.T, own, out=for_keys).addmm_(scaled[image, :length].T, changed)
            for_keys *= keys.sign_()  # the derivative of the ReLU that made them
            for_weight.addmm_(for_keys, patches[image].T)
            for_offset += for_keys
        return for_scaled.mul_(ctx.scale), None, for_weight.T, for_offset.T, None, None
