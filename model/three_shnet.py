"""3SHNet, the paper's network: visual tokens are highlighted by what was segmented (semantic) and where (spatial).

Source: 3SHNet (Information Processing & Management 2024) and the authors' `lib/encoders_rgn_seg_sp_se.py`.

    visual tokens ─┬──────────────── MLP + projection ──────────────── tokens ──┐
                   └─ projection ─┬─ semantic highlighting ─ + ─┐                │
    seg. features ────────────────┤                             ├─ MLP ─ fused ──┤
    class map ────────────────────┴─ spatial highlighting ──────┘                ├─ pooling ─ normalised
    seg. features ── ConceptEmbedding ─ MLP + same ─────────────────── segments ─┤
    categories ───── ConceptEmbedding ──────────────────────────────── category ─┘

The text side (`text.py`) is BERT and the same pooling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.highlighting import SemanticHighlighting, SpatialHighlighting
from model.layers import MLP, ConceptEmbedding, l2_normalise
from model.network import RetrievalNetwork
from model.pooling import GeneralizedPooling


@dataclass(frozen=True)
class Sizes:
    """Sizes of the image side, and how it reads class maps; each is explained in `model.settings`."""

    img_dim: int  # width D of a visual token
    embed_size: int  # width E of an embedding; even
    spatial_size: int  # channels of the spatial branch
    num_categories: int  # C, panoptic ones
    pool_position_size: int
    pool_hidden_size: int
    dropout: float  # of the three concept embeddings
    seg_map_encoding: str
    class_order: str
    void_value: int


class ImageEncoder(nn.Module):
    """Visual tokens, class map, categories and segmentation features of an image -> one normalised embedding."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        wide, half, categories = sizes.embed_size, sizes.embed_size // 2, sizes.num_categories
        self.token_projection = nn.Linear(sizes.img_dim, wide)
        self.token_mlp = MLP(sizes.img_dim, half, wide)
        self.category_embedding = ConceptEmbedding(categories, wide, sizes.dropout)
        self.segment_embedding = ConceptEmbedding(categories, wide, sizes.dropout)
        self.segment_mlp = MLP(wide, half, wide)
        self.semantic = SemanticHighlighting(wide, categories, sizes.dropout)
        self.spatial = SpatialHighlighting(
            wide,
            sizes.spatial_size,
            num_categories=categories,
            seg_map_encoding=sizes.seg_map_encoding,
            class_order=sizes.class_order,
            void_value=sizes.void_value,
        )
        # It reaches nothing but the first layer of the fusion, whose norm takes the shift back (see `MLP`).
        self.spatial.fusion_mlp.output.bias.requires_grad_(False)
        self.fusion_mlp = MLP(wide, half, wide)
        self.pool = GeneralizedPooling(sizes.pool_position_size, sizes.pool_hidden_size)
        bound = math.sqrt(6.0 / (sizes.img_dim + wide))
        nn.init.uniform_(self.token_projection.weight, -bound, bound)
        nn.init.zeros_(self.token_projection.bias)

    def forward(
        self,
        visual: Tensor,
        valid: Tensor,
        lengths: Tensor,
        seg_maps: Tensor,
        category_onehots: Tensor,
        seg_features: Tensor,
    ) -> Tensor:
        """(B, E) float32, normalised; `valid` (B, K) says which visual tokens count, the rest as `encode_images`.

        What is pooled is a set: the category embedding, each valid token, each valid fused token and each cell of the
        segmentation features, 2n + 50 vectors for n tokens and 7 x 7 cells. The reference packs them in a loop; here a
        mask does.
        """
        projected = self.token_projection(visual)
        category = self.category_embedding(category_onehots.to(visual.dtype))
        segments = self.segment_embedding(seg_features.flatten(2).transpose(1, 2))
        segments = self.segment_mlp(segments) + segments
        highlighted = self.semantic(projected, valid, seg_features)
        highlighted = highlighted + self.spatial(projected, valid, seg_maps)
        tokens = self.token_mlp(visual) + projected
        fused = self.fusion_mlp(highlighted + tokens)

        whole = valid.new_ones(len(valid), 1 + segments.shape[1])
        pooled = self.pool(
            torch.cat((category[:, None], segments, tokens, fused), dim=1),
            torch.cat((whole, valid, valid), dim=1),
            2 * lengths + whole.shape[1],
        )
        return l2_normalise(pooled)


class ThreeSHNet(RetrievalNetwork):
    """3SHNet. `model.runs` and `model.checkpoint` load trained ones, `model.build` makes new ones."""

    needs = ("visual", "panoptic")
    Sizes, ImageEncoder = Sizes, ImageEncoder

    def encode_images(
        self, visual: Tensor, lengths: Tensor, seg_maps: Tensor, category_onehots: Tensor, seg_features: Tensor
    ) -> Tensor:
        """Embed images.

        Args:
            visual: (B, K, D) floats, visual tokens (regions or grid cells), the first `lengths[i]` of image i valid. In
                training mode the batch statistics include the padding, which should be zeros.
            lengths: (B,) integers, 0 <= lengths <= K; best in host memory, to save a device synchronisation.
            seg_maps: (B, H, W) integers, class numbers in COCO order as stored (255 = void); 64 x 64 in the reference.
            category_onehots: (B, C), 1 where the category is present.
            seg_features: (B, C, h, w) floats, 7 x 7 in the reference.

        Returns:
            (B, E) float32, L2-normalised.
        """
        return super().encode_images(visual, lengths, seg_maps, category_onehots, seg_features)
