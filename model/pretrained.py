"""From what `text.pretrained` names, a folder or a name on the Hugging Face hub, to the encoder and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.console import UserError, first_line
from core.files import digest_file
from core.hub import fetch
from model.encoder_folder import (
    TOKENIZER_FILES,
    doubts,
    folder_faults,
    has_berts_tokenizer,
    tokenizer_settings,
)
from model.library_encoder import LibraryEncoder, load_library_encoder
from model.library_tokenizer import load_library_tokenizer
from model.tokenizer import CaptionTokenizer

_DESCRIPTIONS = [
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    *TOKENIZER_FILES,
]


def load_encoder(name: str, *, dropout: float, max_tokens: int) -> tuple[LibraryEncoder, CaptionTokenizer]:
    """A published text encoder and its own tokenizer.

    Args:
        name: as `resolve_pretrained`. dropout: replaces the published dropout. max_tokens: longer captions are cut; fewer if the
            encoder has fewer positions.

    Raises:
        UserError: it is not there, or cannot be run as it was published.
    """
    folder = resolve_pretrained(name)
    if faults := list(folder_faults(folder)):
        raise UserError(f"text.pretrained: {'; '.join(faults)}")
    encoder, longest = load_library_encoder(folder, dropout=dropout, max_tokens=max_tokens)
    if has_berts_tokenizer(folder):
        settings = tokenizer_settings(folder)
        longest = min(longest, settings.max_tokens or longest)
        tokenizer = CaptionTokenizer.from_file(folder / "vocab.txt", max_tokens=longest, **settings.options())
        for doubt in doubts(folder):
            print(f"note: text.pretrained: {doubt}", flush=True)
    else:
        tokenizer = load_library_tokenizer(folder, max_tokens=longest)
    if encoder.pieces is not None and len(tokenizer.vocabulary) > encoder.pieces:
        raise UserError(
            f"text.pretrained: the tokenizer in {folder} has {len(tokenizer.vocabulary)} pieces, more than the {encoder.pieces} that "
            "the weights know"
        )
    return encoder, tokenizer


def resolve_pretrained(name: str, *, weights: bool = True) -> Path:
    """The local folder of an encoder: `name` itself if it is a folder, else fetched from the hub, once.

    Args:
        name: a folder, or NAME or NAME@REVISION on the hub. What is in the hub's cache is taken without asking the hub.
        weights: whether they are needed.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _fetched(name, weights)
    if not (folder / "config.json").is_file():
        raise UserError(f"text.pretrained: {folder} lacks config.json")
    return folder


def provenance(name: str) -> dict[str, Any]:
    """What an encoder came from, for the record: its name, the hub's revision (None of a folder) and its weights' SHA-256."""
    folder = resolve_pretrained(name)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin") and path.is_file())
    revision = None if Path(name).is_dir() else folder.name
    return {"name": name, "revision": revision, "weights": {path.name: digest_file(path) for path in files}}


def _fetched(name: str, weights: bool) -> Path:
    repository, _, revision = name.partition("@")
    try:
        return fetch(
            repository,
            revision=revision or None,
            descriptions=_DESCRIPTIONS,
            weights=weights,
            whole=lambda folder: any((folder / file).is_file() for file in TOKENIZER_FILES),
        )
    except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
        raise UserError(
            f"text.pretrained: {name!r} is not a local folder and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {first_line(error)}). "
            "Give a folder with config.json, the tokenizer's files and model.safetensors, or set text.pretrained: null to "
            "train a small encoder from scratch"
        ) from error
