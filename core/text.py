"""Text that users give: files in UTF-8, and what to do with those that are in something else."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from core.console import UserError
from core.encodings import byte_order, readings
from core.kinds import other_kind

_ESCAPED = re.compile(r"\x1b\$[@AB()]")
_CONTROL = re.compile("[\x80-\x84\x86-\x9f]")  # U+0085 is a line end of old systems
# A quote or a letter with an accent of UTF-8 that was read as cp1252; words of other alphabets that were read as it.
_TWICE = re.compile("\u00e2\u20ac[\u0080-\u00ff\u0152-\u2122]|\u00c3[\u0080-\u00bf\u0152-\u2122]|[\u00a1-\u00ff]{5}")
_LIST = re.compile(r"""\[\s*(["']).*\1\s*\]""", re.DOTALL)
_BYTES = re.compile(r"""b(["']).*\1""", re.DOTALL)
_ENTITY = re.compile(r"&(?:amp|quot|apos|lt|gt|nbsp|#\d+|#x[0-9a-fA-F]+);")
_BETWEEN = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")


def one_line(text: str) -> str:
    """A text on one line: blanks, line ends and control characters are single blanks between words. "" where nothing can be seen."""
    if text.isprintable() and "  " not in text:  # as most are; a blank is the only one that counts as printable
        return text.strip()
    text = _BETWEEN.sub(" ", text).strip()
    return "" if all(unicodedata.category(character)[0] in "CZ" for character in text) else text


def as_sentence(text: str, place: str) -> str:
    """What somebody asks, as it was given.

    Args:
        place: where it was given, for the message.

    Raises:
        UserError: nothing of it can be seen, or it is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # how Python tells bytes of a command line that are no text
        raise UserError(f"{place}: {text!r} is not UTF-8; type it again, in a terminal that is set to UTF-8") from error
    if not one_line(text):
        raise UserError(f"{place} is empty; say what the images should show")
    return text


def has_control(text: str) -> bool:
    """Whether a text holds control characters other than line ends and tabs."""
    return _UNSEEN.search(text) is not None


def is_list(text: str) -> bool:
    """Whether a text is a list of texts, as Python or JSON writes it."""
    return _LIST.fullmatch(text.strip()) is not None


def spoilt(text: str) -> str:
    """What an earlier program or conversion seems to have done to a text; "" where nothing."""
    if is_list(text):
        return "captions are lists, as Python or JSON writes them; write each caption by itself"
    if _BYTES.fullmatch(text):
        return "captions are bytes as Python writes them (b'...'); decode them when they are written"
    if "&" in text and _ENTITY.search(text):
        return "captions hold characters as HTML writes them (&amp; &#39; ...); write the characters themselves"
    if "\ufffd" in text:
        return "captions hold U+FFFD, which stands for letters that were lost when the file was converted; convert the original again"
    if text.strip().lower() in ("nan", "none", "null", "<na>", "undefined"):
        return "captions are what programs write for nothing (nan, None ...); leave these rows out"
    if _TWICE.search(text):
        return (
            "captions look as if they had been converted to UTF-8 from a wrong encoding, or twice; iconv -f utf-8 -t cp1252 "
            "gives back what was before"
        )
    return ""


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
            if not byte_order(data):
                line = text.count("\n", 0, text.index("\0")) + 1
                raise UserError(
                    f"{path}, line {line}: byte 0x00 is no text: the file is damaged or no text file; write it again"
                )
            at, what = data.index(0), "byte 0x00 is no text"
        elif found := _ESCAPED.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise UserError(
                f"{path}, line {line}: text in iso-2022-jp or a relative of it, which only looks like ASCII; save the file as UTF-8 (for "
                f"example: iconv -f iso-2022-jp -t utf-8 {path.name} > new.{path.name})"
            )
        elif found := _CONTROL.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise UserError(
                f"{path}, line {line}: holds the control character U+{ord(found[0]):04X}, as a conversion from latin1 leaves "
                "of quotes and letters that are in cp1252; convert the original again: "
                f"iconv -f cp1252 -t utf-8 {path.name} > new.{path.name}"
            )
        else:
            return text.removesuffix("\x1a")  # how DOS ended texts
    line = data.count(b"\n", 0, at) + 1
    raise UserError(f"{path}, line {line}: {what}; save the file as UTF-8 {_advice(path, data, at)}")


def _advice(path: Path, data: bytes, at: int) -> str:
    """How to make UTF-8 of a file, from what it may be in."""
    known = byte_order(data)
    likely = [(known, "")] if known else readings(data, at)
    if not likely:
        return "(it is in none of the usual encodings; the program that wrote it can say in which)"
    (encoding, shown), *others = likely
    command = f"iconv -f {encoding} -t utf-8 {path.name} > new.{path.name}"
    if known:
        return f"(for example: {command})"
    also = "".join(f"; from {name}, {text!r}" for name, text in others[:3])
    return f"(for example: {command}, which makes {shown!r} of it{also}; what is right only you can see)"
