"""Text that users give: files in UTF-8, and what to do with those that are in something else."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

from core.console import UserError
from core.kinds import other_kind

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Windows' cp1252 has letters and quotes at 0x80-0x9f, where latin1 has control characters; elsewhere the two agree.
_WINDOWS = re.compile(rb"[\x80-\x9f]")
_NOT_WINDOWS = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_WESTERN = ("cp1252", "latin1")
_CONTROL = re.compile("[\x80-\x84\x86-\x9f]")  # U+0085 is a line end of old systems
_BETWEEN = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


def one_line(text: str) -> str:
    """A text on one line: blanks, line ends and control characters are single blanks between words. "" where nothing can be seen."""
    text = _BETWEEN.sub(" ", text).strip()
    return "" if all(unicodedata.category(character)[0] in "CZ" for character in text) else text


def has_control(text: str) -> bool:
    """Whether a text holds control characters other than line ends and tabs."""
    return _UNSEEN.search(text) is not None


def decode_text(path: str | Path, data: bytes | None = None) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Args:
        path: the file. data: its bytes, where they have been read already (from an archive).

    Raises:
        UserError: another kind of file; the line that is not UTF-8, or that holds what a conversion from a wrong encoding leaves, and how to
            convert the file.
    """
    path = Path(path)
    if data is None:
        if what := other_kind(path):
            raise UserError(f"{path} is {what}")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); see to its path and permissions") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at, what = error.start, f"byte 0x{data[error.start]:02x} is not UTF-8"
    else:
        if "\0" in text:
            if _encoding(data) not in ("utf-16le", "utf-16be"):
                line = text.count("\n", 0, text.index("\0")) + 1
                raise UserError(
                    f"{path}, line {line}: byte 0x00 is no text: the file is damaged or no text file; write it again"
                )
            at, what = data.index(0), "byte 0x00 is no text"
        elif found := _CONTROL.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise UserError(
                f"{path}, line {line}: holds the control character U+{ord(found[0]):04X}, as a conversion from latin1 leaves "
                "of quotes and letters that are in cp1252; convert the original again: "
                f"iconv -f cp1252 -t utf-8 {path.name} > new.{path.name}"
            )
        else:
            return text
    line = data.count(b"\n", 0, at) + 1
    encoding = _encoding(data)
    fix = (
        f"(for example: iconv -f {encoding} -t utf-8 {path.name} > new.{path.name}"
        + (
            "; where letters come out wrong, from the encoding of its language, such as cp1250)"
            if encoding in _WESTERN
            else ")"
        )
        if encoding
        else "(it is in none of the usual encodings of Europe; the program that wrote it can say in which)"
    )
    raise UserError(f"{path}, line {line}: {what}; save the file as UTF-8 {fix}")


def _encoding(data: bytes) -> str | None:
    """What a file that is not UTF-8 most likely is in, as `iconv` calls it."""
    for bom, name in _BOMS:
        if data.startswith(bom):
            return name
    head = data[: 1 << 16]
    if head.count(0) > len(head) // 4:  # every other byte of Latin letters in UTF-16
        return "utf-16le" if head[1::2].count(0) >= head[::2].count(0) else "utf-16be"
    if _NOT_WINDOWS.search(data):
        return None
    return "cp1252" if _WINDOWS.search(data) else "latin1"
