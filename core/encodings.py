"""Which encoding a text that is not UTF-8 may be in: each is tried, and what comes out is judged as writing."""

from __future__ import annotations

import codecs
import unicodedata

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# As iconv calls them, and Python where it has another name; of equals the first is likelier.
_KNOWN = {
    "cp1252": "", "cp1250": "", "macintosh": "mac_roman", "cp850": "", "cp1254": "", "iso-8859-2": "",
    "gb18030": "", "big5": "cp950", "cp932": "", "euc-jp": "", "cp949": "",
    "cp1251": "", "koi8-r": "", "cp866": "", "cp1253": "", "cp1255": "", "cp1256": "", "cp874": "",
}  # fmt: skip
_IDEOGRAPHS = {
    "gb18030": ("gb2312", 0xB0, 0xD7), "big5": ("big5", 0xA4, 0xC6), "cp932": ("euc-jp", 0xB0, 0xCF), "euc-jp": ("euc-jp", 0xB0, 0xCF),
}  # fmt: skip
_JAPANESE = ("cp932", "euc-jp")
_WIDE = "\u3000\u3001\u3002\u300a\u300b\u300c\u300d\u300e\u300f\u3010\u3011\u301c"
_READ = 1 << 12  # bytes
_DOUBT = 0.2  # of the best; less apart two readings are both likely
_LEAST = 0.35
_QUOTES = "\u2018\u2019\u201a\u201c\u201d\u201e\u2013\u2014\u2026\u00ab\u00bb\u00a1\u00bf\u00b0"


def byte_order(data: bytes) -> str:
    """utf-16 or utf-32 by a mark at the beginning or by the places of zeros, "" where neither speaks for them."""
    for bom, name in _BOMS:
        if data.startswith(bom):
            return name
    head = data[: (1 << 16) & ~3]
    zeros = [head[k::4].count(0) for k in range(4)]
    if sum(zeros) <= len(head) // 4:
        return ""
    if sum(zeros) > len(head) * 0.6:
        return "utf-32le" if zeros[0] <= zeros[3] else "utf-32be"
    # Every other byte of Latin letters.
    return "utf-16le" if zeros[1] + zeros[3] >= zeros[0] + zeros[2] else "utf-16be"


def readings(data: bytes, at: int) -> list[tuple[str, str]]:
    """Likely encodings of a text, the likeliest first, each with what it makes of the place `at`, a byte beyond ASCII."""
    first = data.rfind(b"\n", 0, at) + 1
    last = data.find(b"\n", at + _READ)  # a whole line, or the end would be half a character
    lines, place = data[first : last if last >= 0 else None], at - first
    judged = []
    for name, own in _KNOWN.items():
        try:
            text = lines.decode(own or name)
            before = len(lines[:place].decode(own or name))
        except UnicodeDecodeError:
            continue
        name = "latin1" if name == "cp1252" and not any(0x80 <= byte < 0xA0 for byte in data) else name
        line = text.partition("\n")[0].rstrip("\r")
        judged.append((_judged(text, name), name, line[max(0, before - 12) : before + 16].strip()))
    best = max(judged, default=(0.0,))[0]
    likely = sorted((one for one in judged if one[0] >= max(_LEAST, best - _DOUBT)), key=lambda one: -one[0])
    found: dict[str, str] = {}
    for _, name, shown in likely:
        if shown not in found.values():
            found[name] = shown
    return list(found.items())


def python_name(encoding: str) -> str:
    """What Python calls an encoding of `readings`."""
    return _KNOWN.get(encoding) or encoding


def _judged(text: str, encoding: str) -> float:
    """How much the characters beyond ASCII look like those of words, 0 to 1."""
    found = [_word_like(text, at, encoding) for at, character in enumerate(text) if character > "\x7f"]
    return sum(found) / max(1, len(found))


def _word_like(text: str, at: int, encoding: str) -> float:
    character, before, after = text[at], text[at - 1 : at], text[at + 1 : at + 2]
    number, kind = ord(character), unicodedata.category(character)
    if 0x3040 <= number < 0x3100:  # kana, which Chinese and Korean encodings hold as well
        return 1.0 if encoding in _JAPANESE else 0.5
    if 0xAC00 <= number < 0xD7A4 or 0xFF01 <= number < 0xFF5E or character in _WIDE:  # Hangul, wide signs
        return 1.0
    if 0x4E00 <= number < 0xA000:  # ideographs stand without blanks
        return (0.7 if " " in (before, after) else 1.0) if _usual(character, encoding) else 0.3
    if kind[0] not in "LM":
        return 1.0 if character in _QUOTES else 0.0
    if number > 0x3000:  # half as wide as they should be, and rare ones
        return 0.3
    if character.isupper() and before.isalpha():
        return 0.5 if before.isupper() else 0.0
    beside = [own for own in (before, after) if own.isalpha()]
    if not beside:
        return 0.5
    if number < 0x250:  # letters with accents stand among plain ones
        return sum(own.isascii() for own in beside) / len(beside)
    return sum(ord(own) >> 8 == number >> 8 for own in beside) / len(beside)  # of other alphabets none does


def _usual(ideograph: str, encoding: str) -> bool:
    """Whether an ideograph is among the usual ones of the country, which its encodings list first."""
    table, first, last = _IDEOGRAPHS.get(encoding, ("ascii", 0, 0))
    code = ideograph.encode(table, "ignore")
    return bool(code) and first <= code[0] <= last
