"""What every command line of the pipeline shares: user errors, progress in terminals and logs, atomic files, digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake in the user's data or settings. The message names the value, the place and the fix; no traceback is shown."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` or a full disk ends it with its message on stderr and exit status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" for {error.filename}" if error.filename else ""
        print(
            f"error: the disk is full{place} ({error.strerror}); make room and start again: finished parts are kept",
            file=sys.stderr,
        )
        sys.exit(1)


def progress(iterable: Iterable[T], *, total: int | None = None, desc: str = "", unit: str = "it") -> Iterator[T]:
    """Iterate with a progress bar: live in a terminal, one plain line every ten seconds in a log file."""
    from tqdm import tqdm

    live = sys.stderr.isatty()
    bar = tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        file=sys.stderr if live else _LineWriter(),
        mininterval=0.1 if live else 10.0,
        # Without `miniters` tqdm would adapt it to the first (slow) iterations and then stay silent for long.
        miniters=None if live else 1,
        ascii=not live,
        dynamic_ncols=live,
    )
    yield from bar


class _LineWriter:
    """Turns tqdm's carriage-return redraws into whole lines, so that a log stays readable."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over `path`, on error removed.

    Two writers of one path are safe: each has its own temporary file and the last rename wins whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; results follow the user's umask like any other file.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (ValueError): other readers reject them."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest_json(value: Any) -> str:
    """sha256 hex digest of `value` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest_file(path: str | os.PathLike[str]) -> str:
    """sha256 hex digest of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_mapping(value: str, *, flag: str) -> dict[str, Any]:
    """A command-line value that holds settings: inline JSON, or the path of a JSON or YAML file.

    Raises:
        UserError: it is neither, or no mapping; the message names `flag`.
    """
    text, place = value, flag
    if not value.lstrip().startswith("{"):
        place = f"{flag} {value}"
        try:
            text = Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{flag}: {value!r} is neither inline JSON nor a readable file: {error}") from error
    try:
        if value.endswith((".yaml", ".yml")):
            import yaml

            mapping = yaml.safe_load(text)
        else:
            mapping = json.loads(text)
    except Exception as error:  # the two parsers share no error class
        raise UserError(f"{place} cannot be parsed: {error}") from error
    if not isinstance(mapping, dict):
        raise UserError(f"{place} must hold a mapping of keys to values, not a {type(mapping).__name__}")
    return mapping
