"""What a store that is already there was made with: settings that change none of its values do not make it again."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import asdict, dataclass

from core.files import write_json

#: Beside the receipts: while parts of a store are made again it is not sealed, and jobs that start then must agree.
REMEMBERED = ".made.json"


@dataclass(frozen=True)
class Made:
    """Of a store: jobs it was made by, how its arrays are compressed, how many of its images were dropped."""

    shards: int
    compression: str
    dropped: int = 0


def made_store(marker: str, receipts: str) -> Made | None:
    """What a sealed store says of itself, or what was remembered of it; None if there is neither.

    Args:
        marker: the file that seals it. receipts: folder of its receipts.
    """
    try:
        status = os.stat(marker)
    except OSError:
        return _remembered(receipts)
    return _read(marker, status.st_mtime_ns, status.st_size)


def remember(made: Made | None, receipts: str, *, shards: int, compression: str) -> None:
    """Keep what a store was made with where that is no longer what is asked for, until it is sealed again."""
    path = os.path.join(receipts, REMEMBERED)
    if made is not None and (made.shards, made.compression) != (shards, compression):
        write_json(path, asdict(made))
    elif os.path.exists(path):
        os.unlink(path)


def _remembered(receipts: str) -> Made | None:
    try:
        with open(os.path.join(receipts, REMEMBERED), encoding="utf-8") as file:
            return Made(**json.load(file) | {"dropped": 0})
    except (OSError, ValueError, TypeError):
        return None


@functools.cache
def _read(marker: str, time: int, size: int) -> Made | None:
    try:
        with open(marker, encoding="utf-8") as file:
            attributes = json.load(file)["attributes"]
        (compression,) = {array["compression"] for array in attributes["arrays"].values()}
        return Made(int(attributes["plan"]["shards"]), compression, len(attributes["dropped"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
