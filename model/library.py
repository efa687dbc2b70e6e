"""What is asked of the transformers library: its models by their configurations. It takes seconds to import, so that only calls do."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from core.console import UserError

if TYPE_CHECKING:
    from torch import nn

INSTALL = "pip install --group transformers"


def library() -> Any:
    """The package. UserError: it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"text.pretrained: this encoder needs the transformers library, which is not installed; {INSTALL}"
        ) from error
    return transformers


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
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


@contextmanager
def sentencepiece_files() -> Iterator[None]:
    """The library reads sentencepiece's files with protobuf alone, and still asks for that package."""
    from transformers import convert_slow_tokenizer as module

    before = getattr(module, "requires_backends", None)
    module.requires_backends = lambda *_: None
    try:
        yield
    finally:
        module.requires_backends = before


def class_of(config: Any) -> Any:
    """The library's class of an encoder, if it has one. Its tables lack the text side of some models that see too (SigLIP)."""
    transformers = library()
    tables = transformers.models.auto.modeling_auto
    if type(config) in tables.MODEL_FOR_TEXT_ENCODING_MAPPING:
        config.is_encoder_decoder = False  # some classes insist
        return transformers.AutoModelForTextEncoding
    if type(config) not in tables.MODEL_MAPPING:
        module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
        for name, found in vars(module).items():
            if name.endswith("TextModel") and getattr(found, "config_class", None) is type(config):
                return found
        return None
    return transformers.AutoModel


def new_model(config: Mapping[str, Any]) -> nn.Module:
    """One with random weights, of a configuration as `plain` gives it."""
    transformers = library()
    own = transformers.AutoConfig.for_model(**config)
    found = class_of(own)
    make = getattr(found, "_from_config", None) or found.from_config
    return text_part(make(own))


def text_part(model: nn.Module) -> nn.Module:
    """What gives the hidden states: of a model with a decoder its encoder, and no pooler, which works on the first token alone."""
    inner = getattr(model, "encoder", None)
    if isinstance(inner, type(model).__mro__[1]) and hasattr(inner, "config"):
        return inner
    if "add_pooling_layer" in inspect.signature(type(model)).parameters:
        model.pooler = None
    return model


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON has it, without the place it was read from."""
    content = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in content.items() if key not in ("_name_or_path", "transformers_version")}
