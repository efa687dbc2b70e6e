"""What jobs say that is no fault but should be known: the lines `note: ...` and `warning: ...` of their logs."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core import layout

_NOTE = re.compile(r"^(?:note|warning): .*", re.MULTILINE)
_FAULT = re.compile(r"^(?:error: |Traceback \(most recent call last\))", re.MULTILINE)


@dataclass(frozen=True)
class Spoken:
    """What a job's log tells beside its progress."""

    log: Path
    notes: tuple[str, ...]  # lines, each once
    failed: bool  # whether it ends with an error


def spoken(work: str | Path, since: float) -> list[Spoken]:
    """Of the logs written after `since` (Unix time), in the order in which they ended.

    Args:
        work: folder of logs and benchmarks, see `core.layout`.
    """
    found = []
    for path in Path(layout.log(work, "any")).parent.rglob("*.log"):
        try:
            status = path.stat()
            if status.st_mtime >= since:
                found.append((status.st_mtime, _read(path, status.st_mtime_ns, status.st_size)))
        except FileNotFoundError:  # a job that starts again removes its log first
            continue
    return [one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].log))]


@functools.lru_cache(maxsize=4096)
def _read(path: Path, time: int, size: int) -> Spoken:
    text = path.read_text(encoding="utf-8", errors="replace")
    return Spoken(path, tuple(dict.fromkeys(_NOTE.findall(text))), tells_of_a_fault(text))


def tells_of_a_fault(log: str) -> bool:
    """Whether a log holds what a job of ours that failed says last."""
    return _FAULT.search(log) is not None


def note_lines(found: Sequence[Spoken]) -> list[str]:
    """The notes, each once, with the jobs that gave them."""
    jobs: dict[str, list[str]] = {}
    for one in found:
        for note in one.notes:
            jobs.setdefault(note, []).append(
                one.log.stem if one.log.parent.name == "logs" else f"{one.log.parent.name}/{one.log.stem}"
            )
    return [f"{own[0]}{f' and {len(own) - 1} more' if len(own) > 1 else ''}: {note}" for note, own in jobs.items()]
