"""Any text encoder of the transformers library, fed packed: the tokens of all captions as one row, so that padding costs nothing.

The library lets an attention be registered by name. Ours attends within each caption (`packing.py`); everything else in an encoder
works token by token, and positions are given. Whether that holds for an encoder (it does not where attention is relative to
positions, or causal, or the encoder's own) is found out by comparing with the library's padded result when the encoder is loaded;
an encoder that does not agree is run padded, as the library does it.

The library takes seconds to import: this module does so only where such an encoder is made.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.console import UserError
from model.encoder_folder import read_object
from model.library_tokenizer import LibraryTokenizer
from model.packing import Packing

INSTALL = "pip install --group transformers"
PACKED = "packed_captions"
_CLOSE = 1e-3  # of the hidden states; rounding is a hundred times less, another result a hundred times more
#: Of an attention's keys, as its parameters are called.
_KEY_BIAS = re.compile(r"(^|[._])k(ey)?(_lin|_proj)?\.bias$")
_packing = threading.local()


@dataclass(frozen=True)
class LibraryConfig:
    """What an encoder is made from again.

    Attributes:
        library: the library's own configuration of it. hidden_size: H. packed: whether tokens may be packed.
        first_position: position number of a caption's first token; of one that is not packed, at most this.
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
        self.model = _new_model(config.library) if model is None else model
        if config.packed:
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


def load_library_encoder(folder: Path, *, dropout: float) -> LibraryEncoder:
    """An encoder with its published weights, in float32.

    Args:
        folder: as the library saves it; nothing outside of it is read, and no code in it is run.
        dropout: replaces the published dropout.

    Raises:
        UserError: the library is not there, cannot read the folder, or the model does not read text alone.
    """
    transformers = _library()
    named = "model_type" in read_object(folder / "config.json")
    try:
        reader = transformers.AutoConfig if named else transformers.BertConfig  # the first published files do not say
        config = reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = getattr(config, "text_config", config)  # of a model that sees too
        for key, value in config.to_dict().items():
            if "dropout" in key and "classif" not in key and isinstance(value, float | int):
                setattr(config, key, dropout)
        options = {"config": config, "dtype": torch.float32, "local_files_only": True}
        # Not to load them anyway, but to be told which they are.
        options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        with _quiet(transformers):
            model, found = _class_of(config).from_pretrained(folder, **options)
    except Exception as error:  # the library raises nearly anything on what it cannot read
        raise UserError(
            f"text.pretrained: the transformers library cannot load {folder} as a text encoder "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error
    wrong = {
        "is missing": [key for key in found["missing_keys"] if "pooler" not in key],
        "has another shape": list(found["mismatched_keys"]),
        "is of a layer too many": _layers_left_over(model, found["unexpected_keys"]),
    }
    for what, keys in wrong.items():
        if keys:
            some = ", ".join(sorted(map(str, keys))[:3])
            raise UserError(
                f"text.pretrained: the weights in {folder} do not fit its config.json: {some} {what}; copy the folder again"
            )
    model = _text_part(model)
    return LibraryEncoder(_examined(model, folder), model)


def _layers_left_over(model: nn.Module, keys: Iterable[str]) -> list[str]:
    """Those of weights that found no place that differ in a number from one that did; heads of a pretraining do not."""

    def unnumbered(key: str) -> str:
        return re.sub(r"\d+", "#", key.removeprefix(f"{model.base_model_prefix}."))

    known = {unnumbered(key) for key in model.state_dict()}
    return [key for key in keys if unnumbered(key) in known]


def load_library_tokenizer(folder: Path, *, max_tokens: int) -> LibraryTokenizer:
    """The tokenizer that an encoder was published with. Masked words become its mask token, or for want of one its unknown token.

    Raises:
        UserError: the library cannot make it of the files in the folder, or not as one that runs without the library.
    """
    transformers = _library()
    try:
        with _quiet(transformers):
            given = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        mask = given.mask_token_id if given.mask_token_id is not None else given.unk_token_id
        longest = min(max_tokens, given.model_max_length)
        return LibraryTokenizer(given.backend_tokenizer, mask=mask, padding=given.pad_token_id, max_tokens=longest)
    except Exception as error:  # the library raises nearly anything on what it cannot read
        raise UserError(
            f"text.pretrained: the tokenizer in {folder} cannot be used ({type(error).__name__}: {_first_line(error)}); a folder with "
            "the encoder's tokenizer.json is needed"
        ) from error


# Finding out how an encoder may be run.


def _examined(model: nn.Module, folder: Path) -> LibraryConfig:
    """How the encoder is to be run; parameters that its hidden states do not depend on (a pooler) are frozen."""
    size, padding = getattr(model.config, "vocab_size", 2), getattr(model.config, "pad_token_id", None)
    # Longer than what a token looks at, where that is said.
    longest = (getattr(model.config, "sliding_window", None) or 4) + 4
    ids = torch.randint(size, (2, longest), generator=torch.Generator().manual_seed(0))
    if padding is not None:
        ids = torch.where(ids == padding, (padding + 1) % size, ids)
    valid = torch.arange(longest) < torch.tensor([[longest], [4]])
    ids = ids.where(valid, torch.tensor(0 if padding is None else padding))
    packing = Packing.of(valid.sum(1), longest, ids.device)
    model.eval()
    try:
        padded = padded_states(model, ids, valid)
        padded.square().sum().backward()
        with torch.no_grad():
            alone = padded_states(model, ids[1:, :4], valid[1:, :4])
    except Exception as error:  # what models raise that want other inputs
        raise UserError(
            f"text.pretrained: the {model.config.model_type!r} model in {folder} does not read text alone "
            f"({type(error).__name__}: {_first_line(error)}); choose a text encoder"
        ) from error
    padded = padded.detach()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    _freeze_key_biases(model, ids, valid, padded)
    if not torch.isfinite(padded).all():
        raise UserError(
            f"text.pretrained: {folder} gives values that are not finite: its weights or config.json are damaged; copy it again"
        )
    if padded.ndim != 3 or not _same(alone[0], padded[1, :4]):
        raise UserError(
            f"text.pretrained: what the {model.config.model_type!r} model in {folder} makes of a caption depends on the captions "
            "beside it (padding is not masked); choose another encoder"
        )
    published = {"library": _plain(model.config), "hidden_size": padded.shape[2]}
    firsts = (0,) if padding is None else (0, padding + 1)
    for first in firsts:
        try:
            with attending(model, PACKED), torch.no_grad():
                rows = _packed(model, ids, packing, first)
        except Exception:  # an encoder that cannot be packed may raise anything
            rows = None
        if rows is not None and _same(rows, padded[valid]):
            return LibraryConfig(**published, packed=True, first_position=first)
    # It counts positions by itself, from one of these.
    return LibraryConfig(**published, packed=False, first_position=firsts[-1])


def _freeze_key_biases(model: nn.Module, ids: Tensor, valid: Tensor, padded: Tensor) -> None:
    """Where the softmax takes the shift of a key's bias back, its gradient is rounding, which AdamW would turn into steps."""
    biases = [bias for name, bias in model.named_parameters() if bias.requires_grad and _KEY_BIAS.search(name)]
    with torch.no_grad():
        before = [bias.clone() for bias in biases]
        for bias in biases:
            bias.add_(1.0)
        without_effect = _same(padded_states(model, ids, valid), padded)
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


# The library.


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"text.pretrained: this encoder needs the transformers library, which is not installed; {INSTALL}"
        ) from error
    transformers.AttentionInterface.register(PACKED, _attend)
    transformers.AttentionMaskInterface.register(PACKED, lambda *_, **__: None)
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its report of weights that are left over; what is missing is told by `load_library_encoder`."""
    logging = transformers.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _class_of(config: Any) -> Any:
    transformers = _library()
    encoders = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING
    return transformers.AutoModelForTextEncoding if type(config) in encoders else transformers.AutoModel


def _new_model(config: Mapping[str, Any]) -> nn.Module:
    transformers = _library()
    own = transformers.AutoConfig.for_model(**config)
    return _text_part(_class_of(own).from_config(own))


def _text_part(model: nn.Module) -> nn.Module:
    """What gives the hidden states: of a model with a decoder its encoder, and no pooler, which works on the first token alone."""
    inner = getattr(model, "encoder", None)
    if isinstance(inner, type(model).__mro__[1]) and hasattr(inner, "config"):
        return inner
    if "add_pooling_layer" in inspect.signature(type(model)).parameters:
        model.pooler = None
    return model


def _as_named_now(encoder: LibraryEncoder, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Version 0.1 wrote a BERT's weights without `model.`; poolers were written later, and are left out."""
    for key in [key for key in state if key.startswith(prefix)]:
        rest = key.removeprefix(prefix).removeprefix("model.")
        value = state.pop(key)
        if not rest.startswith("pooler."):
            state[f"{prefix}model.{rest}"] = value


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON has it, without the place it was read from."""
    content = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in content.items() if key not in ("_name_or_path", "transformers_version")}


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]
