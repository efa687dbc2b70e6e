"""The text side: captions as word pieces -> BERT -> one embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from model.bert import Bert
from model.layers import l2_normalise
from model.pooling import GeneralizedPooling


class TextEncoder(nn.Module):
    """Token ids -> BERT -> projection -> generalised pooling over all tokens with [CLS] and [SEP] -> normalised.

    Args:
        bert: gives the hidden states. embed_size: width E of the embedding.
        pool_position_size, pool_hidden_size: sizes of the pooling's position encoding and GRU.
    """

    def __init__(self, bert: Bert, embed_size: int, *, pool_position_size: int, pool_hidden_size: int) -> None:
        super().__init__()
        self.bert = bert
        self.projection = nn.Linear(bert.config.hidden_size, embed_size)
        self.pool = GeneralizedPooling(pool_position_size, pool_hidden_size)

    def forward(self, token_ids: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) integers, (B, T) bool, (B,) in host memory -> (B, E) float32, normalised."""
        states = self.projection(self.bert(token_ids, token_ids != 0, lengths))
        return l2_normalise(self.pool(states, valid, lengths))

    def published_parameters(self) -> Iterator[nn.Parameter]:
        """Those that may come from a published encoder: they learn at `training.text_lr_factor`."""
        return self.bert.parameters()

    def compile_layers(self) -> None:
        """Layer by layer, because all of them then share what was compiled for one."""
        for layer in self.bert.encoder["layer"]:
            layer.compile(dynamic=True)

    def config(self) -> dict[str, Any]:
        """What `model.build` makes it from again."""
        return {
            **self.bert.config.to_dict(),
            "embed_size": self.projection.out_features,
            "pool_position_size": self.pool.position_size,
            "pool_hidden_size": self.pool.gru.hidden_size,
        }
