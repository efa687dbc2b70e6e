"""The BERT encoder in plain torch, up to the last hidden states; parameters are named as in published BERT checkpoints.

Source: "BERT: pre-training of deep bidirectional transformers"; equal to the `BertModel` of the transformers library
(tested against it), without that library's ten seconds of import in every job. The pooler, which works on [CLS] alone,
is left out: retrieval reads the hidden states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.console import UserError
from core.kinds import other_kind
from model.encoder_folder import WEIGHTS, check_config, read_object, tokenizer_settings
from model.kernels import short_attention

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
# Parts of published checkpoints that the last hidden states do not depend on.
UNUSED_KEYS = re.compile(r"^(pooler\.|cls\.|embeddings\.position_ids$)")
_PREFIX = re.compile(r"^bert\.")


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT; `heads` attention heads share `hidden_size`."""

    vocabulary_size: int
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    token_types: int = 2
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; known are {', '.join(ACTIVATIONS)}")

    def to_dict(self) -> dict:
        return asdict(self)


class Bert(nn.Module):
    """Token ids -> last hidden states. From-scratch weights are drawn as in BERT: normal(0, 0.02), zero biases."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.layers))})
        self.apply(_initialise)

    def compiled(self) -> Iterator[nn.Module]:
        """What torch.compile is for: layer by layer, because all of them then share what was compiled for one."""
        yield from self.encoder["layer"]

    def forward(self, token_ids: Tensor, valid: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Last hidden states.

        Args:
            token_ids: (B, T) integers. valid: (B, T) bool, which tokens may be attended to.
            lengths: (B,) integers in host memory, or None for T: of row i the first lengths[i] states are wanted. The
                others are zero and cost nothing, which halves the work for captions of unequal lengths.

        Returns:
            (B, T, hidden_size).
        """
        if token_ids.shape[1] > self.config.max_positions:
            raise ValueError(
                f"{token_ids.shape[1]} tokens exceed this text encoder's {self.config.max_positions} positions; "
                "lower text.max_tokens"
            )
        wanted = None
        states = self.embeddings(token_ids).flatten(0, 1)
        if lengths is not None and int(lengths.min()) < token_ids.shape[1]:
            wanted = (torch.arange(token_ids.shape[1]) < lengths[:, None]).flatten().nonzero().squeeze(1)
            wanted = wanted.to(states.device, non_blocking=True)
            states = states.index_select(0, wanted)
        for layer in self.encoder["layer"]:
            states = layer(states, valid, wanted)
        return spread(states, wanted, token_ids.shape)


def spread(rows: Tensor, wanted: Tensor | None, shape: torch.Size) -> Tensor:
    """(N, H) rows, belonging at the places `wanted` (N,) of B * T, or at all of them -> (B, T, H), zero elsewhere."""
    if wanted is not None:
        rows = rows.new_zeros(shape.numel(), rows.shape[1]).index_copy(0, wanted, rows)
    return rows.view(*shape, -1)


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.token_types, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, token_ids: Tensor) -> Tensor:
        # A caption is one segment: every token has type 0 and the positions count from 0.
        shared = self.position_embeddings.weight[: token_ids.shape[1]] + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(self.word_embeddings(token_ids) + shared))


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Dense(config.hidden_size, config.intermediate_size)
        self.output = _ResidualNorm(config.intermediate_size, config)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, states: Tensor, valid: Tensor, wanted: Tensor | None) -> Tensor:
        """states (N, H), the rows `wanted` of all B * T; valid (B, T) -> (N, H)."""
        states = self.attention(states, valid, wanted)
        return self.output(self.activation(self.intermediate.dense(states)), states)


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = nn.ModuleDict(
            {name: nn.Linear(config.hidden_size, config.hidden_size) for name in ("query", "key", "value")}
        )
        self.self["key"].bias.requires_grad_(False)  # the softmax takes its shift back: its gradient is rounding
        self.output = _ResidualNorm(config.hidden_size, config)
        self.heads, self.dropout = config.heads, config.dropout

    def forward(self, states: Tensor, valid: Tensor, wanted: Tensor | None) -> Tensor:
        query, key, value = (
            spread(self.self[name](states), wanted, valid.shape).unflatten(2, (self.heads, -1))
            for name in ("query", "key", "value")
        )
        context = short_attention.attend(query, key, value, valid, dropout=self.dropout if self.training else 0.0)
        context = context.reshape(valid.numel(), -1)
        return self.output(context if wanted is None else context.index_select(0, wanted), states)


class _Dense(nn.Module):
    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_size, out_size)


class _ResidualNorm(_Dense):
    def __init__(self, in_size: int, config: BertConfig) -> None:
        super().__init__(in_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, inputs: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(inputs)) + residual)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()


def config_from_weights(weights: dict[str, Tensor], *, heads: int | None = None, dropout: float = 0.1) -> BertConfig:
    """Read a BERT's sizes from its weights (keys as in `Bert`).

    The number of heads leaves no trace in the weights: unless given, 64 features per head, as in all published BERTs.
    """
    words = weights["embeddings.word_embeddings.weight"]
    layers = {int(match[1]) for key in weights if (match := re.match(r"encoder\.layer\.(\d+)\.", key))}
    hidden = words.shape[1]
    return BertConfig(
        vocabulary_size=words.shape[0],
        hidden_size=hidden,
        layers=max(layers, default=-1) + 1,
        heads=heads or max(1, hidden // 64),
        intermediate_size=weights["encoder.layer.0.intermediate.dense.bias"].shape[0] if layers else 4 * hidden,
        max_positions=weights["embeddings.position_embeddings.weight"].shape[0],
        token_types=weights["embeddings.token_type_embeddings.weight"].shape[0],
        dropout=dropout,
    )


def canonical_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published BERT weights under the keys of `Bert`: no `bert.` prefix, LayerNorm weight/bias, no unused parts."""
    renamed = {}
    for key, value in weights.items():
        key = (
            _PREFIX.sub("", key)
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias")
        )
        if not UNUSED_KEYS.match(key):
            renamed[key] = value
    return renamed


def load_pretrained(folder: str | Path, *, dropout: float = 0.1) -> tuple[Bert, Path, bool]:
    """A published BERT, the path of its vocabulary and whether it lower-cases its text.

    Args:
        folder: holds `config.json`, `vocab.txt` and the weights.
        dropout: replaces the published dropout.

    Raises:
        UserError: the folder does not hold a BERT, or its weights do not fit its config.
    """
    folder = Path(folder)
    published = read_object(folder / "config.json")
    check_config(published, folder)
    try:
        config = BertConfig(
            vocabulary_size=published["vocab_size"],
            hidden_size=published["hidden_size"],
            layers=published["num_hidden_layers"],
            heads=published["num_attention_heads"],
            intermediate_size=published["intermediate_size"],
            max_positions=published["max_position_embeddings"],
            token_types=published.get("type_vocab_size", 2),
            activation=published.get("hidden_act", "gelu"),
            layer_norm_eps=published.get("layer_norm_eps", 1e-12),
            dropout=dropout,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"text.pretrained: {folder / 'config.json'} does not describe a BERT: {error}") from error
    model = Bert(config)
    weights = canonical_weights(_read_weights(folder))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"text.pretrained: the weights in {folder} do not fit its config.json: {error}") from error
    return model, folder / "vocab.txt", tokenizer_settings(folder).lowercase


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"text.pretrained: {folder} lacks {WEIGHTS[0]} (or {WEIGHTS[1]})")
    if what := other_kind(path):
        raise UserError(f"text.pretrained: {path} is {what}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # damaged and hostile files raise errors of every kind; torch's own advice would run them
        raise UserError(
            f"text.pretrained: {path} is no file of weights alone, or is cut off ({type(error).__name__}); copy it again"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"text.pretrained: {path} holds something else than named weights")
    return content
