"""Digests of what a user hands in, kept while the facts of its files stay: a start of the workflow reads again only what changed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable
from typing import Any

from core.files import atomic_path

#: In the folder that Snakemake keeps its own notes in.
REMEMBERED = ".snakemake/contents.json"


def remembered(name: str, facts: Any, read: Callable[[], str]) -> str:
    """`read()`, or what it gave when the facts were the same.

    For the next process it is kept where Snakemake keeps notes; where it does not, or nothing can be written, for this one alone.

    Args:
        name: of what is read; one digest is kept for each. facts: of JSON, and others whenever the content may be another.
    """
    known = _known(os.path.abspath(REMEMBERED))
    entry = known.get(name)
    if not isinstance(entry, dict) or entry.get("facts") != facts:
        entry = known[name] = {"facts": facts, "digest": read()}
        if os.path.isdir(os.path.dirname(REMEMBERED)):
            with contextlib.suppress(OSError), atomic_path(REMEMBERED) as temporary:
                temporary.write_text(json.dumps(known), encoding="utf-8")
    return entry["digest"]


@functools.cache
def _known(path: str) -> dict[str, Any]:
    """What the file holds; read once a process, however many ask."""
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
