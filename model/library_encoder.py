"""Any text encoder of the transformers library, fed packed: the tokens of all captions as one row, so that padding costs nothing.

The library lets an attention be registered by name. Ours spreads the packed rows to (B, T), attends within each caption and packs
what comes out; everything else in an encoder works token by token, and positions are given. Whether that holds for an encoder
(it does not where attention is relative to positions, or causal, or the encoder's own) is found out by comparing with the
library's padded result when the encoder is loaded; an encoder that does not agree is run padded, as the library does it.

The library takes seconds to import: this module does so only where such an encoder is made.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.console import UserError
from model.bert import spread
from model.kernels import short_attention
from model.library_tokenizer import LibraryTokenizer

INSTALL = "pip install --group transformers"
PACKED = "packed_captions"
_CLOSE = 1e-3  # of the hidden states; rounding is a hundred times less, another result a hundred times more
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


class LibraryEncoder(nn.Module):
    """Token ids -> last hidden states, by a model of the library."""

    def __init__(self, config: LibraryConfig, model: nn.Module | None = None) -> None:
        """model: the library's; None: one with random weights."""
        super().__init__()
        self.config = config
        self.model = _new_model(config.library) if model is None else model
        if config.packed:
            _set_attention(self.model, PACKED)

    def forward(self, token_ids: Tensor, valid: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Last hidden states of captions' own tokens, zeros elsewhere.

        Args:
            token_ids: (B, T) integers, whatever they are behind a caption's end.
            lengths: (B,) integers in host memory, the tokens of each caption; None: those that are `valid`, (B, T) bool.

        Returns:
            (B, T, hidden_size).
        """
        if lengths is None:
            lengths = valid.sum(1).cpu()
        own = torch.arange(token_ids.shape[1]) < lengths[:, None]
        valid = own.to(token_ids.device, non_blocking=True)
        if not self.config.packed:
            return _padded(self.model, token_ids, valid) * valid[:, :, None]
        places = own.flatten().nonzero().squeeze(1).to(token_ids.device, non_blocking=True)
        rows = _packed(self.model, token_ids, valid, places, self.config.first_position)
        return spread(rows, places, token_ids.shape)

    def compiled(self) -> Iterator[nn.Module]:
        """None of the library's layers: each of them calls back into `_attend`."""
        yield from ()


def load_library_encoder(folder: Path, *, dropout: float) -> LibraryEncoder:
    """An encoder with its published weights, in float32.

    Args:
        folder: as the library saves it; nothing outside of it is read, and no code in it is run.
        dropout: replaces the published dropout.

    Raises:
        UserError: the library is not there, cannot read the folder, or the model does not read text alone.
    """
    transformers = _library()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
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
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
    if missing or found.get("mismatched_keys"):
        some = ", ".join(missing[:3]) or ", ".join(str(key) for key in list(found["mismatched_keys"])[:3])
        raise UserError(
            f"text.pretrained: the weights in {folder} do not fit its config.json: {some} "
            f"{'is missing' if missing else 'has another shape'}; copy the folder again"
        )
    model = _text_part(model)
    return LibraryEncoder(_examined(model, folder), model)


def token_limit(encoder: LibraryEncoder) -> int | None:
    """Most tokens that the encoder has positions for; None: any number."""
    positions = encoder.config.library.get("max_position_embeddings")
    return positions - encoder.config.first_position if isinstance(positions, int) and positions > 0 else None


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
    model.eval()
    try:
        padded = _padded(model, ids, valid)
        padded.square().sum().backward()
        with torch.no_grad():
            alone = _padded(model, ids[1:, :4], valid[1:, :4])
    except Exception as error:  # what models raise that want other inputs
        raise UserError(
            f"text.pretrained: the {model.config.model_type!r} model in {folder} does not read text alone "
            f"({type(error).__name__}: {_first_line(error)}); choose a text encoder"
        ) from error
    padded = padded.detach()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    if padded.ndim != 3 or not _same(alone[0], padded[1, :4]):
        raise UserError(
            f"text.pretrained: what the {model.config.model_type!r} model in {folder} makes of a caption depends on the captions "
            "beside it (padding is not masked); choose another encoder"
        )
    published = {"library": _plain(model.config), "hidden_size": padded.shape[2]}
    before = model.config._attn_implementation
    places = valid.flatten().nonzero().squeeze(1)
    firsts = (0,) if padding is None else (0, padding + 1)
    for first in firsts:
        try:
            _set_attention(model, PACKED)
            with torch.no_grad():
                rows = _packed(model, ids, valid, places, first)
        except Exception:  # an encoder that cannot be packed may raise anything
            rows = None
        if rows is not None and _same(rows, padded[valid]):
            return LibraryConfig(**published, packed=True, first_position=first)
    _set_attention(model, before)
    # It counts positions by itself, from one of these.
    return LibraryConfig(**published, packed=False, first_position=firsts[-1])


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _CLOSE * max(1.0, other.abs().max().item()))


def _padded(model: nn.Module, token_ids: Tensor, valid: Tensor) -> Tensor:
    return model(input_ids=token_ids, attention_mask=valid.long()).last_hidden_state


def _packed(model: nn.Module, token_ids: Tensor, valid: Tensor, places: Tensor, first: int) -> Tensor:
    """(N, H): the states of the tokens at `places` (N,) of B * T."""
    ids = token_ids.flatten().index_select(0, places)
    positions = places % token_ids.shape[1] + first
    with _packed_as(valid, places):
        return model(input_ids=ids[None], position_ids=positions[None]).last_hidden_state[0]


@contextmanager
def _packed_as(valid: Tensor, places: Tensor) -> Iterator[None]:
    """What `_attend` is to spread: not every model hands arguments through to its attention."""
    _packing.layout = valid, places
    try:
        yield
    finally:
        del _packing.layout


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
    valid, places = _packing.layout
    heads, size = query.shape[1], query.shape[3]
    if scaling is not None and not math.isclose(scaling, size**-0.5):
        query = query * (scaling * size**0.5)
    own = []
    for part in (query, key, value):
        rows = part[0].transpose(0, 1)
        if part.shape[1] != heads:  # several heads share keys and values
            rows = rows.repeat_interleave(heads // part.shape[1], dim=1)
        own.append(spread(rows.flatten(1), places, valid.shape).unflatten(2, (heads, size)))
    seen = valid
    if sliding_window is not None and valid.shape[1] > sliding_window:
        steps = torch.arange(valid.shape[1], device=valid.device)
        seen = valid[:, None, :] & ((steps[:, None] - steps).abs() < sliding_window)
        seen = seen | ~valid[:, :, None]  # rows of padding, which nobody reads, must attend to something
    context = short_attention.attend(*own, seen, dropout=dropout)
    return context.reshape(valid.numel(), heads, size).index_select(0, places)[None], None


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
    """The encoder of a model that has a decoder too (or could have)."""
    inner = getattr(model, "encoder", None)
    return inner if isinstance(inner, type(model).__mro__[1]) and hasattr(inner, "config") else model


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON has it, without the place it was read from."""
    content = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in content.items() if key not in ("_name_or_path", "transformers_version")}


def _set_attention(model: nn.Module, name: str) -> None:
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = name


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]
