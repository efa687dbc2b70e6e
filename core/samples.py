"""What large files hold, told by samples of their bytes: at every start of the workflow tens of gigabytes are too much to read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from core.files import atomic_path, digest_file
from core.remembered import REMEMBERED

HUGE = 1 << 32  # bytes of a file, or of what a job made: from here on only samples are read
_BLOCK = 1 << 12  # bytes of a sample: a page
_FEW, _MANY, _MUCH = 3, 64, 1 << 24  # samples of a file, and of one of so many bytes
_THREADS, _AT_ONCE = 16, 256  # disks and networks answer many at a time

Known = dict[str, list]  # by a file's key: size, time, changed, inode, sample, mark


def marks(name: str, files: Sequence[tuple[str, str, os.stat_result]]) -> list[str]:
    """A mark for each file, which is another when the file's content is.

    A file is told by its size and samples of its bytes, wherever it lies: a copy has the same mark. One that was there before
    and has another time with the same samples may differ between them. It is read whole, and its digest is its mark from then on;
    but where all of several files have other times, they were copied or touched, and samples tell what else happened.

    Args:
        name: of them all; what is known of them is kept under it, where Snakemake keeps its notes. files: key, path and status of each.
    """
    notes = os.path.join(os.path.dirname(REMEMBERED), "samples", hashlib.sha256(name.encode()).hexdigest()[:32])
    known = _read(notes)
    facts = {key: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for key, _, s in files}
    new = [file for file in files if known.get(file[0], ())[:4] != facts[file[0]]]
    copied = len(files) > 1 and all(known.get(key, facts[key])[1] != facts[key][1] for key in facts)
    parts = [new[start : start + _AT_ONCE] for start in range(0, len(new), _AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = {key: known[key] for key in facts if key in known}
        for part in pool.map(lambda part: [(file[0], _mark(file, known, copied)) for file in part], parts):
            found |= {key: facts[key] + mark for key, mark in part}
    if found != known and os.path.isdir(os.path.dirname(REMEMBERED)):
        with contextlib.suppress(OSError), atomic_path(notes) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    return [found[key][5] for key, _, _ in files]


def _mark(file: tuple[str, str, os.stat_result], known: Known, copied: bool) -> list[str]:
    """A file's sample and mark. copied: another time means nothing."""
    key, path, status = file
    try:
        found = sample(path, status.st_size)
        _, time, _, _, former, mark = known.get(key, (0, 0, 0, 0, "", ""))
        if found != former:
            return [found, found]
        # Of the same time it is the same: only its permissions, links or place on the disk are others.
        return [found, mark if copied or time == status.st_mtime_ns else digest_file(path)]
    except OSError:
        return ["none", "none"]


def sample(path: str, size: int) -> str:
    """A digest of a file's size and samples of its bytes, of all bytes if it is small."""
    handle = os.open(path, os.O_RDONLY)
    try:
        samples = [os.pread(handle, _BLOCK, start) for start in _starts(size)]
    finally:
        os.close(handle)
    return hashlib.sha256(b"%d " % size + b"".join(samples)).hexdigest()[:32]


def _starts(size: int) -> Iterable[int]:
    """Where samples begin, first and last bytes among them; a small file is read whole."""
    count = _FEW if size < _MUCH else _MANY
    if size <= count * _BLOCK:
        return range(0, size, _BLOCK)
    return [(size - _BLOCK) * k // (count - 1) for k in range(count)]


def _read(notes: str) -> Known:
    try:
        with open(notes, encoding="utf-8") as file:
            known = json.load(file)
    except (OSError, ValueError):
        return {}
    whole = isinstance(known, dict) and all(isinstance(one, list) and len(one) == 6 for one in known.values())
    return known if whole else {}
