"""What a detector's classes are called: by the store, or by a file of the user's or of whoever published its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.console import UserError
from core.text import decode_text


def read_names(path: str | None) -> list[str]:
    """Names of classes in a file, one a line, the first of several between commas, without the background's; none without a file that can be read."""
    try:
        return names_in(path) if path else []
    except (OSError, UserError):
        return []


def names_in(path: str) -> list[str]:
    """As `read_names`. UserError: it is no text, or holds no name."""
    lines = decode_text(path).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path} holds no names; write one a line")
    names = [line.split(",")[0].strip() for line in lines]
    # Detectors count it, stores do not: their class 0 is the first of objects.
    return names[1:] if len(names) > 1 and names[0].strip("_").lower() in ("background", "bg") else names


def class_names(attributes: Mapping[str, Any], otherwise: Sequence[str] = ()) -> list[str]:
    """Names by class number that a store's attributes hold, else those of `otherwise`; empty where nobody knows them."""
    own = attributes.get("class_names") or attributes.get("extractor", {}).get("class_names")
    return [str(name) for name in own or otherwise]
