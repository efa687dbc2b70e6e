"""Digests of the files that a user hands in: content decides whether a job runs again, not a file's time.

Times alone would miss a file taken out of an archive, which keeps its old one, and would redo everything for a copied file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable

from catalog.files import folder_state
from core.console import UserError
from core.files import digest_file
from core.remembered import remembered
from core.samples import HUGE, marks

_LARGE = 1 << 24  # bytes; from here on a digest is remembered


def contents(paths: Iterable[str]) -> str:
    """What some files and folders hold, as one digest; "" for none. Files that are not there count as such.

    Of a large folder samples of its files are read: there may be hundreds of thousands.
    """
    known = [(path, _content(path)) for path in paths]
    return hashlib.sha256(json.dumps(known).encode("utf-8", "surrogateescape")).hexdigest()[:32] if known else ""


def _content(path: str) -> str:
    if os.path.isdir(path):
        return folder_state(path, images_only=False)
    try:
        status = os.stat(path)
    except OSError:
        return "none"
    return _file(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@functools.cache
def _file(path: str, size: int, time: int, changed: int, inode: int) -> str:
    """A file's digest. What names it beside its content changes whenever the content may have."""
    try:
        if size >= HUGE:
            return marks(os.path.abspath(path), [("", path, os.stat(path))])[0]
        if size < _LARGE:
            return digest_file(path)
        return remembered(os.path.abspath(path), [size, time, changed, inode], lambda: digest_file(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
