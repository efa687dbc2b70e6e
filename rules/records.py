"""What Snakemake remembers of how a file was made. It keeps that in the folder it is started from, not with the results: where they are
copied alone, or that folder is cleaned up, other settings would make nothing again, and nobody would know."""

from __future__ import annotations

import base64
import json
import os
import re
from typing import Any

from core.files import atomic_path

_FOLDER = ".snakemake"  # its own, in the working folder
Record = dict[str, Any]


def read_record(path: str) -> Record | None:
    """What is remembered of a job's output; None if nothing is."""
    try:
        with open(_place(path), encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_record(path: str, record: Record) -> None:
    """Have Snakemake remember that of a job's output."""
    # Without this folder it would take the other for one of its early versions.
    os.makedirs(os.path.join(_FOLDER, "incomplete"), exist_ok=True)
    with atomic_path(_place(path)) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")


def moved(value: Any, old: str, new: str) -> Any:
    """A record, or a part of one, that names files in the folder `new` in place of `old`."""
    if isinstance(value, str):
        # The folder itself is named in quotes; before a colon it is a key.
        return re.sub(rf"(?<![\w./-]){re.escape(old)}(?=/|$|['\"](?!:))", lambda _: new, value)
    if isinstance(value, list):
        return [moved(item, old, new) for item in value]
    return {key: moved(item, old, new) for key, item in value.items()} if isinstance(value, dict) else value


def _place(path: str) -> str:
    """Where Snakemake keeps a record: under the path in base64, in parts that file systems take."""
    name = base64.urlsafe_b64encode(path.encode()).decode()
    longest = 254
    *folders, last = (name[start : start + longest] for start in range(0, len(name), longest))
    return os.path.join(_FOLDER, "metadata", *(f"@{folder}" for folder in folders), last)
