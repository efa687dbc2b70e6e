"""The pieces that a BERT knows, as files have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.console import UserError
from core.kinds import other_kind

PAD, UNKNOWN, START, END, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_vocabulary(path: str | Path) -> list[str]:
    """The lines of a `vocab.txt`. Raises UserError if it is missing, not UTF-8 or another kind of file."""
    if what := other_kind(path):
        raise UserError(f"cannot read the vocabulary {path}: it is {what}")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the vocabulary {path}: {error.strerror}; correct the path") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the vocabulary {path}: byte {error.start} is no text in UTF-8; give a vocab.txt, or of words their *_vocab.json "
            "(pickles are not opened)"
        ) from error
    # Not splitlines(): published vocabularies hold characters that it takes for line ends. What Windows ended lines with is none.
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if all(line.endswith("\r") for line in lines[:-1]) else lines


def vocabulary_fault(vocabulary: Sequence[str]) -> str:
    """Why pieces are no vocabulary of a BERT, "" where they are: attention masks rely on [PAD] being the first."""
    if missing := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
        return f"lacks {', '.join(missing)}"
    return "" if vocabulary.index(PAD) == 0 else f"has {PAD} at line {vocabulary.index(PAD) + 1}, not in the first"
