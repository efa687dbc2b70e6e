"""From settings, or from what a run folder says of a network, to the network and its tokenizer."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.console import UserError, first_line
from core.files import digest_file
from model.network import RetrievalNetwork
from model.pretrained import load_encoder
from model.settings import DEFAULT_KIND, KINDS, Network, OtherModel, Recipe, Text, WordText, kind_file, kind_needs
from model.small_encoder import SmallConfig, SmallEncoder
from model.text import CaptionEncoder, TextEncoder, WordEncoder, caption_encoder
from model.tokenizer import CaptionTokenizer, train_vocabulary
from model.words import MASK, WordTokenizer, count_words

Tokenizer = CaptionTokenizer | WordTokenizer

_own_kinds: dict[str, dict[str, str]] = {}  # module name of a user's file: the kind it was asked for as, and its digest


def new_network(
    recipe: Recipe, captions: Sequence[str], *, img_dim: int, num_categories: int | None = None
) -> tuple[RetrievalNetwork, Tokenizer]:
    """A network with the weights that training starts from, and its tokenizer.

    Args:
        captions: of the training split, for the vocabulary of a text encoder that starts from random weights.
        img_dim, num_categories: as the stores have them.

    Raises:
        UserError: the kind of network cannot be had, or its options or the pretrained text encoder do not fit.
    """
    network = network_class(recipe.model.kind)
    image = new_image_encoder(network, recipe.model, img_dim=img_dim, num_categories=num_categories)
    # Only what augmentation may put into a caption has a place in the vocabulary: SCAN's has none.
    masked = recipe.model.kind != "scan" or recipe.training.word_augmentation > 0
    text, tokenizer = new_text_encoder(recipe.text, recipe.model, captions, masked=masked)
    if recipe.text.pretrained and recipe.training.precision == "bf16":
        _try_in_bf16(text, tokenizer)
    return network(image, text), tokenizer


@torch.no_grad()
def _try_in_bf16(text: CaptionEncoder, tokenizer: Tokenizer) -> None:
    """UserError: the library's model cannot be run so (X-MOD's, for one, mixes types)."""
    ids, lengths = map(torch.from_numpy, tokenizer.encode(["a b", "a"]))
    try:
        with torch.autocast("cpu", torch.bfloat16):
            text.eval().states(ids, lengths)  # without dropout, which would draw numbers that training would draw
    except RuntimeError as error:
        raise UserError(
            f"training.precision: this text encoder cannot be run in bf16 ({first_line(error)}); set training.precision: fp32"
        ) from error
    finally:
        text.train()


def network_from(config: Mapping[str, Any]) -> RetrievalNetwork:
    """A network with fresh weights of the shape that a run's `config.json` says.

    Raises:
        UserError: the network is in a file of the user's, which is not what it was at training.
        KeyError, TypeError, ValueError: the sections do not fit the kind.
    """
    kind = config.get("kind", DEFAULT_KIND)  # version 1 knew 3SHNet alone
    if kind not in KINDS:
        _check_own_file(kind, config["kind_digest"])
    network = network_class(kind)
    return network(network.ImageEncoder(network.Sizes(**config["image"])), caption_encoder(config["text"]))


def described(network: RetrievalNetwork) -> dict[str, Any]:
    """What `network_from` reads: the kind and its sizes; of a kind in a file of the user's that file's digest too."""
    module = sys.modules[type(network).__module__]
    own = _own_kinds.get(module.__name__)
    ours = [{"kind": kind} for kind in KINDS if kind_file(kind) == Path(getattr(module, "__file__", ""))]
    if own is None and not ours:
        raise ValueError(f"{type(network).__name__} is defined in no file that model.build.network_class has read")
    return (own or ours[0]) | network.config()


# The image side.


def new_image_encoder(
    network: type[RetrievalNetwork], model: Network, *, img_dim: int, num_categories: int | None = None
) -> nn.Module:
    """A network's image side with random weights; its sizes come from the settings and from the stores."""
    known = {field.name: field for field in fields(network.Sizes)}
    numbers = {"img_dim": img_dim, "num_categories": num_categories} | model.numbers()
    options = getattr(model, "options", {})
    if isinstance(model, OtherModel):
        needed = {name: field.default is MISSING and field.default_factory is MISSING for name, field in known.items()}
        for line in model.option_faults(needed, network.needs):
            raise UserError(f"model.{line}")
    given = {name: value for name, value in (numbers | options).items() if name in known and value is not None}
    return network.ImageEncoder(network.Sizes(**given))


def network_class(kind: str) -> type[RetrievalNetwork]:
    """The class of a kind of network (see `model.settings.KINDS`); a file of the user's is run.

    Raises:
        UserError: there is no such file, it does not define one network, or running it failed.
    """
    try:
        kind_needs(kind)
    except UserError as error:
        raise UserError(f"model.kind: {error}") from error
    if kind in KINDS:
        module = importlib.import_module(KINDS[kind].removesuffix(".py").replace("/", "."))
    else:
        module = _run_own_file(kind)
    defined = [value for value in vars(module).values() if isinstance(value, type)]
    (found,) = (
        value for value in defined if issubclass(value, RetrievalNetwork) and value.__module__ == module.__name__
    )
    for name in ("Sizes", "ImageEncoder"):
        if not hasattr(found, name):
            raise UserError(f"model.kind: {found.__name__} in {kind} has no {name}; see model.network.RetrievalNetwork")
    return found


def _run_own_file(kind: str) -> Any:
    path = os.path.abspath(kind)
    digest = digest_file(path)
    name = f"own_network_{digest[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever the user's code raises
            del sys.modules[name]
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            place = f", line {lines[-1]}" if lines else ""
            raise UserError(f"model.kind: {kind}{place}: {type(error).__name__}: {error}") from error
    _own_kinds[name] = {"kind": kind, "kind_digest": digest}
    return sys.modules[name]


def _check_own_file(kind: str, digest: str) -> None:
    if not os.path.isfile(kind):
        raise UserError(f"the network is defined in {kind!r}, which does not exist; put the file back")
    if digest_file(kind) != digest:
        raise UserError(
            f"the network's file {kind!r} has changed since the training; put it back as it was, or train the run again"
        )


# The text side.


def new_text_encoder(
    text: Text | WordText, model: Network, captions: Sequence[str], *, masked: bool = True
) -> tuple[CaptionEncoder, Tokenizer]:
    """A text encoder and its tokenizer.

    With `pretrained` both are a published encoder's; otherwise the vocabulary is made from `captions`, those of the
    training split (of words also read from a file), and the encoder starts from random weights.

    Args:
        masked: whether a vocabulary of words has `<mask>`; it is added to one that lacks it.
    """
    outer = {"embed_size": model.embed_size, "normalise": getattr(model, "normalise_captions", True)}
    if hasattr(model, "pool_position_size"):
        outer |= {"pool_position_size": model.pool_position_size, "pool_hidden_size": model.pool_hidden_size}
    else:
        outer |= {"pool": False}
    if isinstance(text, WordText):
        tokenizer = _word_tokenizer(text, captions, masked=masked)
        sizes = {"word_size": text.word_size, "bidirectional": text.bidirectional}
        return WordEncoder(len(tokenizer.vocabulary), **sizes, **outer), tokenizer
    if text.pretrained:
        bert, tokenizer = load_encoder(text.pretrained, dropout=text.dropout, max_tokens=text.max_tokens)
    else:
        vocabulary = train_vocabulary(captions, vocabulary_size=text.vocabulary_size, min_frequency=text.min_frequency)
        tokenizer = CaptionTokenizer(vocabulary, max_tokens=text.max_tokens)
        bert = SmallEncoder(
            SmallConfig(
                vocabulary_size=len(vocabulary),
                hidden_size=text.hidden_size,
                layers=text.layers,
                heads=text.heads,
                intermediate_size=text.intermediate_size,
                max_positions=text.max_tokens,
                dropout=text.dropout,
            )
        )
    return TextEncoder(bert, **outer), tokenizer


def _word_tokenizer(text: WordText, captions: Sequence[str], *, masked: bool) -> WordTokenizer:
    if text.vocabulary is not None:
        try:
            words = WordTokenizer.from_file(text.vocabulary).vocabulary
        except UserError as error:
            raise UserError(f"text.vocabulary: {error}") from error
    else:
        words = count_words(captions, lowercase=text.lowercase, min_count=text.min_count)
    words += [MASK] if masked and MASK not in words else []
    return WordTokenizer(words, lowercase=text.lowercase, max_tokens=text.max_tokens)
