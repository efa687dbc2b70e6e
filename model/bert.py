"""A published BERT out of a folder, for those who ask for nothing else: `model.pretrained` takes any encoder."""

from __future__ import annotations

from pathlib import Path

from core.console import UserError
from model.encoder_folder import folder_faults, tokenizer_settings
from model.library_encoder import LibraryEncoder, load_library_encoder


def load_pretrained(folder: str | Path, *, dropout: float = 0.1) -> tuple[LibraryEncoder, Path, bool]:
    """A published BERT, the path of its vocabulary and whether it lower-cases its text.

    Args:
        folder: holds `config.json`, `vocab.txt` and the weights.
        dropout: replaces the published dropout.

    Raises:
        UserError: the folder does not hold a BERT, or its weights do not fit its config.
    """
    folder = Path(folder)
    if faults := list(folder_faults(folder)):
        raise UserError(f"text.pretrained: {'; '.join(faults)}")
    return load_library_encoder(folder, dropout=dropout)[0], folder / "vocab.txt", tokenizer_settings(folder).lowercase
