"""Downloads that resume, retry, verify and are remembered: published weights -> files below one folder.

A file is first `FILE.part`, with what is needed to go on after an interruption in `FILE.part.json`, and gets its name only
when its bytes are verified: against what the registry knows of it, else against the lock file, where size and sha256 of every
file are written when it is first seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import requests

from core.console import UserError, progress
from core.files import exclusive, write_json
from published.registry import Entry, File, by_hand

LOCK_FILE = "published.lock.json"
LOCK_VERSION = 1
ATTEMPTS = 6  # one after the other without progress
_CHUNK = 1 << 16
_MIB = 1 << 20
_MAX_PAUSE = 60.0  # seconds
_TIMEOUT = (20.0, 60.0)  # seconds to connect, and between two packets


@dataclass(frozen=True)
class Digests:
    """What there is to know of a file's bytes: how many, and hex digests of them all."""

    size: int
    sha256: str
    md5: str


def fetch(
    entry: Entry,
    file: File,
    *,
    folder: str | os.PathLike[str],
    lock: str | os.PathLike[str],
    mirror: str | None = None,
    accept: bool = False,
    pause: float = 1.0,
    timeout: tuple[float, float] = _TIMEOUT,
) -> Path:
    """Download a file of `entry`, unless it is there, and verify it.

    Args:
        folder: of all published weights; the file goes to `entry.file_path(file, folder)`.
        lock: JSON file of digests seen; a new file's are added, others must agree.
        mirror: base address that replaces the registry's hosts.
        accept: take a file that is not the one in the lock file, and write its digest there.
        pause: seconds before the second attempt, doubled before each further one.
        timeout: seconds to connect, and between two packets.

    Returns:
        The file's path. Several processes may ask for one file at once; one of them downloads it.

    Raises:
        UserError: no address, no connection, wrong bytes, no room; with what to do. A download that was interrupted goes on
            at the next call.
    """
    kept = _Kept(entry, file, Path(folder), Path(lock))
    try:
        with exclusive(kept.path.parent / ".lock", f"{kept.path}: another process is fetching it; waiting"):
            known = kept.known(accept)
            if kept.path.is_file():
                digests = _digest(kept.path)
                if wrong := known.difference(digests):
                    kept.refuse(str(kept.path), wrong)
            else:
                digests = _download(kept, known, mirror, pause, timeout)
            _remember_digests(kept.path, digests)
        record(entry, file, digests, lock=lock)
    except OSError as error:
        raise UserError(
            f"{kept.path}: cannot be written ({error.strerror or error}); make room, or name another folder: "
            "published.folder in the configuration"
        ) from error
    return kept.path


def verify(entry: Entry, file: File, *, folder: str | os.PathLike[str], lock: str | os.PathLike[str]) -> Digests | None:
    """Check that a file, if it is there, is the published one or the one that was seen before.

    The file is read only if its time or size changed since it was last read.

    Returns:
        Its digests, None if it is not there.

    Raises:
        UserError: it is another file.
    """
    kept = _Kept(entry, file, Path(folder), Path(lock))
    if not kept.path.is_file():
        return None
    digests = _remembered_digests(kept.path)
    if digests is None:
        digests = _digest(kept.path)
        # In a folder that belongs to somebody else it is read each time.
        with contextlib.suppress(OSError):
            _remember_digests(kept.path, digests)
    if wrong := kept.known().difference(digests):
        kept.refuse(str(kept.path), wrong)
    return digests


def read_lock(lock: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """`NAME/FILE` -> size and sha256, from a lock file; empty if there is none. UserError if it cannot be read."""
    try:
        content = json.loads(Path(lock).read_text(encoding="utf-8"))
        if content["version"] != LOCK_VERSION:
            raise ValueError(f"version {content['version']} instead of {LOCK_VERSION}")
        return {
            key: {"size": int(seen["size"]), "sha256": str(seen["sha256"])} for key, seen in content["files"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{lock}: is no lock file of published weights ({error!r}); restore it, or remove it to trust the files "
            "that are there now"
        ) from error


def record(entry: Entry, file: File, digests: Digests, *, lock: str | os.PathLike[str]) -> None:
    """Write a file's size and sha256 into the lock file, unless they are there. UserError if that is not possible."""
    key, seen = f"{entry.name}/{file.name}", {"size": digests.size, "sha256": digests.sha256}
    if read_lock(lock).get(key) == seen:
        return
    try:
        with exclusive(Path(lock).with_name(f".{Path(lock).name}.lock")):
            files = read_lock(lock) | {key: seen}
            write_json(lock, {"version": LOCK_VERSION, "files": dict(sorted(files.items()))})
    except OSError as error:
        raise UserError(
            f"{lock}: cannot be written ({error.strerror or error}); make it writable, or name another file: --lock"
        ) from error


# What a file should be.


@dataclass(frozen=True)
class _Known:
    """What is known of a file before it is seen; None where nothing is."""

    size: int | None
    sha256: str | None
    md5_prefix: str | None
    says: str  # who knows size and sha256
    acceptable: bool  # another size or sha256, by the user's word

    def difference(self, digests: Digests) -> tuple[str, bool] | None:
        """In what a file differs from it, as a clause, and whether the user can accept that; None if in nothing."""
        if self.md5_prefix is not None and not digests.md5.startswith(self.md5_prefix):
            return f"its md5 is {digests.md5}, not {self.md5_prefix}... as its name says", False
        if self.size is not None and digests.size != self.size:
            return f"it has {digests.size} bytes, {self.says} says {self.size}", self.acceptable
        if self.sha256 is not None and digests.sha256 != self.sha256:
            return f"its sha256 is {digests.sha256}, {self.says} says {self.sha256}", self.acceptable
        return None


@dataclass(frozen=True)
class _Kept:
    """A file of an entry, where it is kept and remembered."""

    entry: Entry
    file: File
    folder: Path
    lock: Path

    @property
    def path(self) -> Path:
        return self.entry.file_path(self.file, self.folder)

    def known(self, accept: bool = False) -> _Known:
        seen = None if accept else read_lock(self.lock).get(f"{self.entry.name}/{self.file.name}")
        # What the publisher says wins over what was seen first.
        if self.file.sha256 is None and seen is not None:
            return _Known(seen["size"], seen["sha256"], self.file.md5_prefix, str(self.lock), True)
        return _Known(
            self.file.size, self.file.sha256, self.file.md5_prefix, "the registry of published weights", False
        )

    def refuse(self, what: str, wrong: tuple[str, bool], mirror: str | None = None) -> NoReturn:
        """Raise the UserError for a wrong file; `what` is its path or address."""
        difference, acceptable = wrong
        name = self.entry.name
        if what == str(self.path):
            first = "remove it and fetch it again"
        elif mirror is not None:
            first = "correct the mirror's file"
        else:
            first = "try another mirror (published.mirror in the configuration)"
        options = ["--folder", str(self.folder), "--lock", str(self.lock), *(["--mirror", mirror] if mirror else [])]
        command = shlex.join(["python", "-m", "published", "fetch", name, "--accept", *options])
        last = (
            f"accept it: {command}" if acceptable else f"use your own file: published.files.{name} in the configuration"
        )
        raise UserError(f"{what} is not the file that {name} is: {difference}; {first}, or {last}")


def _digest(path: Path) -> Digests:
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with open(path, "rb") as file:
        while block := file.read(_MIB):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return Digests(size, sha256.hexdigest(), md5.hexdigest())


def _memory(path: Path) -> Path:
    return path.with_name(f".{path.name}.digests.json")


def _remember_digests(path: Path, digests: Digests) -> None:
    write_json(_memory(path), asdict(digests) | {"mtime_ns": path.stat().st_mtime_ns})


def _remembered_digests(path: Path) -> Digests | None:
    """Digests from when the file was last read, None if it changed since."""
    try:
        content, state = json.loads(_memory(path).read_text(encoding="utf-8")), path.stat()
        if content.pop("mtime_ns") == state.st_mtime_ns and content["size"] == state.st_size:
            return Digests(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


# The download.


class _Interrupted(Exception):
    """A download that failed in a way that may pass. `wait`: seconds the server asks for, None if it says nothing."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class _Partial:
    """`FILE.part`, the bytes so far, and `FILE.part.json`, of which answer they are a part."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._notes = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def notes(self, address: str) -> dict[str, Any]:
        """`validator` (for If-Range) and `total` (bytes) of the answer that the bytes came from, if from `address`."""
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            return notes if notes["address"] == address else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def begin(self, address: str, validator: str | None, total: int | None) -> IO[bytes]:
        """An empty file to write an answer from its first byte to."""
        self.remove()
        file = open(self.path, "wb")
        write_json(self._notes, {"address": address, "validator": validator, "total": total})
        return file

    def remove(self) -> None:
        # The bytes first: notes without bytes harm nobody.
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def publish(self, target: Path) -> None:
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, target)
        self._notes.unlink(missing_ok=True)


def _download(kept: _Kept, known: _Known, mirror: str | None, pause: float, timeout: tuple[float, float]) -> Digests:
    """Download a file, verify it and give it its name."""
    address = kept.entry.address(kept.file, mirror)
    if address is None:
        raise UserError(by_hand(kept.entry, kept.file, kept.folder))
    partial = _Partial(kept.path)
    advice = (
        f"download it elsewhere and put it at {kept.path}, or name a mirror (published.mirror) or your copy "
        f"(published.files.{kept.entry.name}) in the configuration"
    )
    print(f"fetching {address}", file=sys.stderr)
    best, failures, again = partial.size, 0, False
    while True:
        try:
            pieced = _receive(kept, known, address, partial, mirror, advice, timeout)
        except _Interrupted as error:
            failures = 1 if partial.size > best else failures + 1
            best = max(best, partial.size)
            if failures == ATTEMPTS:
                raise UserError(
                    f"{address}: {error}, {ATTEMPTS} times in a row; run the command again later"
                    f"{f' (it goes on after {partial.size} bytes)' if partial.size else ''}, {advice}"
                ) from error
            wait = min(_MAX_PAUSE, error.wait if error.wait is not None else pause * 2 ** (failures - 1))
            print(f"{address}: {error}; trying again in {wait:g} s", file=sys.stderr)
            time.sleep(wait)
            continue
        digests = _digest(partial.path)
        wrong = known.difference(digests)
        page = _is_page(partial.path)
        if wrong is None and not page:
            partial.publish(kept.path)
            return digests
        partial.remove()
        if page:
            raise UserError(f"{address}: the server sent a web page instead of the file; {advice}")
        if again or not pieced:
            kept.refuse(address, wrong, mirror)
        # The pieces may be of different files: once more, from the first byte.
        print(f"{address}: {wrong[0]}, after a download in pieces; starting again", file=sys.stderr)
        best, failures, again = 0, 0, True


def _receive(
    kept: _Kept,
    known: _Known,
    address: str,
    partial: _Partial,
    mirror: str | None,
    advice: str,
    timeout: tuple[float, float],
) -> bool:
    """One request, whose answer is added to `partial`.

    Returns:
        When that is as long as the server says: whether it comes from more than one answer.

    Raises:
        _Interrupted: try again. UserError: trying again is of no use.
    """
    offset, notes = partial.size, partial.notes(address)
    # Without a validator nobody knows whether the server still has the same file; where its digest is known, that will tell.
    if offset and not notes.get("validator") and known.sha256 is None:
        offset = 0
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if notes.get("validator"):
            headers["If-Range"] = notes["validator"]
    try:
        with requests.get(address, headers=headers, stream=True, timeout=timeout) as response:
            status = response.status_code
            if status == 416 and offset:
                total = _content_range(response)[1]
                if total == offset and notes.get("total") in (None, total):
                    return True
                partial.remove()
                raise _Interrupted(f"the server has no bytes after {offset}")
            if status in (408, 425, 429) or status >= 500:
                raise _Interrupted(f"the server answered {status} {response.reason}", _retry_after(response))
            if status not in (200, 206):
                raise UserError(f"{address}: the server answered {status} {response.reason}; {advice}")
            if response.headers.get("Content-Type", "").lower().startswith("text/html"):
                raise UserError(f"{address}: the server sent a web page instead of the file; {advice}")
            if status == 206:
                start, total = _content_range(response)
                if start != offset:
                    partial.remove()
                    raise _Interrupted(f"asked for the bytes from {offset} on, the server sent others")
                # Not every server minds If-Range.
                before = notes.get("total")
                if offset and (
                    before not in (None, total) or _validator(response) not in (None, notes.get("validator"))
                ):
                    partial.remove()
                    raise _Interrupted(f"the server has another file than before ({total} bytes, {before} before)")
            else:
                offset, total = 0, _content_length(response)
            chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
            if total is None and known.size is None and not chunked:
                raise UserError(f"{address}: the server does not say how long the file is; {advice}")
            if total is not None and known.size is not None and total != known.size:
                wrong = f"the server has {total} bytes, {known.says} says {known.size}"
                kept.refuse(address, (wrong, known.acceptable), mirror)
            total = known.size if total is None else total
            file = open(partial.path, "ab") if offset else partial.begin(address, _validator(response), total)
            with file:
                _copy(response, file, None if total is None else total - offset, f"{kept.entry.name}/{kept.file.name}")
    except requests.exceptions.SSLError as error:
        raise UserError(
            f"{address}: no secure connection ({_reason(error)}); where a company's proxy has its own certificates, set "
            f"REQUESTS_CA_BUNDLE to their file, or {advice}"
        ) from error
    except (
        requests.exceptions.TooManyRedirects,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
    ) as error:
        raise UserError(f"{address}: {_reason(error)}; {advice}") from error
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError) as error:
        raise _Interrupted(f"the connection broke off after {partial.size} bytes") from error
    except requests.exceptions.Timeout as error:
        raise _Interrupted("the server does not answer") from error
    except requests.RequestException as error:
        raise _Interrupted(_reason(error)) from error
    if total is not None and partial.size != total:
        raise _Interrupted(f"the connection ended after {partial.size} of {total} bytes")
    return offset > 0


def _copy(response: requests.Response, file: IO[bytes], size: int | None, label: str) -> None:
    def mebibytes() -> Iterator[None]:
        """Does the work; yields once per MiB."""
        done = 0
        for chunk in response.iter_content(_CHUNK):
            file.write(chunk)
            before, done = done, done + len(chunk)
            yield from [None] * (done // _MIB - before // _MIB)

    for _ in progress(mebibytes(), total=None if size is None else size // _MIB, desc=label, unit="MiB"):
        pass


def _content_length(response: requests.Response) -> int | None:
    value = response.headers.get("Content-Length", "")
    # Of a compressed answer it is the compressed length.
    return (
        int(value) if value.isdigit() and response.headers.get("Content-Encoding", "identity") == "identity" else None
    )


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """(first byte, bytes of the whole file) of a Content-Range header, None where it does not say."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match is None:
        return None, None
    return tuple(int(group) if group and group.isdigit() else None for group in match.groups())


def _validator(response: requests.Response) -> str | None:
    """What If-Range can carry: a strong ETag, or the time of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after(response: requests.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _is_page(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _reason(error: Exception) -> str:
    """The reason inside requests' and urllib3's errors, which wrap each other."""
    while isinstance(inner := getattr(error, "reason", None) or next(iter(error.args), None), Exception):
        error = inner
    return str(error)
