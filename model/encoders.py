"""The image and the text encoder of 3SHNet (reference: `lib/encoders_rgn_seg_sp_se.py`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.bert import Bert
from model.highlighting import SemanticHighlighting, SpatialHighlighting
from model.layers import MLP, ConceptEmbedding, l2_normalise
from model.pooling import GeneralizedPooling


class ImageEncoder(nn.Module):
    """Visual tokens, class map, categories and segmentation features of an image -> one normalised embedding.

    Args:
        img_dim: width D of a visual token (region or grid cell).
        embed_size: width E of the embedding; even.
        spatial_size: channels of the spatial branch (128 in the paper).
        num_categories: panoptic categories.
        pool_position_size, pool_hidden_size: sizes of the pooling's position encoding and GRU.
        dropout: of the three embeddings of categories and segmentation features.
        seg_map_encoding, class_order, void_value: what the spatial branch reads, see `highlighting.map_values`.
    """

    def __init__(
        self,
        img_dim: int,
        embed_size: int = 1024,
        spatial_size: int = 128,
        *,
        num_categories: int = 133,
        pool_position_size: int = 32,
        pool_hidden_size: int = 32,
        dropout: float = 0.1,
        seg_map_encoding: str = "raw",
        class_order: str = "coco",
        void_value: int = 133,
    ) -> None:
        super().__init__()
        # What it takes to build this encoder again; stored beside its weights.
        self.arguments = {
            "img_dim": img_dim,
            "embed_size": embed_size,
            "spatial_size": spatial_size,
            "num_categories": num_categories,
            "pool_position_size": pool_position_size,
            "pool_hidden_size": pool_hidden_size,
            "dropout": dropout,
            "seg_map_encoding": seg_map_encoding,
            "class_order": class_order,
            "void_value": void_value,
        }
        half = embed_size // 2
        self.token_projection = nn.Linear(img_dim, embed_size)
        self.token_mlp = MLP(img_dim, half, embed_size)
        self.category_embedding = ConceptEmbedding(num_categories, embed_size, dropout)
        self.segment_embedding = ConceptEmbedding(num_categories, embed_size, dropout)
        self.segment_mlp = MLP(embed_size, half, embed_size)
        self.semantic = SemanticHighlighting(embed_size, num_categories, dropout)
        self.spatial = SpatialHighlighting(
            embed_size,
            spatial_size,
            num_categories=num_categories,
            seg_map_encoding=seg_map_encoding,
            class_order=class_order,
            void_value=void_value,
        )
        self.fusion_mlp = MLP(embed_size, half, embed_size)
        self.pool = GeneralizedPooling(pool_position_size, pool_hidden_size)
        bound = math.sqrt(6.0 / (img_dim + embed_size))
        nn.init.uniform_(self.token_projection.weight, -bound, bound)
        nn.init.zeros_(self.token_projection.bias)

    def forward(
        self, visual: Tensor, lengths: Tensor, seg_maps: Tensor, category_onehots: Tensor, seg_features: Tensor
    ) -> Tensor:
        """(B, E) float32, normalised; arguments as `ThreeSHNet.encode_images`.

        What is pooled is a set: the category embedding, each valid token, each valid fused token and each cell of the
        segmentation features, 2n + 50 vectors for n tokens and 7 x 7 cells. The reference packs them in a loop; here a
        mask does.
        """
        device, dtype = self.token_projection.weight.device, self.token_projection.weight.dtype
        lengths = lengths.cpu().long()
        # Moved as stored, widened on the device: half the bytes, and none of the copies waits for the one before.
        visual, seg_maps, category_onehots, seg_features = (
            part.to(device, non_blocking=True) for part in (visual, seg_maps, category_onehots, seg_features)
        )
        visual, category_onehots, seg_features = (part.to(dtype) for part in (visual, category_onehots, seg_features))
        valid = (torch.arange(visual.shape[1]) < lengths[:, None]).to(device, non_blocking=True)

        projected = self.token_projection(visual)
        category = self.category_embedding(category_onehots)
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


class TextEncoder(nn.Module):
    """Token ids -> BERT -> projection -> generalised pooling over all tokens with [CLS] and [SEP] -> normalised."""

    def __init__(
        self, bert: Bert, embed_size: int = 1024, *, pool_position_size: int = 32, pool_hidden_size: int = 32
    ) -> None:
        super().__init__()
        self.bert = bert
        self.projection = nn.Linear(bert.config.hidden_size, embed_size)
        self.pool = GeneralizedPooling(pool_position_size, pool_hidden_size)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, E) float32, normalised; arguments as `ThreeSHNet.encode_captions`."""
        device = self.projection.weight.device
        lengths = lengths.cpu().long()
        token_ids = token_ids.to(device, non_blocking=True)
        states = self.projection(self.bert(token_ids, token_ids != 0, lengths))
        valid = (torch.arange(token_ids.shape[1]) < lengths[:, None]).to(device, non_blocking=True)
        return l2_normalise(self.pool(states, valid, lengths))
