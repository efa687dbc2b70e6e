"""VSE-infinity: visual tokens through a projection and an MLP, pooled by learnt weights of the rank.

    embedding = normalised(pool_i(W v_i + MLP(v_i)))        v_1 .. v_n the visual tokens of an image

It is 3SHNet without what was segmented. The text side (`text.py`) is BERT or a GRU over words, and the same pooling.

Source: "Learning the best pooling strategy for visual semantic embedding" (CVPR 2021), the authors' `lib/encoders.py`.
Their grids come from a CNN that is trained along, and have no MLP (`mlp: false`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.layers import MLP, at_least_single, l2_normalise
from model.network import RetrievalNetwork
from model.pooling import GeneralizedPooling


@dataclass(frozen=True)
class Sizes:
    """Sizes of the image side; each is explained in `model.settings`."""

    img_dim: int  # width D of a visual token
    embed_size: int  # width E of an embedding; even
    pool_position_size: int
    pool_hidden_size: int
    mlp: bool
    normalise_images: bool


class ImageEncoder(nn.Module):
    """Visual tokens of an image -> one normalised embedding."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.projection = nn.Linear(sizes.img_dim, sizes.embed_size)
        self.mlp = MLP(sizes.img_dim, sizes.embed_size // 2, sizes.embed_size) if sizes.mlp else None
        self.pool = GeneralizedPooling(sizes.pool_position_size, sizes.pool_hidden_size)
        bound = math.sqrt(6.0 / (sizes.img_dim + sizes.embed_size))
        nn.init.uniform_(self.projection.weight, -bound, bound)
        nn.init.zeros_(self.projection.bias)

    def forward(self, visual: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        """(B, K, D), (B, K) bool, (B,) in host memory -> (B, E) float32."""
        # An image without tokens is one token of zeros.
        valid, lengths = torch.cat((valid.new_ones(len(valid), 1), valid[:, 1:]), dim=1), lengths.clamp(min=1)
        tokens = self.projection(visual)
        if self.mlp is not None:
            tokens = self.mlp(visual) + tokens
        pooled = self.pool(tokens, valid, lengths)
        return l2_normalise(pooled) if self.sizes.normalise_images else at_least_single(pooled)


class VSEInfinity(RetrievalNetwork):
    """VSE-infinity. `model.runs` and `model.checkpoint` load trained ones, `model.build` makes new ones."""

    needs = ("visual",)
    Sizes, ImageEncoder = Sizes, ImageEncoder
