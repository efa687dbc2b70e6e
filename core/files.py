"""Files that are whole or absent, JSON, digests, and settings given to a command."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.console import UserError
from core.text import decode_text


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


@contextlib.contextmanager
def exclusive(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock `path` against other processes (and threads); `waiting` is shown if somebody has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    print(waiting, file=sys.stderr)
                fcntl.flock(handle, fcntl.LOCK_EX)
            # Who had it before has removed this file, and a lock on it is a lock on nothing.
            if os.fstat(handle.fileno()).st_nlink == 0:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


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


class Written(float):
    """A number of floating point that keeps how it was written: as a name, 1.10 is another than 1.1."""

    def __new__(cls, text: str) -> Written:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


def parse_json(
    text: str | bytes,
    objects: Callable[[list[tuple[str, Any]]], Any] | None = None,
    floats: Callable[[str], float] | None = None,
) -> Any:
    """The value of a JSON text that somebody else wrote.

    Args:
        objects: makes an object of its keys and values, as `once` does. floats: makes a number with a point, as `Written` does
            where numbers may be names.

    Raises:
        ValueError: it is none, a key stands twice in an object, or nobody meant it: nested thousandfold, numbers of thousands of digits.
    """
    collects = gc.isenabled()
    gc.disable()  # nothing of it is garbage yet; looking through it again and again takes half the time of a large file
    try:
        return json.loads(text, object_pairs_hook=objects or once, parse_float=floats)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except ValueError as error:
        if "sys.set_int_max_str_digits" in str(error):  # advice to users of Python
            raise ValueError("it holds a number of thousands of digits") from error
        raise
    finally:
        if collects:
            gc.enable()


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. ValueError: a key stands twice, of which only the last would count."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return found


def keys_given_twice(text: str, place: str) -> list[str]:
    """Keys that stand twice in one section of YAML or JSON, of which only the last would count: a line each.

    Args:
        text: the file's content. place: what to call it.
    """
    import yaml

    looked_into: set[int] = set()  # a node is there again wherever an alias stands for it

    def twice(node: yaml.Node | None, above: tuple[str, ...]) -> Iterator[str]:
        if id(node) in looked_into:
            return
        looked_into.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                yield from twice(item, above)
        if not isinstance(node, yaml.MappingNode):
            return
        lines: dict[object, int] = {}
        for key, value in node.value:
            name, line = str(getattr(key, "value", "")), key.start_mark.line + 1
            # `yes` and `true` are one key.
            meant = yaml.safe_load(name) if key.tag == "tag:yaml.org,2002:bool" else name
            if meant in lines:
                where = f"line {line}" if lines[meant] == line else f"lines {lines[meant]} and {line}"
                yield f"{'.'.join((*above, name))}: stands twice in {place}, {where}; keep one, or rename it"
            lines.setdefault(meant, line)
            yield from twice(value, (*above, name))

    try:
        # JSON may be indented by tabs, YAML may not.
        root = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return []  # whoever reads it for its content says what is wrong with it
    return list(dict.fromkeys(twice(root, ())))


def location(text: str) -> Path | str:
    """A command's argument: a path, or an address as it is (a path would lose a slash)."""
    return text if "://" in text else Path(text)


def read_mapping(value: str, *, flag: str) -> dict[str, Any]:
    """A command-line value that holds settings: inline JSON, or the path of a JSON or YAML file.

    Raises:
        UserError: it is neither, or no mapping, or a key stands twice; the message names `flag`.
    """
    text, place = value, flag
    if not value.lstrip().startswith("{"):
        place = f"{flag} {value}"
        try:
            text = decode_text(value)
        except (OSError, UserError) as error:
            raise UserError(f"{flag}: {value!r} is neither inline JSON nor a readable file: {error}") from error
    try:
        if value.endswith((".yaml", ".yml")):
            import yaml

            mapping = yaml.safe_load(text)
        else:
            mapping = parse_json(text, dict)
    except Exception as error:  # the two parsers share no error class
        raise UserError(f"{place} cannot be parsed: {error}") from error
    if twice := keys_given_twice(text, place):
        raise UserError("; ".join(twice))
    if not isinstance(mapping, dict):
        raise UserError(f"{place} must hold a mapping of keys to values, not a {type(mapping).__name__}")
    return mapping
