"""Times of what jobs made, given back to results that were copied without them: Snakemake goes by times, content is to decide.

When a workflow ends it notes, beside the results, of each file that jobs made the time, a digest, and what Snakemake remembers of it.
When it starts and finds other times while all content is as noted, the files were copied or touched, and get their times back. Where any
content is another, jobs have run since (those of a workflow that was killed); their times stay as they are. Of files with the times that
were noted Snakemake is told what was remembered, whatever happened to its own notes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from core import layout
from core.files import digest_file, write_json
from core.samples import HUGE, sample
from rules.records import Record, moved, read_record, write_record

_VERSION = 1
_RECORD = "record"


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
            found[name] = {key: value for key, value in found[name].items() if key != _RECORD}
            if record := read_record(path):
                found[name][_RECORD] = record
        if found != before:
            _write(results, found)


def restore_times(results: str) -> None:
    """Give files that jobs made the times that were noted, if what is there has the content that was noted."""
    copied: list[tuple[str, int]] = []
    records: dict[str, Record] = {}
    with contextlib.suppress(OSError):  # a folder that may only be read
        for name, known in _noted(results).items():
            path = os.path.join(results, name)
            if not os.path.exists(path):  # it is made again, and what follows from it
                continue
            if _RECORD in known:
                records[path] = known[_RECORD]
            carrier = _carrier(path)
            # Archives keep whole seconds.
            if os.stat(carrier).st_mtime_ns in (known["time"], known["time"] // 10**9 * 10**9):
                continue
            if _digest(path) != known["digest"]:
                os.unlink(layout.times(results))
                return
            copied.append((carrier, known["time"]))
        for carrier, time in copied:
            os.utime(carrier, ns=(time, time))
        for path, record in records.items():
            if read_record(path) != record:
                write_record(path, record)


def forget_records(results: str, paths: Collection[str]) -> None:
    """What Snakemake is to forget of files is not to come back."""
    found = _noted(results) if paths else {}
    forgotten = [
        found[name].pop(_RECORD, None) for name in {os.path.relpath(path, results) for path in paths} & found.keys()
    ]
    if any(forgotten):
        with contextlib.suppress(OSError):  # a folder that may only be read
            _write(results, found)


def _write(results: str, found: dict[str, dict[str, Any]]) -> None:
    write_json(layout.times(results), {"version": _VERSION, "results": results, "files": found})


def _noted(results: str) -> dict[str, dict[str, Any]]:
    try:
        with open(layout.times(results), encoding="utf-8") as file:
            content = json.load(file)
        if content["version"] != _VERSION:
            return {}
        found, before = dict(content["files"]), content.get("results", results)
        return found if before == results else moved(found, before, results)
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
