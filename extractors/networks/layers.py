"""Convolutions that carry their norm, and the norms the checkpoints use.

A checkpoint of detectron2 names a convolution's norm as its child (`conv1.norm.weight`), so the modules do too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.networks.bands import conv1x1, conv2d, product, roundings_are_usual
from extractors.networks.deform import deform_conv2d


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics: y = (x - running_mean) / sqrt(running_var + eps) * weight + bias.

    The four vectors are buffers, not parameters, under the names of `BatchNorm2d`.

    Args:
        channels: number of channels C of the input (B, C, H, W).
        eps: added to the variance before the root.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        # Stored so that a fresh layer is the identity: checkpoints of ImageNet models that folded their statistics
        # into weight and bias come without the running ones.
        self.register_buffer("running_var", torch.ones(channels) - eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float -> the same shape."""
        if x.requires_grad:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def make_norm(name: str, channels: int) -> nn.Module | None:
    """The norm called `name` ("", "FrozenBN", "BN" or "GN") for `channels` channels; ValueError for another name."""
    if name == "":
        return None
    if name == "FrozenBN":
        return FrozenBatchNorm2d(channels)
    if name == "BN":
        return nn.BatchNorm2d(channels)
    if name == "GN":
        return nn.GroupNorm(32, channels)
    raise ValueError(f"unknown norm {name!r}; choose '', 'FrozenBN', 'BN' or 'GN'")


def _single(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is in float32 on a CPU and nothing is learnt by it."""
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    whole = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and whole and not learns


def _in_one(x: Tensor) -> bool:
    """Whether oneDNN can add and cut off while it writes a convolution's result: the same bits, two passes less over the map."""
    return x.numel() > 0 and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled


def _careful(layer: Conv2d | DeformConv2d | Linear) -> bool:
    return layer.rounds_less and not roundings_are_usual()


class Conv2d(nn.Conv2d):
    """A convolution followed by an optional norm (child `norm`) and an optional ReLU.

    Attributes:
        rounds_less: see `extractors.networks.bands`; set by a network, for what is in float32 on a CPU.
        in_one: ReLU and shortcut may be applied while the result is written; set by `fold_norms`.
    """

    rounds_less = in_one = False

    def __init__(self, *args: int, norm: str = "", relu: bool = False, **kwargs) -> None:
        kwargs.setdefault("bias", norm == "")
        super().__init__(*args, **kwargs)
        self.norm = make_norm(norm, self.out_channels)
        self.relu = relu

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W'); `shortcut`, of that shape, is added before the ReLU."""
        single = _single(x, self.weight)
        careful = single and _careful(self)
        if single and self.in_one and self.norm is None and not careful and _in_one(x):
            how = (self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
            after = "relu" if self.relu else None
            if shortcut is None:
                return torch.ops.mkldnn._convolution_pointwise(x, *how, after or "none", [], "")
            return torch.ops.mkldnn._convolution_pointwise.binary(x, shortcut, *how, "add", 1.0, after, [], None)
        x = self._rounded_less(x) if careful else super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        if shortcut is not None:
            # In place where no gradient needs the branch's own value: half the memory traffic of a block.
            x = x + shortcut if x.requires_grad else x.add_(shortcut)
        return F.relu_(x) if self.relu else x

    def _rounded_less(self, x: Tensor) -> Tensor:
        if (self.kernel_size, self.padding, self.groups) == ((1, 1), (0, 0), 1):
            return conv1x1(x, self.weight, self.bias, self.stride)
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Linear(nn.Linear):
    """A fully connected layer; `rounds_less` as of `Conv2d`."""

    rounds_less = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, K) -> (N, M)."""
        if _careful(self) and _single(x, self.weight):
            return product(x, self.weight, self.bias)
        return super().forward(x)


class DeformConv2d(nn.Module):
    """A 3x3 deformable convolution (Dai et al. 2017) with its norm, followed by ReLU.

    Args:
        in_channels, out_channels, stride, dilation, groups, bias: of the convolution. norm: see `make_norm`.

    Attributes:
        rounds_less: as of `Conv2d`.
    """

    rounds_less = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: str = "",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.dilation = stride, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.norm = make_norm(norm, out_channels)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), sampling offsets (B, 18 G, H', W') as (y, x) pairs, modulation (B, 9 G, H', W') -> (B, C', H', W')."""
        dtype = x.dtype
        x = deform_conv2d(
            x,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.dilation,
            dilation=self.dilation,
            mask=mask,
            in_double=_careful(self),
        ).to(dtype)
        return F.relu_(x if self.norm is None else self.norm(x))


def fold_norms(network: nn.Module) -> None:
    """Merge every `FrozenBatchNorm2d` into the convolution it follows: the same function with one pass less over each map.

    The weights' names change (a bias instead of four norm vectors), so this comes after loading. Merged in double
    precision.
    """
    for conv in network.modules():
        if not isinstance(conv, Conv2d):
            continue
        conv.in_one, norm = True, conv.norm
        if not isinstance(norm, FrozenBatchNorm2d):
            continue
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        with torch.no_grad():
            if conv.bias is not None:
                shift += conv.bias.double() * scale
            dtype = conv.weight.dtype
            conv.weight.copy_((conv.weight.double() * scale[:, None, None, None]).to(dtype))
            conv.bias = nn.Parameter(shift.to(dtype), requires_grad=False)
        conv.norm = None


def msra_init(conv: nn.Conv2d) -> None:
    """He initialisation (fan out, ReLU), zero bias."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def xavier_init(layer: nn.Conv2d | nn.Linear) -> None:
    """Caffe2's "XavierFill" (uniform, fan in), zero bias."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def normal_init(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Normal weights of the given standard deviation, zero bias."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
