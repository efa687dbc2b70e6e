"""Feature pyramid (Lin et al. 2017) over res2..res5, with the extra stride-64 level for proposals."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from extractors.networks.layers import Conv2d, Linear, xavier_init
from extractors.networks.resnet import ResNet


class FPN(nn.Module):
    """Pyramid levels p2..p6 of equal width; p6 is every second pixel of p5.

    Args:
        bottom_up: body giving res2..res5.
        channels: width of every level. norm: after every convolution.
        global_context: the mean of res5 over the whole map, padding included, goes through a linear layer and is added to
            every cell of the coarsest level, from where it reaches the others (UPSNet).
    """

    LEVELS = (2, 3, 4, 5)

    def __init__(self, bottom_up: ResNet, channels: int = 256, norm: str = "", global_context: bool = False) -> None:
        super().__init__()
        for level in self.LEVELS:
            lateral = Conv2d(bottom_up.channels[f"res{level}"], channels, 1, norm=norm)
            output = Conv2d(channels, channels, 3, padding=1, norm=norm)
            xavier_init(lateral)
            xavier_init(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self.fpn_gap = Linear(bottom_up.channels["res5"], channels) if global_context else None
        self.bottom_up = bottom_up
        self.channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), H and W multiples of 32 -> {"p2": stride 4, ..., "p6": stride 64}, each (B, channels, h, w)."""
        body = self.bottom_up(x)
        pyramid: dict[str, Tensor] = {}
        top = None
        for level in reversed(self.LEVELS):
            lateral = getattr(self, f"fpn_lateral{level}")(body[f"res{level}"])
            if top is not None:
                top = lateral + F.interpolate(top, scale_factor=2.0, mode="nearest")
            elif self.fpn_gap is None:
                top = lateral
            else:
                top = lateral + self.fpn_gap(body["res5"].mean(dim=(2, 3)))[:, :, None, None]
            pyramid[f"p{level}"] = getattr(self, f"fpn_output{level}")(top)
        pyramid["p6"] = F.max_pool2d(pyramid["p5"], kernel_size=1, stride=2)
        return {f"p{level}": pyramid[f"p{level}"] for level in (2, 3, 4, 5, 6)}
