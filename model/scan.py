"""SCAN: an image is its regions, a caption its words; their score says how well one side is met by the other.

    regions = normalised(W v_i)        words = normalised(mean of a GRU's two directions)        nothing is pooled
    score   = aggregate_q cos(query q, what q attends to on the other side)                      `kernels/cross_attention.py`

"t2i": words attend to regions. "i2t": regions attend to words.

Source: "Stacked cross attention for image-text matching" (ECCV 2018), the authors' `model.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from model.kernels.cross_attention import pair_scores
from model.layers import at_least_single, l2_normalise
from model.network import RetrievalNetwork


@dataclass(frozen=True)
class Sizes:
    """Sizes of the image side, and how pairs are scored; each is explained in `model.settings`."""

    img_dim: int  # width D of a visual token
    embed_size: int  # width E of a region's and a word's embedding
    cross_attn: str
    raw_feature_norm: str
    agg_func: str
    lambda_lse: float
    lambda_softmax: float
    weight_norm: bool
    normalise_images: bool


class ImageEncoder(nn.Module):
    """Visual tokens of an image -> a normalised embedding of each."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.projection = nn.Linear(sizes.img_dim, sizes.embed_size)
        if sizes.weight_norm:  # over the whole matrix, which starts as torch draws it
            weight_norm(self.projection, dim=None)
            return
        bound = math.sqrt(6.0 / (sizes.img_dim + sizes.embed_size))
        nn.init.uniform_(self.projection.weight, -bound, bound)
        nn.init.zeros_(self.projection.bias)

    def forward(self, visual: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        """(B, K, D), (B, K) bool, (B,) -> (B, K, E) float32, zeros behind the lengths."""
        tokens = self.projection(visual) * valid[:, :, None]
        return l2_normalise(tokens) if self.sizes.normalise_images else at_least_single(tokens)


class SCAN(RetrievalNetwork):
    """SCAN. `model.runs` and `model.checkpoint` load trained ones, `model.build` makes new ones.

    `encode_images` gives (B, K, E) and `encode_captions` (B, T, E), every vector normalised, zeros behind the lengths.
    """

    needs = ("visual",)
    scores = "pairs"
    Sizes, ImageEncoder = Sizes, ImageEncoder

    def forward(self, visual: Tensor, lengths: Tensor, token_ids: Tensor, token_lengths: Tensor) -> tuple:
        """Both sides of a batch of pairs, each as embeddings and lengths."""
        images, captions = self.encode_images(visual, lengths), self.encode_captions(token_ids, token_lengths)
        return (images, lengths.to(images.device)), (captions, token_lengths.to(captions.device))

    def similarity(self, images: Tensor, image_lengths: Tensor, captions: Tensor, caption_lengths: Tensor) -> Tensor:
        """Scores of all pairs.

        Args:
            images: (N, K, E), the first `image_lengths[i]` of image i are its regions.
            captions: (M, T, E), the first `caption_lengths[j]` of caption j are its words.
            image_lengths, caption_lengths: (N,) and (M,) integers, at least 1; best in host memory.

        Returns:
            (N, M) float32; float64 of a network in float64.
        """
        score = self.image.sizes
        with torch.autocast(images.device.type, enabled=False):
            return pair_scores(
                at_least_single(images),
                image_lengths.cpu().clamp(min=1),  # of an image without regions: one of zeros
                at_least_single(captions),
                caption_lengths.cpu(),
                direction=score.cross_attn,
                norm=score.raw_feature_norm,
                aggregate=score.agg_func,
                sharpness=score.lambda_softmax,
                lse=score.lambda_lse,
            )
