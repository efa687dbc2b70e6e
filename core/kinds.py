"""What a file is that is not what it should be: users are told what they have, not what a library failed at."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterator

_AGAIN = "download the file itself again"
_STARTS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file: the clone was made without git-lfs; run `git lfs pull` in it"),
    (b"<!doctype", f"a web page that was saved instead of the file; {_AGAIN}"),
    (b"<html", f"a web page that was saved instead of the file; {_AGAIN}"),
    (b"<?xml", f"a server's message that was saved instead of the file; {_AGAIN}"),
    (b"\x1f\x8b", "an archive (gzip); unpack it"),
    (b"\xfd7zxz", "an archive (xz); unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "an archive (7z); unpack it"),
    (b"rar!\x1a\x07", "an archive (rar); unpack it"),
    (b"%pdf-", "a PDF document; export its pages or tables as what is needed"),
    (b"<svg", "a drawing (SVG); convert it to PNG"),
)  # fmt: skip
# Where text belongs.
_DOCUMENTS = (
    (b"PK\x03\x04", "a workbook of a spreadsheet, or a zip archive; export it as CSV in UTF-8, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "a workbook of a spreadsheet; export it as CSV in UTF-8"),
    (b"PAR1", "a Parquet file; call it .parquet"),
    (b"SQLite format 3", "a database; export the table as CSV in UTF-8"),
    *(
        (b"\x80%c" % version, "a pickle of Python, which is not opened; write it again as its suffix says")
        for version in range(2, 6)
    ),
)
_PLAIN = (".csv", ".tsv", ".txt", ".token", ".json", ".jsonl", ".yaml", ".yml")
_TEXTS = (b"{", b"[", b"not found", b"access denied", b"error", b"entry not found")
_PHONES = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")  # how HEIC begins, which phones also call .jpg
_LISTED = 1000  # names of a folder that are looked at for one that is alike
_HEADER = 100 << 20  # bytes; the most that a .safetensors file may have
_NEVER_EMPTY = (".zip", ".parquet", ".json")
_TENSORS = (".pth", ".pth.tar", ".pt", ".bin", ".pkl", ".safetensors", ".npy", ".npz", ".h5", ".hdf5")


def other_kind(path: str | os.PathLike[str]) -> str:
    """What a file is by its first bytes, and what to do, if it is one of the things saved in place of another; else "".

    Git-lfs pointers, web pages, servers' messages, archives, folders; by its suffix, where numbers belong, text, nothing or half of
    it, and where text belongs, workbooks. Missing files are others' to speak of.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except IsADirectoryError:
        return "a folder; name the file itself"
    except OSError:
        return ""
    plain = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what in _STARTS:
        if plain.startswith(start):
            return what
    if head[4:8] == b"ftyp" and head[8:12] in _PHONES:
        return "a HEIC photograph, whatever its name says; convert it to JPEG"
    if head[:3] == b"BZh" and head[4:10] == b"1AY&SY":
        return "an archive (bzip2); unpack it"
    if head[257:262] == b"ustar":
        return "an archive (tar); unpack it"
    if not head and os.fspath(path).lower().endswith((*_TENSORS, *_NEVER_EMPTY)):
        return f"empty (0 bytes): its download or copy failed; {_AGAIN}"
    if os.fspath(path).lower().endswith(_PLAIN):
        return next((what for start, what in _DOCUMENTS if head.startswith(start)), "")
    if os.fspath(path).lower().endswith(_TENSORS):
        if plain.startswith(_TEXTS):
            shown = head[:60].decode("utf-8", "replace").strip().splitlines()[0]
            return f"text, it begins with {shown!r}; {_AGAIN}"
        if _cut_off(path, head):
            return f"cut off: its end is missing; {_AGAIN}"
    return ""


def wrong_file(key: str, path: str | os.PathLike[str], fix: str = "correct the path") -> Iterator[str]:
    """Why the file that a key of the configuration names cannot be meant, as far as its first bytes tell."""
    if not os.path.exists(path):
        leads = "is a link that leads nowhere" if os.path.islink(path) else f"does not exist{why_missing(path)}"
        yield f"{key}: file {path!r} {leads}; {fix}"
    elif not os.path.isfile(path) and not os.path.isdir(path):
        yield f"{key}: {path!r} is no file but a pipe or a device; {fix}"
    elif what := other_kind(path):
        yield f"{key}: file {path!r} is {what}"


def why_missing(path: str | os.PathLike[str]) -> str:
    """What a path that leads nowhere seems to be instead: "" or a clause in brackets."""
    name = os.fspath(path)
    if "://" in name:
        return " (an address: download what is there)"
    if "$" in name:
        return " (variables are not filled in: write the path itself)"
    if any(unicodedata.category(character) in ("Cf", "Cc") for character in name):
        return " (it holds characters that cannot be seen)"
    for other, how in (
        (name.strip(), "without the blanks around it"),
        (name.replace("\\", "/"), "with / between folders"),
    ):
        if other != name and os.path.exists(other):
            return f" (there is one {how})"
    above, own = os.path.split(name)
    try:
        known = [entry.name for entry in itertools.islice(os.scandir(above or os.curdir), _LISTED)]
    except OSError:
        known = []
    alike = difflib.get_close_matches(own.casefold(), {one.casefold() for one in known}, n=1, cutoff=0.8)
    near = next((one for one in known if alike and one.casefold() == alike[0]), None)
    return f" (did you mean {os.path.join(above, near)!r}?)" if near else ""


def stated_architecture(path: str | os.PathLike[str]) -> str | None:
    """The architecture that a weights file says it is of: `.safetensors` alone carry such a note."""
    if not os.fspath(path).lower().endswith(".safetensors"):
        return None
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            note = json.loads(file.read(min(size, _HEADER)))["__metadata__"]["architecture"]
    except (OSError, ValueError, LookupError, TypeError):  # whoever reads the weights says what is wrong
        return None
    return note if isinstance(note, str) else None


def _cut_off(path: str | os.PathLike[str], head: bytes) -> bool:
    """Whether a .safetensors file or a zip (PyTorch's, numpy's) is shorter than it says of itself."""
    size = os.path.getsize(path)
    if os.fspath(path).lower().endswith(".safetensors"):
        end = 8 + int.from_bytes(head[:8], "little")
        if len(head) < 8 or end > size:
            return True
        with open(path, "rb") as file:
            header = file.read(min(end, _HEADER))[8:]
        places = [int(last) for last in re.findall(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)', header)]
        return end + max(places, default=0) > size
    if head.startswith(b"PK\x03\x04"):
        with open(path, "rb") as file:
            file.seek(max(0, size - (1 << 16) - 22))  # where the end of a zip's directory must be
            return b"PK\x05\x06" not in file.read()
    return False
