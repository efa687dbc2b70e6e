"""The text encoder that starts from random weights: BERT's formula, small, without the transformers library.

    states = LN(word + position + type)
    states = LN(states + W_o attend(W_q states, W_k states, W_v states))
    states = LN(states + W_2 gelu(W_1 states))              these two in each layer

Published encoders, BERT too, are run by that library (`library_encoder.py`). Importing it takes longer than importing torch, in
every job that embeds a caption; this is for those that need nothing else of it. Parameters are named as in published BERTs, and
weights are drawn as BERT's were: normal(0, 0.02), zero biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.packing import Packing


@dataclass(frozen=True)
class SmallConfig:
    """Sizes; `heads` attention heads share `hidden_size`."""

    vocabulary_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    max_positions: int
    dropout: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class SmallEncoder(nn.Module):
    """Token ids -> last hidden states."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.config, size = config, config.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocabulary_size, size, padding_idx=0),
                "position_embeddings": nn.Embedding(config.max_positions, size),
                "token_type_embeddings": nn.Embedding(2, size),  # a caption is one segment: all are of type 0
                "LayerNorm": nn.LayerNorm(size, eps=1e-12),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.layers))})
        self.apply(_initialise)

    def compiled(self) -> Iterator[nn.Module]:
        """What torch.compile is for: layer by layer, because all of them then share what was compiled for one."""
        yield from self.encoder["layer"]

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Last hidden states of captions' own tokens, zeros elsewhere.

        Args:
            token_ids: (B, T) integers. lengths: (B,) integers in host memory, the tokens of each caption.

        Returns:
            (B, T, hidden_size).
        """
        longest = token_ids.shape[1]
        packing = Packing.of(lengths, longest, token_ids.device)
        words, positions, types = (self.embeddings[f"{name}_embeddings"] for name in ("word", "position", "token_type"))
        states = self.embeddings["LayerNorm"](words(token_ids) + (positions.weight[:longest] + types.weight[0]))
        states = packing.pack(F.dropout(states, self.config.dropout, self.training))
        for layer in self.encoder["layer"]:
            states = layer(states, packing)
        return packing.spread(states)


class _Layer(nn.Module):
    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.heads, self.dropout, size = config.heads, config.dropout, config.hidden_size
        attention = nn.ModuleDict({name: nn.Linear(size, size) for name in ("query", "key", "value")})
        attention["key"].bias.requires_grad_(False)  # the softmax takes its shift back: its gradient is rounding
        self.attention = nn.ModuleDict({"self": attention, "output": _dense_and_norm(size, size)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size, config.intermediate_size)})
        self.output = _dense_and_norm(config.intermediate_size, size)

    def forward(self, states: Tensor, packing: Packing) -> Tensor:
        """(N, hidden_size) -> the same."""
        query, key, value = (
            self.attention["self"][name](states).unflatten(1, (self.heads, -1)) for name in ("query", "key", "value")
        )
        read = packing.attend(query, key, value, dropout=self.dropout if self.training else 0.0).flatten(1)
        states = self._added(self.attention["output"], read, states)
        return self._added(self.output, F.gelu(self.intermediate["dense"](states)), states)

    def _added(self, output: nn.ModuleDict, found: Tensor, states: Tensor) -> Tensor:
        return output["LayerNorm"](F.dropout(output["dense"](found), self.dropout, self.training) + states)


def _dense_and_norm(in_size: int, size: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(in_size, size), "LayerNorm": nn.LayerNorm(size, eps=1e-12)})


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
