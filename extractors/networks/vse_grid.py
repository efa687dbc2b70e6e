"""The CNNs of VSE-infinity's grid models, which were trained along with the model and lie in its checkpoint.

Source: woodfrog/vse_infty, `lib/modules/resnet.py` and `lib/datasets/image_caption.py`; Chen et al. 2021.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace

import torch
from torch import Tensor, nn

from core.checkpoints import cnn_architecture, read_checkpoint, split_cnn
from core.console import UserError
from extractors.networks.rcnn import Meta

#: Pixels a side at an `input_scale_factor` of 1. The published scripts train at 2.
BASE_SIDE = 256
_NAMES = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)


class GridCNN(nn.Module):
    """A residual network whose last map is the grid; without a detector.

    Args:
        backbone: a `ResNet` up to res5. meta: `meta.options["architecture"]` is the name whose weights it takes.
    """

    def __init__(self, *, backbone: nn.Module, meta: Meta) -> None:
        super().__init__()
        self.backbone = backbone
        self.meta = meta
        self.grid_size, self.grid_stride = backbone.channels["res5"], backbone.strides["res5"]

    @torch.inference_mode()
    def grid(self, pixels: Tensor) -> Tensor:
        """Whole-image res5 map: (B, 3, H, W) -> (B, D, ~H/32, ~W/32) float32."""
        return self.backbone(pixels)["res5"].float()

    def read_cnn(self, path: str | os.PathLike[str]) -> dict[str, Tensor]:
        """The CNN's tensors of a VSE-infinity checkpoint under this network's names; the head is none of them.

        The side of its square input becomes the one that the checkpoint was trained with, as its options say.

        Raises:
            ValueError: no such checkpoint, one without a CNN or with another, or tensors that say two things.
        """
        own = self.meta.options["architecture"]
        try:
            image, _, options = read_checkpoint(path, "VSE-infinity's authors")
            cnn, rest, problems = split_cnn(image)
            if not cnn:
                raise UserError(
                    f"{path} holds no CNN, which {own} would be: its image encoder reads features of another network, "
                    "as VSE-infinity's region models do. Extract those with a detector (features.regions) and give the run "
                    "visual: regions, or take a grid checkpoint"
                )
            stated = cnn_architecture(path, cnn, options)
        except UserError as error:
            raise ValueError(str(error)) from error
        if stated != own:
            raise ValueError(f"the CNN in {path} is of {stated}, not {own}; write architecture: {stated}")
        if problems:
            raise ValueError(
                f"{path} holds its CNN twice, and the two differ; get the file again:\n" + "\n".join(problems)
            )
        self._take_side(path, options)
        state = {name: value for name, value in rest.items() if not name.startswith("image_encoder.")}
        for name, value in cnn.items():
            if name.endswith(".num_batches_tracked"):
                continue
            for pattern, ours in _NAMES:
                name = re.sub(pattern, ours, name)
            state["backbone." + re.sub(r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}.", name)] = value
        return state

    def _take_side(self, path: str | os.PathLike[str], options: dict) -> None:
        if "backbone_source" not in options:  # not written by their program: as published
            return
        if "input_scale_factor" not in options:
            print(f"note: {path} names no input_scale_factor; as in its authors' code it is 1", file=sys.stderr)
        factor = options.get("input_scale_factor", 1)
        if not isinstance(factor, int | float) or not 1 <= BASE_SIDE * factor < 1e5:
            raise ValueError(f"{path}: its option input_scale_factor is {factor!r}, no factor of {BASE_SIDE} pixels")
        side = int(BASE_SIDE * factor)
        self.meta.input = replace(self.meta.input, min_size=side, max_size=side)
