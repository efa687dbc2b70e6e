"""The text side: captions -> states of their tokens, by BERT or another transformer, or by a GRU over words -> one embedding, or one a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from core.console import UserError
from model.layers import at_least_single, l2_normalise
from model.pooling import GeneralizedPooling
from model.small_encoder import SmallConfig, SmallEncoder

if TYPE_CHECKING:
    from model.library_encoder import LibraryEncoder


class CaptionEncoder(nn.Module):
    """Token ids -> states of the tokens -> generalised pooling over all of them with start and end -> normalised.

    Args:
        pool: (position size, hidden size) of the pooling; None: every token keeps an embedding of its own, as SCAN has it.
        normalise: to length 1; published options (`no_txtnorm`) switch it off.
    """

    def __init__(self, pool: tuple[int, int] | None, normalise: bool) -> None:
        super().__init__()
        self.pool = None if pool is None else GeneralizedPooling(*pool)
        self.normalise = normalise

    def states(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, E)."""
        raise NotImplementedError

    def forward(self, token_ids: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) integers, (B, T) bool, (B,) in host memory -> (B, E) float32; without pooling (B, T, E), zeros behind
        the lengths."""
        states = self.states(token_ids, lengths)
        found = states * valid[:, :, None] if self.pool is None else self.pool(states, valid, lengths)
        return l2_normalise(found) if self.normalise else at_least_single(found)

    def published_parameters(self) -> Iterator[nn.Parameter]:
        """Those that may come from a published encoder: they learn at `training.text_lr_factor`."""
        yield from ()

    def compile_layers(self) -> None:
        """Use torch.compile where that pays."""

    def config(self) -> dict[str, Any]:
        """What `model.build` makes it from again. What every encoder had in the first version is not said."""
        pool = self.pool and {
            "pool_position_size": self.pool.position_size,
            "pool_hidden_size": self.pool.gru.hidden_size,
        }
        return (pool or {"pool": False}) | ({} if self.normalise else {"normalise": False})


class TextEncoder(CaptionEncoder):
    """BERT, or another transformer, and a projection.

    Args:
        bert: gives the hidden states. embed_size: width E of the embedding.
        pool_position_size, pool_hidden_size: sizes of the pooling's position encoding and GRU. pool: False: none.
    """

    def __init__(
        self,
        bert: SmallEncoder | LibraryEncoder,
        embed_size: int,
        *,
        pool_position_size: int = 32,
        pool_hidden_size: int = 32,
        pool: bool = True,
        normalise: bool = True,
    ) -> None:
        super().__init__(None, normalise)
        self.bert = bert
        self.projection = nn.Linear(bert.config.hidden_size, embed_size)
        if pool:
            self.pool = GeneralizedPooling(pool_position_size, pool_hidden_size)

    def states(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        return self.projection(self.bert(token_ids, lengths))

    def published_parameters(self) -> Iterator[nn.Parameter]:
        return self.bert.parameters()

    def compile_layers(self) -> None:
        """Use torch.compile for what the encoder says."""
        for layer in self.bert.compiled():
            layer.compile(dynamic=True)

    def config(self) -> dict[str, Any]:
        return {**self.bert.config.to_dict(), "embed_size": self.projection.out_features, **super().config()}


class WordEncoder(CaptionEncoder):
    """Words' own embeddings and a GRU over them, both ways: a word's state is the mean of the two.

    Source: SCAN's and VSE-infinity's `EncoderText`. A GRU of one direction (SCAN without `--bi_gru`) is its own mean.
    """

    def __init__(
        self,
        words: int,
        embed_size: int,
        *,
        word_size: int = 300,
        bidirectional: bool = True,
        pool_position_size: int = 32,
        pool_hidden_size: int = 32,
        pool: bool = True,
        normalise: bool = True,
    ) -> None:
        super().__init__((pool_position_size, pool_hidden_size) if pool else None, normalise)
        self.embedding = nn.Embedding(words, word_size)
        self.gru = nn.GRU(word_size, embed_size, batch_first=True, bidirectional=bidirectional)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def states(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(token_ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=token_ids.shape[1])
        return states.unflatten(2, (-1, self.gru.hidden_size)).mean(2)

    def config(self) -> dict[str, Any]:
        sizes = {"words": self.embedding.num_embeddings, "word_size": self.embedding.embedding_dim}
        sizes |= {"embed_size": self.gru.hidden_size, "bidirectional": self.gru.bidirectional}
        return {"kind": "bigru", **sizes, **super().config()}


class NoText(CaptionEncoder):
    """In place of a text encoder that a checkpoint of an image encoder alone does not hold."""

    def __init__(self) -> None:
        super().__init__(None, True)

    def states(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        raise UserError("the network was loaded from a checkpoint without a text encoder: it encodes images alone")

    def config(self) -> dict[str, Any]:
        return {"kind": "none"}


def caption_encoder(config: Mapping[str, Any]) -> CaptionEncoder:
    """An encoder with fresh weights of the shape that `CaptionEncoder.config` says."""
    config = dict(config)
    kind = config.pop("kind", "bert")
    if kind != "bert":
        return WordEncoder(**config) if kind == "bigru" else NoText()
    outer = ("embed_size", "pool_position_size", "pool_hidden_size", "pool", "normalise")
    given = {key: config.pop(key) for key in outer if key in config}
    return TextEncoder(encoder_of(config), **given)


def encoder_of(sizes: Mapping[str, Any]) -> SmallEncoder | LibraryEncoder:
    """An encoder with random weights, from what its `config.to_dict()` gave. The library is imported for its own only."""
    former = "activation" in sizes  # version 0.1 described every encoder so, and all were BERTs
    if not former and "library" not in sizes:
        return SmallEncoder(SmallConfig(**sizes))
    from model.library_encoder import LibraryConfig, LibraryEncoder, bert_config

    return LibraryEncoder(bert_config(**sizes) if former else LibraryConfig(**sizes))
