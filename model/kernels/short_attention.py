"""Scaled dot-product attention of short texts.

    attend = softmax(q k^T / sqrt(D)) v      over the valid tokens, for each head

On a CPU torch's fused kernel takes four times as long for texts of a dozen tokens as the formula itself, and torch's softmax of rows
that short three times as long as its steps, each over all texts at once (`_stepwise`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers import at_least_single

_FEW_TOKENS = 48  # from 64 on, torch's fused attention is as fast as step by step


def reference(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, *, dropout: float = 0.0) -> Tensor:
    """The formula, as `attend`."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[3])
    weights = F.dropout(scores.masked_fill(~_for_heads(valid), -math.inf).softmax(dim=3), dropout)
    return torch.einsum("bhqk,bkhd->bqhd", weights.to(value.dtype), value)


def attend(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, *, dropout: float = 0.0) -> Tensor:
    """What each token reads from the valid ones of its text.

    Args:
        query, key, value: (B, T, heads, D) floats.
        valid: (B, T) bool, which tokens may be attended to, or (B, T, T), by each; at least one in each row.
        dropout: share of the attention that is dropped.

    Returns:
        (B, T, heads, D).
    """
    if query.device.type == "cpu" and query.shape[1] <= _FEW_TOKENS:
        if torch.is_grad_enabled() or dropout or torch.compiler.is_compiling():
            return reference(query, key, value, valid, dropout=dropout)
        return _stepwise(query, key, value, valid)
    return _fused(query, key, value, valid, dropout=dropout)


def _stepwise(query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
    """Without a way back: every step in place. Scores are at least float32, as they are under autocast."""
    scores = at_least_single(torch.einsum("bqhd,bkhd->bhqk", query, key)).div_(math.sqrt(query.shape[3]))
    if not valid.all():
        scores.masked_fill_(~_for_heads(valid), -math.inf)
    scores.sub_(scores.amax(dim=3, keepdim=True)).exp_()
    scores.div_(scores.sum(dim=3, keepdim=True))
    return torch.einsum("bhqk,bkhd->bqhd", scores.to(value.dtype), value)


def _fused(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, *, dropout: float = 0.0) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    mask = _for_heads(valid)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout).transpose(1, 2)


def _for_heads(valid: Tensor) -> Tensor:
    """(B, T) or (B, T, T) -> what broadcasts to (B, heads, T, T)."""
    return valid[:, None, None] if valid.ndim == 2 else valid[:, None]
