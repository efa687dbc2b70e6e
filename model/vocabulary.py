"""The pieces that a BERT knows, as files have them."""

from __future__ import annotations

from pathlib import Path

from core.console import UserError
from core.kinds import other_kind

PAD, UNKNOWN, START, END, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_vocabulary(path: str | Path) -> list[str]:
    """The lines of a `vocab.txt`. Raises UserError if it is missing, not UTF-8 or another kind of file."""
    if what := other_kind(path):
        raise UserError(f"cannot read the vocabulary {path}: it is {what}")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the vocabulary {path}: {error}") from error
    # Not splitlines(): published vocabularies hold characters that it takes for line ends. What Windows ended lines with is none.
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if all(line.endswith("\r") for line in lines[:-1]) else lines
