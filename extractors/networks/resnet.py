"""ResNet and ResNeXt bodies with the conventions the published detectors differ in.

Sources: He et al. 2016, Xie et al. 2017; strides and names as in detectron2's `modeling/backbone/resnet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from extractors.networks.layers import Conv2d, DeformConv2d, msra_init


class Stem(nn.Module):
    """7x7 stride-2 convolution, ReLU, 3x3 stride-2 max pooling: stride 4 in all.

    Args:
        out_channels: channels of the result.
        norm: norm of the convolution.
        caffe_pool: pool with padding 0 and `ceil_mode` as Caffe does, instead of padding 1.
    """

    def __init__(self, out_channels: int, norm: str, caffe_pool: bool = False) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, out_channels, 7, stride=2, padding=3, bias=False, norm=norm, relu=True)
        self.caffe_pool = caffe_pool
        msra_init(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ~H/4, ~W/4)."""
        x = self.conv1(x)
        if self.caffe_pool:
            return F.max_pool2d(x, kernel_size=3, stride=2, padding=0, ceil_mode=True)
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1 residual block with a projection shortcut where shape changes.

    Args:
        in_channels, out_channels: of the block.
        bottleneck_channels: of the 3x3 convolution (over all groups).
        stride: of the block; carried by the first 1x1 convolution if `stride_in_1x1` (MSRA/Caffe), else by the 3x3.
        groups: of the 3x3 convolution (ResNeXt).
        dilation: of the 3x3 convolution.
        deform: "" for a plain 3x3 convolution, "v1" for a deformable one, "v2" for one with modulation (Zhu et al. 2019).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int,
        groups: int,
        dilation: int,
        stride_in_1x1: bool,
        norm: str,
        deform: str = "",
    ) -> None:
        super().__init__()
        self.stride = stride
        if in_channels != out_channels:
            self.shortcut = Conv2d(in_channels, out_channels, 1, stride=stride, bias=False, norm=norm)
            msra_init(self.shortcut)
        else:
            self.shortcut = None
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        width = bottleneck_channels
        self.conv1 = Conv2d(in_channels, width, 1, stride=stride_1x1, bias=False, norm=norm, relu=True)
        self.deform = deform
        if deform:
            # Two offsets and, in v2, one weight for each of the nine taps.
            taps = 9 * (3 if deform == "v2" else 2)
            self.conv2_offset = Conv2d(width, taps, 3, stride=stride_3x3, padding=dilation, dilation=dilation)
            nn.init.zeros_(self.conv2_offset.weight)
            nn.init.zeros_(self.conv2_offset.bias)
            self.conv2 = DeformConv2d(width, width, stride=stride_3x3, dilation=dilation, groups=groups, norm=norm)
        else:
            self.conv2 = Conv2d(
                width,
                width,
                3,
                stride=stride_3x3,
                padding=dilation,
                dilation=dilation,
                groups=groups,
                bias=False,
                norm=norm,
                relu=True,
            )
            msra_init(self.conv2)
        self.conv3 = Conv2d(width, out_channels, 1, bias=False, norm=norm, relu=True)
        msra_init(self.conv1)
        msra_init(self.conv3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H/stride, W/stride)."""
        out = self.conv1(x)
        if self.deform:
            offset, mask = self.conv2_offset(out), None
            if self.deform == "v2":
                offset, mask = offset.split([18, 9], dim=1)
                mask = mask.sigmoid()
            out = self.conv2(out, offset, mask)
        else:
            out = self.conv2(out)
        return self.conv3(out, x if self.shortcut is None else self.shortcut(x))


def make_stage(
    blocks: int,
    in_channels: int,
    out_channels: int,
    *,
    bottleneck_channels: int,
    first_stride: int,
    groups: int = 1,
    dilation: int = 1,
    stride_in_1x1: bool,
    norm: str,
    deform: str = "",
) -> nn.Sequential:
    """A residual stage of `blocks` bottlenecks; only the first has `first_stride`."""
    return nn.Sequential(
        *(
            Bottleneck(
                in_channels if i == 0 else out_channels,
                out_channels,
                bottleneck_channels=bottleneck_channels,
                stride=first_stride if i == 0 else 1,
                groups=groups,
                dilation=dilation,
                stride_in_1x1=stride_in_1x1,
                norm=norm,
                deform=deform,
            )
            for i in range(blocks)
        )
    )


def stage_stride(stage: nn.Sequential) -> int:
    """By how much a residual stage divides the sides of its input."""
    return stage[0].stride  # the others have 1


class ResNet(nn.Module):
    """The body res2..res4 (C4) or res2..res5.

    Args:
        blocks: bottlenecks of res2, res3, ...: as many stages are built as numbers are given (3 or 4).
        stem_channels: channels after the stem.
        res2_channels: channels of res2; doubled by every stage.
        groups, width_per_group: of the 3x3 convolutions; `groups * width_per_group` is res2's bottleneck width.
        stride_in_1x1: see `Bottleneck`.
        caffe_pool: see `Stem`.
        norm: norm after every convolution.
        res5_dilation: 2 keeps res5 at stride 16 with dilated 3x3 convolutions.
        deform: per stage, see `Bottleneck`; () for plain convolutions everywhere.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        stem_channels: int = 64,
        res2_channels: int = 256,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = True,
        caffe_pool: bool = False,
        norm: str = "FrozenBN",
        res5_dilation: int = 1,
        deform: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.stem = Stem(stem_channels, norm, caffe_pool)
        self.stages = [f"res{i}" for i in range(2, 2 + len(blocks))]
        self.channels: dict[str, int] = {}
        #: Pixels of the input per cell of each stage's map.
        self.strides: dict[str, int] = {}
        stride = 4  # of the stem
        channels_in, channels_out, width = stem_channels, res2_channels, groups * width_per_group
        deform = tuple(deform) or ("",) * len(blocks)
        for name, count, kind in zip(self.stages, blocks, deform, strict=True):
            dilation = res5_dilation if name == "res5" else 1
            stage = make_stage(
                count,
                channels_in,
                channels_out,
                bottleneck_channels=width,
                first_stride=1 if name == "res2" or dilation > 1 else 2,
                groups=groups,
                dilation=dilation,
                stride_in_1x1=stride_in_1x1,
                norm=norm,
                deform=kind,
            )
            self.add_module(name, stage)
            self.channels[name] = channels_out
            stride *= stage_stride(stage)
            self.strides[name] = stride
            channels_in, channels_out, width = channels_out, channels_out * 2, width * 2

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"res2": (B, C2, ~H/4, ~W/4), "res3": stride 8, "res4": stride 16[, "res5": 32, dilated 16]}."""
        x = self.stem(x)
        features = {}
        for name in self.stages:
            x = getattr(self, name)(x)
            features[name] = x
        return features
