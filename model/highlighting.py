"""The two highlighting branches of 3SHNet: visual tokens weighted by what was segmented (semantic) and where (spatial).

Source: 3SHNet (Information Processing & Management 2024) and the authors' `lib/Crossmodal_Fusion4_sm.py` (semantic) and
`lib/Crossmodal_Fusion4_sp.py` (spatial).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalog.categories import UPSNET_TO_COCO, VOID
from model.layers import MLP, ConceptEmbedding, sinusoidal_positions
from model.parallel import whole_mean

MAP_POSITION_SIZE = 8
SHARPNESS = 4.0  # the reference's lambda_softmax
KERNEL = 3
CLASS_ORDERS = ("coco", "upsnet")
SEG_MAP_ENCODINGS = ("raw", "standardised")


class SemanticHighlighting(nn.Module):
    """Gates each visual token by its agreement with the image's overall segmentation features."""

    def __init__(self, embed_size: int, num_categories: int, dropout: float) -> None:
        super().__init__()
        self.token_mlp = MLP(embed_size, embed_size // 2, embed_size)
        self.query_embedding = ConceptEmbedding(num_categories, embed_size, dropout)
        self.query_mlp = MLP(embed_size, embed_size // 2, embed_size)
        self.scale = nn.Linear(embed_size, embed_size)
        self.output = nn.Linear(embed_size, embed_size)

    def forward(self, tokens: Tensor, valid: Tensor, seg_features: Tensor) -> Tensor:
        """tokens (B, K, E), valid (B, K) bool, seg_features (B, C, H, W) -> (B, K, E)."""
        tokens = self.token_mlp(tokens) + tokens
        query = self.query_embedding(seg_features.mean(dim=(2, 3)))
        query = self.query_mlp(query) + query
        agreement = torch.einsum("bke,be->bk", tokens, query) / math.sqrt(tokens.shape[-1])
        gate = torch.sigmoid(agreement).masked_fill(~valid, 0)
        tokens = gate[:, :, None] * tokens
        return torch.relu(self.output(tokens * torch.tanh(self.scale(tokens)) + query[:, None] * valid[:, :, None]))


class SpatialHighlighting(nn.Module):
    """Lets each visual token attend over the positions of the class map.

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
        self.map_conv = nn.Conv2d(1 + MAP_POSITION_SIZE, spatial_size, kernel_size=KERNEL, padding=KERNEL // 2)
        self.map_norm = nn.BatchNorm2d(spatial_size)
        self.map_conv.bias.requires_grad_(False)  # the norm takes its shift back, see `MLP`
        self.fusion_mlp = MLP(spatial_size, embed_size // 2, embed_size)
        values = map_values(num_categories, seg_map_encoding, class_order, void_value)
        self.register_buffer("map_values", values, persistent=False)

    def forward(self, tokens: Tensor, valid: Tensor, seg_maps: Tensor) -> Tensor:
        """tokens (B, K, E), valid (B, K) bool, seg_maps (B, H, W) class numbers of the stores -> (B, K, E)."""
        tokens = self.token_mlp(tokens)
        context = attend_map(
            tokens, valid, *self.map_projection(seg_maps), scale=SHARPNESS / math.sqrt(tokens.shape[-1])
        )
        return self.fusion_mlp(context * valid[:, :, None] + tokens)

    def map_projection(self, seg_maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """BatchNorm(Conv3x3(class numbers and positions)) as one matrix product: `patches.mT @ weight + offset`.

        The convolution is linear in the 9 class numbers around a pixel plus a part that depends on the position alone
        and is the same for every image. So the batch statistics of its output follow from the moments of those 9
        numbers, and the normalisation folds into weight and offset: neither needs the large tensor (B, H*W, C).

        Args:
            seg_maps: (B, H, W) class numbers.

        Returns:
            `patches` (B, 9, H*W), `weight` (9, C) and `offset` (H*W, C), float32.
        """
        with torch.autocast(seg_maps.device.type, enabled=False):
            height, width = seg_maps.shape[1:]
            numbers = self.map_values[seg_maps.int()]
            # As F.unfold, which on a GPU goes image by image.
            patches = F.pad(numbers, [KERNEL // 2] * 4).unfold(1, KERNEL, 1).unfold(2, KERNEL, 1)
            patches = patches.permute(0, 3, 4, 1, 2).reshape(len(numbers), KERNEL**2, height * width)
            positions = sinusoidal_positions(height * width, MAP_POSITION_SIZE)
            positions = positions.to(numbers.device, numbers.dtype, non_blocking=True)
            positions = positions.T.reshape(1, MAP_POSITION_SIZE, height, width)
            weight = self.map_conv.weight[:, 0].flatten(1)
            offset = F.conv2d(positions, self.map_conv.weight[:, 1:], self.map_conv.bias, padding=KERNEL // 2)
            offset = offset.flatten(2)[0].T
            if self.training:
                mean, variance, count = _conv_moments(patches, weight, offset)
                self._update_running(mean, variance, count)
            else:
                mean, variance = self.map_norm.running_mean, self.map_norm.running_var
            gain = self.map_norm.weight * torch.rsqrt(variance + self.map_norm.eps)
            return patches, (weight * gain[:, None]).T, offset * gain + (self.map_norm.bias - mean * gain)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
        norm = self.map_norm
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)


def _conv_moments(patches: Tensor, weight: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
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


def attend_map(
    queries: Tensor, valid: Tensor, patches: Tensor, weight: Tensor, offset: Tensor, *, scale: float
) -> Tensor:
    """softmax(scale * queries keys^T) keys, with keys = ReLU(patches.mT @ weight + offset) serving as values too.

    Args:
        queries: (B, K, C); of image i the first sum(valid[i]) are meant.
        valid: (B, K) bool.
        patches, weight, offset: (B, 9, P), (9, C), (P, C) as `SpatialHighlighting.map_projection` makes them.
        scale: of the scores.

    Returns:
        (B, K, C); what it holds for padding is unspecified.
    """
    if queries.device.type == "cpu" and queries.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return _AttendMap.apply(
            queries, patches, weight.contiguous(), offset.contiguous(), valid.sum(1).tolist(), scale
        )
    keys = torch.baddbmm(offset[None], patches.mT, weight.expand(len(patches), -1, -1)).relu_().to(queries.dtype)
    return F.scaled_dot_product_attention(queries[:, None], keys[:, None], keys[:, None], scale=scale)[:, 0]


class _AttendMap(torch.autograd.Function):
    """`attend_map` image by image, so that an image's keys and scores stay in a CPU's cache.

    Going back, the keys are computed again and the attention is read back. Keys lie as (C, P): long rows multiply faster.
    """

    @staticmethod
    def forward(
        ctx, queries: Tensor, patches: Tensor, weight: Tensor, offset: Tensor, lengths: list[int], scale: float
    ):
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
    def backward(ctx, gradient: Tensor):
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
