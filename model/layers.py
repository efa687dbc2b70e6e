"""Small building blocks of 3SHNet: batch-normalised MLP, concept embedding, sinusoidal positions, normalisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.parallel import BatchNorm


class MLP(nn.Module):
    """Linear -> BatchNorm -> ReLU -> Linear over the last dimension (reference: `lib/modules/mlp.py`, two layers).

    In training mode the batch statistics run over ALL rows of the input (of all processes), padding included, as in
    the reference. The reference also builds a BatchNorm for the output (`bns.1`) which it never applies; it has no counterpart here.
    """

    def __init__(self, in_size: int, hidden_size: int, out_size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_size, hidden_size)
        # The norm behind it takes a shift back: the gradient is rounding, which AdamW would blow up to full steps, other ones
        # for every number of processes or threads.
        self.hidden.bias.requires_grad_(False)
        self.norm = BatchNorm(hidden_size)
        self.output = nn.Linear(hidden_size, out_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in_size) -> (..., out_size)."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        rows = self.output(torch.relu(self.norm(self.hidden(rows))))
        return rows.view(*inputs.shape[:-1], -1)


class ConceptEmbedding(nn.Module):
    """Linear -> ReLU -> Dropout -> LayerNorm: turns amounts of each category into an embedding."""

    def __init__(self, num_categories: int, embed_size: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(num_categories, embed_size)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_size)

    def forward(self, amounts: Tensor) -> Tensor:
        """(..., num_categories) -> (..., embed_size)."""
        return self.norm(self.dropout(torch.relu(self.linear(amounts))))


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """(length, width) float32: sine in the even and cosine in the odd columns, frequencies 10000^(-2i/width).

    Source: "Attention is all you need", section 3.5; used by the reference's pooling and spatial branch.
    """
    if width % 2:
        raise ValueError(f"sinusoidal positions need an even width, not {width}")
    position = torch.arange(length, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    angles = position * frequency
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)


def at_least_single(inputs: Tensor) -> Tensor:
    """float32, but float64 stays as it is: a network in float64 computes everything in it."""
    return inputs if inputs.dtype == torch.float64 else inputs.float()


def factor_type(device: torch.device, usual: torch.dtype) -> torch.dtype:
    """What the factors of products are rounded to on a device: `usual`, but under autocast that one's."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else usual


def l2_normalise(inputs: Tensor, eps: float = 1e-8) -> Tensor:
    """x / (||x|| + eps) over the last dimension, in float32 at least."""
    inputs = at_least_single(inputs)
    # The tiny number: a root's slope at 0 is infinite, and padding may be all zeros.
    return inputs / (inputs.pow(2).sum(dim=-1, keepdim=True).clamp(min=1e-30).sqrt() + eps)
