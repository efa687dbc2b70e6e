"""Times of what jobs made, given back to results that were copied without them: Snakemake goes by times, content is to decide.

When a workflow ends it notes, beside the results, of each file that jobs made the time and a digest. When it starts and finds other times
while all content is as noted, the files were copied or touched, and get their times back. Where any content is another, jobs have
run since (those of a workflow that was killed); their times stay as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from core import layout
from core.files import digest_file, write_json
from core.samples import HUGE, sample

_VERSION = 1


def note_times(results: str, paths: Iterable[str]) -> None:
    """Note times and content of files and folders that jobs made, beside those that were noted before.

    Args:
        results: their folder. paths: in it or elsewhere, there or not; those elsewhere are left out.
    """
    before = _noted(results)
    names = [os.path.relpath(path, results) for path in paths]
    found: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError):  # a full disk, somebody else's folder: times are what they are then
        for name in sorted({*before, *names}):
            path = os.path.join(results, name)
            if name.split(os.sep)[0] == os.pardir or not os.path.exists(path):
                continue
            time, known = os.stat(_carrier(path)).st_mtime_ns, before.get(name)
            same = known is not None and known["time"] == time
            found[name] = known if same else {"time": time, "digest": _digest(path)}
        if found != before:
            write_json(layout.times(results), {"version": _VERSION, "files": found})


def restore_times(results: str) -> None:
    """Give files that jobs made the times that were noted, if what is there has the content that was noted."""
    moved: list[tuple[str, int]] = []
    with contextlib.suppress(OSError):  # a folder that may only be read
        for name, known in _noted(results).items():
            path = os.path.join(results, name)
            if not os.path.exists(path):  # it is made again, and what follows from it
                continue
            carrier = _carrier(path)
            # Archives keep whole seconds.
            if os.stat(carrier).st_mtime_ns in (known["time"], known["time"] // 10**9 * 10**9):
                continue
            if _digest(path) != known["digest"]:
                os.unlink(layout.times(results))
                return
            moved.append((carrier, known["time"]))
        for carrier, time in moved:
            os.utime(carrier, ns=(time, time))


def _noted(results: str) -> dict[str, dict[str, Any]]:
    try:
        with open(layout.times(results), encoding="utf-8") as file:
            content = json.load(file)
        return dict(content["files"]) if content["version"] == _VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _carrier(path: str) -> str:
    """The file whose time Snakemake takes for that of a file or folder."""
    stamp = os.path.join(path, ".snakemake_timestamp")
    return stamp if os.path.exists(stamp) else path


def _digest(path: str) -> str:
    """Of content and, below a folder, of names; no time goes into it."""
    sizes = {file: os.path.getsize(file) for file in (sorted(_below(path)) if os.path.isdir(path) else [path])}
    read = digest_file if sum(sizes.values()) < HUGE else lambda file: sample(file, sizes[file])
    found = [(os.path.relpath(file, path), read(file)) for file in sizes]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _below(folder: str) -> Iterator[str]:
    for above, _, names in os.walk(folder):
        yield from (os.path.join(above, name) for name in names if name != ".snakemake_timestamp")
