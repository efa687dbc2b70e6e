"""The two highlighting branches of 3SHNet: visual tokens weighted by what was segmented (semantic) and where (spatial).

Source: 3SHNet (Information Processing & Management 2024) and the authors' `lib/Crossmodal_Fusion4_sm.py` (semantic) and
`lib/Crossmodal_Fusion4_sp.py` (spatial).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from catalog.categories import UPSNET_TO_COCO, VOID
from model.kernels import class_map
from model.layers import MLP, ConceptEmbedding

MAP_POSITION_SIZE = 8
SHARPNESS = 4.0  # the reference's lambda_softmax
CLASS_ORDERS = ("coco", "upsnet")
SEG_MAP_ENCODINGS = ("raw", "standardised")


class SemanticHighlighting(nn.Module):
    """What: each visual token v is gated by its agreement with the image's segmentation features F as a whole.

    v' = MLP(v) + v
    q  = MLP(c) + c,  c = ConceptEmbedding(mean of F over its cells)
    w  = sigmoid(v' . q / sqrt(E)) v'                       0 for padding
    highlighted = ReLU(Linear(w * tanh(Linear(w)) + q))     without q for padding
    """

    def __init__(self, embed_size: int, num_categories: int, dropout: float) -> None:
        super().__init__()
        self.token_mlp = MLP(embed_size, embed_size // 2, embed_size)
        self.query_embedding = ConceptEmbedding(num_categories, embed_size, dropout)
        self.query_mlp = MLP(embed_size, embed_size // 2, embed_size)
        self.scale = nn.Linear(embed_size, embed_size)
        self.output = nn.Linear(embed_size, embed_size)

    def forward(self, tokens: Tensor, valid: Tensor, seg_features: Tensor) -> Tensor:
        """tokens (B, K, E), valid (B, K) bool, seg_features (B, C, H, W) -> (B, K, E)."""
        tokens, query, gates = self._gated(tokens, valid, seg_features)
        tokens = gates[:, :, None] * tokens
        return torch.relu(self.output(tokens * torch.tanh(self.scale(tokens)) + query[:, None] * valid[:, :, None]))

    def gates(self, tokens: Tensor, valid: Tensor, seg_features: Tensor) -> Tensor:
        """The sigmoid alone, inputs as `forward`: (B, K) from 0 to 1, how far each token is let through; 0 for padding."""
        return self._gated(tokens, valid, seg_features)[2]

    def _gated(self, tokens: Tensor, valid: Tensor, seg_features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """v' (B, K, E), q (B, E) and the gates (B, K)."""
        tokens = self.token_mlp(tokens) + tokens
        query = self.query_embedding(seg_features.mean(dim=(2, 3)))
        query = self.query_mlp(query) + query
        agreement = torch.einsum("bke,be->bk", tokens, query) / math.sqrt(tokens.shape[-1])
        return tokens, query, torch.sigmoid(agreement).masked_fill(~valid, 0)


class SpatialHighlighting(nn.Module):
    """Where: each visual token v attends over the positions of the class map.

        q = MLP(v)
        k = ReLU(BatchNorm(Conv3x3([class number; position])))      for each pixel
        highlighted = MLP(q + softmax(4 q k^T / sqrt(C)) k)         without the context for padding

    The map's numbers are read as numbers, so their order matters: stores hold COCO order, `class_order` "upsnet"
    renumbers them the way the authors' checkpoints were trained. Void pixels (255 in the stores) read as `void_value`.
    """

    def __init__(
        self,
        embed_size: int,
        spatial_size: int,
        *,
        num_categories: int = 133,
        seg_map_encoding: str = "raw",
        class_order: str = "coco",
        void_value: int = 133,
    ) -> None:
        super().__init__()
        self.token_mlp = MLP(embed_size, embed_size // 2, spatial_size)
        self.map_conv = nn.Conv2d(1 + MAP_POSITION_SIZE, spatial_size, kernel_size=3, padding=1)
        self.map_norm = nn.BatchNorm2d(spatial_size)
        self.map_conv.bias.requires_grad_(False)  # the norm takes its shift back, see `MLP`
        self.fusion_mlp = MLP(spatial_size, embed_size // 2, embed_size)
        self.sharpness = SHARPNESS / math.sqrt(spatial_size)
        values = map_values(num_categories, seg_map_encoding, class_order, void_value)
        self.register_buffer("map_values", values, persistent=False)

    def forward(self, tokens: Tensor, valid: Tensor, seg_maps: Tensor) -> Tensor:
        """tokens (B, K, E), valid (B, K) bool, seg_maps (B, H, W) class numbers of the stores -> (B, K, E)."""
        queries = self.token_mlp(tokens)
        numbers = self.map_values[seg_maps.int()]
        context = class_map.attend(queries, valid, numbers, self.map_conv, self.map_norm, scale=self.sharpness)
        return self.fusion_mlp(queries + context)

    def attention(self, tokens: Tensor, valid: Tensor, seg_maps: Tensor) -> Tensor:
        """The softmax alone, inputs as `forward`: (B, K, H, W), each token's weights sum to 1; 0 for padding."""
        numbers = self.map_values[seg_maps.int()]
        return class_map.weights(
            self.token_mlp(tokens), valid, numbers, self.map_conv, self.map_norm, scale=self.sharpness
        )


def map_values(num_categories: int, seg_map_encoding: str, class_order: str, void_value: int) -> Tensor:
    """(256,) float32: the number the spatial branch reads for each stored class number.

    "raw" feeds the class number itself, "standardised" (number/133 - 0.3342)/0.0621, as an earlier loader of the
    authors did. Values that no store holds read as void.
    """
    if seg_map_encoding not in SEG_MAP_ENCODINGS:
        raise ValueError(f"seg_map_encoding is {seg_map_encoding!r}; choose one of {', '.join(SEG_MAP_ENCODINGS)}")
    if class_order not in CLASS_ORDERS:
        raise ValueError(f"class_order is {class_order!r}; choose one of {', '.join(CLASS_ORDERS)}")
    if num_categories > VOID:
        raise ValueError(f"num_categories is {num_categories}; a class map of bytes holds at most {VOID}")
    numbers = torch.full((256,), float(void_value))
    numbers[:num_categories] = torch.arange(num_categories, dtype=torch.float32)
    if class_order == "upsnet":
        if num_categories != len(UPSNET_TO_COCO):
            raise ValueError(f"class_order upsnet numbers {len(UPSNET_TO_COCO)} categories, not {num_categories}")
        numbers[list(UPSNET_TO_COCO)] = torch.arange(num_categories, dtype=torch.float32)
    if seg_map_encoding == "standardised":
        numbers = (numbers / 133 - 0.3342) / 0.0621
    return numbers
