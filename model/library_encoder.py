"""Any text encoder of the transformers library, fed packed: the tokens of all captions as one row, so that padding costs nothing.

The library lets an attention be registered by name. Ours attends within each caption (`packing.py`); everything else in an encoder
works token by token, and positions are given. Whether that holds for an encoder (it does not where attention is relative to
positions, or causal, or the encoder's own) is found out by comparing with the library's padded result when the encoder is loaded;
an encoder that does not agree is run padded, as the library does it.

The library takes seconds to import: this module does so only where such an encoder is made.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.console import UserError, first_line
from core.hub import why_not
from core.parameters import left_over
from model.encoder_folder import read_object
from model.library import class_of, library, new_model, plain, quiet, text_part
from model.packing import Packing

PACKED = "packed_captions"
_CLOSE = 1e-3  # of the hidden states; rounding is a hundred times less, another result a hundred times more
_ROUNDING = 1e-2  # of a gradient
#: Of an attention's keys, as its parameters are called.
_KEY_BIAS = re.compile(r"(^|[._])k(ey)?(_lin|_proj)?\.bias$")
_packing = threading.local()


@dataclass(frozen=True)
class LibraryConfig:
    """What an encoder is made from again.

    Attributes:
        library: the library's own configuration of it. hidden_size: H. packed: whether tokens may be packed.
        first_position: position number of a caption's first token, where they are packed.
    """

    library: Mapping[str, Any]
    hidden_size: int
    packed: bool
    first_position: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "library": dict(self.library),
            "hidden_size": self.hidden_size,
            "packed": self.packed,
            "first_position": self.first_position,
        }

    @property
    def vocabulary_size(self) -> int:
        return self.library["vocab_size"]

    @property
    def max_positions(self) -> int | None:
        """Most tokens that there are positions for; None: any number."""
        positions = self.library.get("max_position_embeddings")
        return positions - self.first_position if isinstance(positions, int) and positions > 0 else None


class LibraryEncoder(nn.Module):
    """Token ids -> last hidden states, by a model of the library."""

    def __init__(self, config: LibraryConfig, model: nn.Module | None = None) -> None:
        """model: the library's; None: one with random weights."""
        super().__init__()
        self.config = config
        self.model = new_model(config.library) if model is None else model
        if config.packed:
            _register()
            _set_attention(self.model, PACKED)
        self.register_load_state_dict_pre_hook(_as_named_now)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Last hidden states of captions' own tokens, zeros elsewhere.

        Args:
            token_ids: (B, T) integers, whatever they are behind a caption's end.
            lengths: (B,) integers in host memory, the tokens of each caption.

        Returns:
            (B, T, hidden_size).
        """
        packing = Packing.of(lengths, token_ids.shape[1], token_ids.device)
        if not self.config.packed:
            return padded_states(self.model, token_ids, packing.valid) * packing.valid[:, :, None]
        return packing.spread(_packed(self.model, token_ids, packing, self.config.first_position))

    @property
    def pieces(self) -> int | None:
        """How many token ids it knows; None: it does not look them up in a table."""
        return _pieces(self.model)

    def compiled(self) -> Iterator[nn.Module]:
        """Its layers, where they are fed packed."""
        if self.config.packed:
            from transformers.modeling_layers import GradientCheckpointingLayer  # what the library makes every layer of

            yield from (part for part in self.model.modules() if isinstance(part, GradientCheckpointingLayer))


def bert_config(
    *,
    vocabulary_size: int,
    hidden_size: int = 768,
    layers: int = 12,
    heads: int = 12,
    intermediate_size: int = 3072,
    max_positions: int = 512,
    token_types: int = 2,
    activation: str = "gelu",
    layer_norm_eps: float = 1e-12,
    dropout: float = 0.1,
) -> LibraryConfig:
    """That of a BERT of these sizes, BERT base unless said, as version 0.1 named them."""
    library = {
        "model_type": "bert",
        "vocab_size": vocabulary_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": max_positions,
        "type_vocab_size": token_types,
        "hidden_act": activation,
        "layer_norm_eps": layer_norm_eps,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    return LibraryConfig(library, hidden_size, packed=True)


def load_library_encoder(folder: Path, *, dropout: float, max_tokens: int = 512) -> tuple[LibraryEncoder, int]:
    """An encoder with its published weights, in float32, and how many tokens of a caption it reads.

    Args:
        folder: as the library saves it; nothing outside of it is read, and no code in it is run.
        dropout: replaces the published dropout. Whole layers are never dropped.
        max_tokens: the longest captions that there will be; encoders with fewer positions read fewer.

    Raises:
        UserError: the library is not there, cannot read the folder, or the model does not read text alone.
    """
    transformers = library()
    named = "model_type" in read_object(folder / "config.json")
    try:
        reader = transformers.AutoConfig if named else transformers.BertConfig  # the first published files do not say
        whole = reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = getattr(whole, "text_config", whole)  # of a model that sees too
        for key, value in config.to_dict().items():
            if (
                "drop" in key
                and "classif" not in key
                and isinstance(value, float | int)
                and not isinstance(value, bool)
            ):
                setattr(config, key, 0.0 if re.search("layer_?drop|drop_?path", key) else dropout)
        # How they were trained or run elsewhere: with less memory, by kernels that may not be here.
        for key in ("gradient_checkpointing", "chunk_size_feed_forward"):
            if getattr(config, key, 0):
                setattr(config, key, 0)
        config._attn_implementation = None
        kind = class_of(config) or transformers.AutoModel
        within = config is not whole and hasattr(
            kind, "_from_config"
        )  # the library finds its weights as the whole's alone
        options = {"config": whole if within else config, "dtype": torch.float32, "local_files_only": True}
        # Not to load them anyway, but to be told which they are.
        options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        with quiet(transformers):
            loaded, found = (transformers.AutoModel if within else kind).from_pretrained(folder, **options)
        model = text_part(loaded.text_model if within else loaded)
    except Exception as error:  # the library raises nearly anything on what it cannot read
        raise UserError(
            f"text.pretrained: the transformers library cannot load {folder} as a text encoder ({why_not(error)})"
        ) from error
    wrong = {
        "is missing": [
            key
            for key in found["missing_keys"]
            if "pooler" not in key and (not within or key.startswith("text_model."))
        ],
        "has another shape": [name for name, *_ in found["mismatched_keys"]],
        "is of a layer too many": left_over(loaded.state_dict(), found["unexpected_keys"], loaded.base_model_prefix),
    }
    for what, keys in wrong.items():
        if keys:
            some = ", ".join(sorted(map(str, keys))[:3])
            raise UserError(
                f"text.pretrained: the weights in {folder} do not fit its config.json: {some} {what}; copy the folder again"
            )
    config, longest = _examined(model, folder, max_tokens)
    decodes = model is loaded and getattr(model.config, "is_encoder_decoder", False)
    if decodes or class_of(transformers.AutoConfig.for_model(**config.library)) is None:
        raise UserError(
            f"text.pretrained: the {model.config.model_type!r} model in {folder} has a decoder, and the library cannot make its encoder "
            "alone; choose another encoder"
        )
    return LibraryEncoder(config, model), longest


# Finding out how an encoder may be run.


def _examined(model: nn.Module, folder: Path, max_tokens: int) -> tuple[LibraryConfig, int]:
    """How the encoder is to be run, and the most tokens of a caption; what its hidden states do not depend on is frozen."""
    model.eval()
    try:
        ids, valid, padded = _long_and_short(model, max_tokens)
        short = padded_states(model, ids[:, :_FEW], valid[:, :_FEW])
        (short * torch.randn(short.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        with torch.no_grad():
            alone = padded_states(model, ids[1:, :_FEWER], valid[1:, :_FEWER])
    except Exception as error:  # what models raise that want other inputs
        raise UserError(
            f"text.pretrained: the {model.config.model_type!r} model in {folder} does not read text alone "
            f"({type(error).__name__}: {first_line(error)}); choose a text encoder"
        ) from error
    _freeze_what_is_not_read(model, ids[:, :_FEW], valid[:, :_FEW], short.detach())
    if not torch.isfinite(padded).all():
        raise UserError(
            f"text.pretrained: {folder} gives values that are not finite: its weights or config.json are damaged; copy it again"
        )
    longest, padding = ids.shape[1], _padding(model)
    published = {"library": plain(model.config), "hidden_size": padded.shape[-1]}
    independent = padded.ndim == 3 and _same(alone[0], padded[1, :_FEWER])
    if independent:
        said = _positions(model) or longest
        for first in (0,) if padding is None or longest + padding >= said else (0, padding + 1):
            if _packs(model, ids, valid, padded[valid], first):
                return LibraryConfig(**published, packed=True, first_position=first), longest
        with torch.no_grad():
            independent = _same(padded_states(model, ids, valid), padded)
    if not independent:
        raise UserError(
            f"text.pretrained: what the {model.config.model_type!r} model in {folder} makes of a caption depends on the captions "
            "beside it or before it (padding is not masked); choose another encoder"
        )
    return LibraryConfig(**published, packed=False), longest


_FEW, _FEWER = 8, 4  # tokens


@torch.no_grad()
def _packs(model: nn.Module, ids: Tensor, valid: Tensor, expected: Tensor, first: int) -> bool:
    """Whether captions that are packed have the states (N, H) that are expected; first: position of their first tokens."""
    _register()
    lengths = valid.sum(1)
    try:
        with attending(model, PACKED):
            return _same(
                _packed(model, ids, Packing.of(lengths, ids.shape[1], ids.device), first), expected
            ) and _long_rows(model, ids, lengths, first)
    except Exception:  # an encoder that cannot be packed may raise anything
        return False


def _long_rows(model: nn.Module, ids: Tensor, lengths: Tensor, first: int) -> bool:
    """Whether a row may have more tokens than there are positions: tried by one without numbers, if the model lets itself be."""
    copies = 1 + (_positions(model) or 0) // int(lengths.sum())
    ids, lengths = ids.repeat(copies, 1), lengths.repeat(copies)
    try:
        with torch.device("meta"):
            twin = new_model(plain(model.config)).eval()
        with attending(twin, PACKED):
            _packed(twin, ids.to("meta"), Packing.of(lengths, ids.shape[1], torch.device("meta")), first)
    except Exception:  # for want of numbers too
        _packed(model, ids, Packing.of(lengths, ids.shape[1], ids.device), first)
    return True


def _positions(model: nn.Module) -> int | None:
    """As its configuration says; None: as many as wanted, or under another name."""
    found = getattr(model.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _padding(model: nn.Module) -> int | None:
    found = getattr(model.config, "pad_token_id", None)
    return found if isinstance(found, int) else None


def _pieces(model: nn.Module) -> int | None:
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (NotImplementedError, AttributeError):  # it has no table
        return None


@torch.no_grad()
def _long_and_short(model: nn.Module, max_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of a caption as long as can be and a short one, which of them are theirs, and their states.

    How long that is is tried: configurations call their number of positions by many names, and some count from the padding on.
    What a caption's length or its neighbour's decides about (windows, positions that scale) shows in the longest.
    """
    size, padding = _pieces(model) or getattr(model.config, "vocab_size", 2), _padding(model)
    most = min(max_tokens, _positions(model) or max_tokens)
    named = (value for key, value in model.config.to_dict().items() if "position" in key and type(value) is int)
    lengths = {min(most, n - less) for n in (*named, most) for less in (0, 1 + (padding or 0))}
    for longest in sorted((n for n in lengths if n >= _FEWER), reverse=True):
        ids = torch.randint(size, (2, longest), generator=torch.Generator().manual_seed(0))
        if padding is not None:
            ids = torch.where(ids == padding, (padding + 1) % size, ids)
        mask = getattr(model.config, "mask_token_id", None)
        if isinstance(mask, int) and mask < size:
            ids[1, 1] = mask  # some weigh a text by how much of it is masked
        valid = torch.arange(longest) < torch.tensor([[longest], [_FEWER]])
        ids = ids.where(valid, torch.tensor(padding or 0))
        try:
            return ids, valid, padded_states(model, ids, valid)
        except Exception as error:  # there are fewer positions, if this is a text encoder at all
            fault = error
    raise fault


def _freeze_what_is_not_read(model: nn.Module, ids: Tensor, valid: Tensor, states: Tensor) -> None:
    """Parameters without the gradients that were just made (a pooler), and biases of keys whose shift the softmax takes back.

    The latter's gradient is rounding, which AdamW would turn into steps. Both must show it: of weights that were just drawn little
    has an effect, and where attention is all on one token, little has a gradient.
    """
    parameters = dict(model.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    biases = []
    for name, parameter in parameters.items():
        parameter.grad = None
        parameter.requires_grad_(name in gradients)
        weight = gradients.get(f"{name.removesuffix('bias')}weight")
        if name in gradients and _KEY_BIAS.search(name) and weight is not None:
            small = gradients[name].abs().max() <= _ROUNDING * weight.abs().max()
            biases += [parameter] if small else []
    with torch.no_grad():
        before = [bias.clone() for bias in biases]
        for bias in biases:
            bias.add_(1.0)
        without_effect = _same(padded_states(model, ids, valid), states)
        for bias, values in zip(biases, before, strict=True):
            bias.copy_(values).requires_grad_(not without_effect)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _CLOSE * max(1.0, other.abs().max().item()))


def padded_states(model: nn.Module, token_ids: Tensor, valid: Tensor) -> Tensor:
    """(B, T, H) of all tokens (B, T), as the library runs its models; those that are `valid` (B, T) are read."""
    return model(input_ids=token_ids, attention_mask=valid.long()).last_hidden_state


def _packed(model: nn.Module, token_ids: Tensor, packing: Packing, first: int) -> Tensor:
    """(N, H)."""
    ids, positions = packing.pack(token_ids), packing.positions() + first
    with _packed_as(packing):
        return model(input_ids=ids[None], position_ids=positions[None]).last_hidden_state[0]


@contextmanager
def _packed_as(packing: Packing) -> Iterator[None]:
    """What `_attend` is to do it by: not every model hands arguments through to its attention."""
    _packing.now = packing
    try:
        yield
    finally:
        del _packing.now


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The library's attention interface: (1, heads, N, D) each -> (1, N, heads, D), each caption by itself."""
    heads, size = query.shape[1], query.shape[3]
    if scaling is not None and abs(scaling * size**0.5 - 1.0) > 1e-6:
        query = query * (scaling * size**0.5)
    query, key, value = (
        part[0].transpose(0, 1).repeat_interleave(heads // part.shape[1], dim=1)  # several may share keys and values
        if part.shape[1] != heads
        else part[0].transpose(0, 1)
        for part in (query, key, value)
    )
    return _packing.now.attend(query, key, value, window=sliding_window, dropout=dropout)[None], None


def _as_named_now(encoder: LibraryEncoder, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Version 0.1 wrote a BERT's weights without `model.`; poolers were written later, and are left out."""
    known = {name for name, _ in encoder.named_parameters()}  # some encoders cannot do without theirs
    for key in [key for key in state if key.startswith(prefix)]:
        rest = key.removeprefix(prefix).removeprefix("model.")
        value = state.pop(key)
        if not rest.startswith("pooler.") or f"model.{rest}" in known:
            state[f"{prefix}model.{rest}"] = value


def _register() -> None:
    transformers = library()
    transformers.AttentionInterface.register(PACKED, _attend)
    transformers.AttentionMaskInterface.register(PACKED, lambda *_, **__: None)


def _set_attention(model: nn.Module, name: str) -> None:
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = name


@contextmanager
def attending(model: nn.Module, name: str) -> Iterator[None]:
    """Have a model of the library attend in the way that is registered under this name."""
    before = model.config._attn_implementation
    _set_attention(model, name)
    try:
        yield
    finally:
        _set_attention(model, before)
