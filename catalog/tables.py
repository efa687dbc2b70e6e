"""Tables of captions as users have them: CSV of any spreadsheet, JSON Lines, Parquet, and the field's own text files."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog.index import listing
from catalog.names import as_name
from core.console import UserError
from core.files import Written, parse_json
from core.kinds import other_kind
from core.text import decode_text

COLUMNS = ("image", "caption", "caption_id", "split")
SUFFIXES = (".csv", ".tsv", ".txt", ".token", ".jsonl", ".json", ".parquet")
_OTHERWISE = {  # what to do with what is not read
    (".xls", ".xlsx", ".ods", ".numbers"): "; export the sheet as CSV in UTF-8",
    (".gz", ".bz2", ".xz", ".zip"): "; unpack it",
}
# Kaggle's Flickr30K, `image_name| comment_number| comment`: the field's most copied table of captions.
_KNOWN_NAMES = {"image_name": "image", "comment": "caption"}
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_BAR_LOST = re.compile(r"\s*(\d)\s+(\S.*)")  # one line of Kaggle's Flickr30K: `2199200615.jpg| 4   A dog runs`
TOKEN_LINE = re.compile(r"([^\t]+)#\d+\t(.*)")  # Flickr8K's and Flickr30K's *.token: `1000092795.jpg#0<TAB>text`


@dataclass
class Table:
    """Rows of a table of captions.

    Attributes:
        rows: dictionaries with `image`, `caption` and perhaps `caption_id`, `split`; places: what to call each of them.
        within: by place, what would be the image names of the further lines of a row that goes over several, were these rows.
        problems: what is wrong with some rows. notes: what was passed over or taken for something else.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    within: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path) -> Table:
    """The rows of a file of captions; those without any value, as spreadsheets leave them, are no rows.

    Raises:
        UserError: no row can be read: another format, another encoding, columns that are missing or there twice.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = next((what for suffixes, what in _OTHERWISE.items() if suffix in suffixes), "")
        raise UserError(
            f"captions file {path}: use {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, not {suffix or 'no suffix'}{hint}"
        )
    if suffix == ".parquet":
        table = _parquet(path)
    elif suffix == ".jsonl":
        table = _json_lines(path, decode_text(path))
    elif suffix == ".json":
        table = _json(path, decode_text(path))
    else:
        text = decode_text(path)
        table = _token_lines(text) if suffix in (".token", ".txt") else None
        table = table or _separated(path, text)
    kept = [k for k, row in enumerate(table.rows) if any(_filled(value) for value in row.values())]
    if (empty := len(table.rows) - len(kept)) and kept:
        table.notes.append(f"{path}: {empty} empty rows passed over")
    table.rows, table.places = [table.rows[k] for k in kept], [table.places[k] for k in kept]
    found = list(dict.fromkeys(key for row in table.rows[:50] for key in row))
    if not table.rows and not table.problems:
        raise UserError(f"{path}: holds no captions; write one row for each, with columns `image` and `caption`")
    if table.rows and not {"image", "caption"} <= set(found):
        raise UserError(f"{path}: needs columns `image` and `caption`; found {_quoted(found)}")
    return table


_LOOKED_INTO = 1 << 25  # bytes; reading larger tables takes seconds


def table_splits(path: str | os.PathLike[str]) -> tuple[Mapping[str, int], bool] | None:
    """How many rows each name in a table's column `split` has, and whether all rows have one. None where it cannot be read, or not
    in a moment."""
    status = os.stat(path)
    if status.st_size > _LOOKED_INTO:
        return None
    return _table_splits(os.fspath(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _table_splits(path: str, size: int, time: int) -> tuple[Mapping[str, int], bool] | None:
    try:
        rows = read_table(Path(path)).rows
    except (UserError, OSError):  # whoever makes the index says what is wrong
        return None
    names = [as_name(row.get("split")).strip() for row in rows]
    return Counter(filter(None, names)), all(names) and bool(names)


def _filled(value: object) -> bool:
    return value is not None and (not isinstance(value, str) or bool(value.strip())) and value == value  # not NaN


def _quoted(names: list[str]) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"


def _column(name: object) -> str:
    """A column's name as ours: blanks and capitals do not matter."""
    plain = re.sub("[\u200b\ufeff]", "", str(name)).strip().lower()  # programs leave them there unseen
    plain = re.sub(r"\s+", "_", plain)
    plain = _KNOWN_NAMES.get(plain, plain)
    return plain if plain in COLUMNS else str(name)


def _columns(path: Path, names: list[Any]) -> list[str]:
    """The columns' names as ours. UserError where one of ours is there twice: only one of them could count."""
    found = [_column(name) for name in names]
    twice = [name for name in COLUMNS if found.count(name) > 1]
    if twice:
        own = [str(n) for n, column in zip(names, found, strict=True) if column == twice[0]]
        raise UserError(f"{path}: the column `{twice[0]}` is there {len(own)} times ({_quoted(own)}); keep one of them")
    return found


def _separated(path: Path, text: str) -> Table:
    """A table with a header, fields between commas, semicolons (Excel in many countries), tabs or bars (Kaggle)."""
    table, first = Table(), 1
    # Spreadsheets and editors leave empty lines in front of the header.
    while (blank := re.match(r"[ \t]*(?:\r\n|\r|\n)", text)) and text.strip():
        text, first = text[blank.end() :], first + 1
    if announced := re.match(r"(?i)sep=(.)\r?\n", text):  # Excel's own first line
        text, first = text[announced.end() :], first + 1
    separators = [announced[1]] if announced else list(_SEPARATORS)
    headers = {s: next(csv.reader(io.StringIO(text, newline=""), delimiter=s), []) for s in separators}
    fitting = [s for s in separators if {"image", "caption"} <= {_column(name) for name in headers[s]}]
    separator = (fitting or separators)[0]
    if not fitting and text.strip():
        header = headers[separator]
        several = next((s for s in separators if len(headers[s]) > 1), separator)
        header = headers[several]
        hint = f"; between them are {_SEPARATORS[several]}" if several != "," and several in _SEPARATORS else ""
        raise UserError(
            f"{path}: needs columns `image` and `caption` in its line {first}; found {_quoted(header)}{hint}. "
            "Rename the columns, or add the line if there is none"
        )
    # Not splitlines(): a quoted caption may hold line breaks, and U+2028 ends no row. Kaggle's file quotes nothing.
    quoting = csv.QUOTE_NONE if separator == "|" else csv.QUOTE_MINIMAL
    # A quote opens a field behind a blank as well: people write `a, "one, two"`.
    shape = {"delimiter": separator, "quoting": quoting, "skipinitialspace": separator in ",;"}
    reader = csv.reader(io.StringIO(text, newline=""), strict=quoting != csv.QUOTE_NONE, **shape)
    long, begins = [], first
    try:
        columns = _columns(path, next(reader, []))
        begins = reader.line_num + first
        for fields in reader:
            place, begins = f"line {begins}", reader.line_num + first
            if not fields:
                continue
            if (
                separator == "|"
                and len(columns) == 3
                and len(fields) == 2
                and (whole := _BAR_LOST.fullmatch(fields[1]))
            ):
                fields = [fields[0], *whole.groups()]
                table.notes.append(
                    f"{path}, {place}: lacks a bar behind the number {whole[1]}, taken as if it were there"
                )
            if any(extra.strip() for extra in fields[len(columns) :]):
                long.append(place)
            if begins - int(place[5:]) > 1 and "image" in columns:
                lines = csv.reader([line for field in fields for line in field.splitlines()[1:]], **shape)
                own = [row[columns.index("image")] for row in lines if len(row) >= len(columns)]
                table.within |= {place: own} if own else {}
            values = fields + [None] * (len(columns) - len(fields))
            table.rows.append({c: v for c, v in zip(columns, values, strict=False) if c in COLUMNS})
            table.places.append(place)
    except csv.Error as error:
        raise UserError(
            f"{path}, the row that begins in line {begins}: {error}; close its quotes and double those inside them"
        ) from error
    if long:
        # Taking the first fields would cut `a dog, on a mat` short.
        names = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
        what = f"rows with more fields than the header (put captions that hold {names.get(separator, separator)} in quotes)"
        table.problems.append(listing(what, long))
    return table


def _token_lines(text: str) -> Table | None:
    """Flickr's `name#k<TAB>caption` lines; None where the first line is none of them."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not TOKEN_LINE.fullmatch(next((line for line in lines if line.strip()), "")):
        return None
    table, wrong = Table(), []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if (match := TOKEN_LINE.fullmatch(line)) is None:
            wrong.append(f"line {number}")
            continue
        table.rows.append({"image": match[1], "caption": match[2]})
        table.places.append(f"line {number}")
    if wrong:
        table.problems.append(listing("lines that are not `name#number<TAB>caption`", wrong))
    return table


def _json_lines(path: Path, text: str) -> Table:
    table = Table()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, floats=Written)
        except ValueError as error:
            what = str(error)
            if isinstance(error, json.JSONDecodeError):  # whose own line is 1 in every line
                what = f"not JSON ({error.msg} at character {error.colno})"
            raise UserError(
                f"{path}, line {number}: {what}; write one object per line, without brackets around all and commas between them"
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: expected an object with `image` and `caption`, found {line[:40]!r}"
            )
        columns = _columns(path, list(row))
        table.rows.append(dict(zip(columns, row.values(), strict=True)))
        table.places.append(f"line {number}")
    return table


def _json(path: Path, text: str) -> Table:
    """A list of objects like the rows of a table, or COCO's `captions_*.json`: `images` with their names, `annotations` of their ids."""
    try:
        content = parse_json(text, floats=Written)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); with an object a line it is called .jsonl") from error
    entries, names = content, None
    if isinstance(content, dict):
        images, entries = content.get("images"), content.get("annotations")
        if isinstance(images, list) and any(isinstance(one, dict) and "sentences" in one for one in images[:1]):
            raise UserError(f"{path} has Karpathy's layout; write source: karpathy and annotations: {path}")
        if isinstance(images, list):
            pairs = [(_number(one.get("id")), one.get("file_name")) for one in images if isinstance(one, dict)]
            names = {image: name for image, name in pairs if image}
            if twice := [image for image, name in pairs if image and names[image] != name]:
                raise UserError(f"{path}: {listing('ids stand for several images; keep one of each', twice)}")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"{path}: expected a list of objects with `image` and `caption`, or COCO's `images` and `annotations`"
        )
    if names is not None and entries and not any("caption" in entry for entry in entries):
        raise UserError(f"{path}: its annotations are no captions; COCO's are in the files captions_*.json")
    rows = []
    for entry in entries:
        if names is not None:
            image = _number(entry.get("image_id"))
            entry = {"image": names.get(image, image), "caption": entry.get("caption"), "caption_id": entry.get("id")}
        rows.append(dict(zip(_columns(path, list(entry)), entry.values(), strict=True)))
    return Table(rows, [f"entry {number}" for number in range(1, len(rows) + 1)])


def _number(value: object) -> str:
    """An id, of which 42 and 42.0 are one."""
    return as_name(float(value) if isinstance(value, Written) else value)


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
    except Exception as error:
        what = other_kind(path) or f"not a Parquet file ({error}); export it again"
        raise UserError(f"{path} is {what}") from error
    columns = _columns(path, columns)
    try:
        content = pq.read_table(path).rename_columns(columns)
    except Exception as error:
        raise UserError(f"{path} is not a Parquet file ({error}); export it again") from error
    content = content.select([c for c in content.column_names if c in COLUMNS] or content.column_names)
    for at, kept in enumerate(content.schema):
        if kept.name == "image" and pa.types.is_nested(
            kept.type
        ):  # as of Hugging Face's datasets, with the bytes inside
            raise UserError(
                f"{path}: the column 'image' holds {kept.type}, no names; write images as files and their names as text"
            )
        if "binary" in str(kept.type) and not pa.types.is_nested(kept.type):  # text, of writers that do not say so
            try:
                content = content.set_column(at, kept.name, content.column(at).cast(pa.binary()).cast(pa.string()))
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"{path}: the column {kept.name!r} holds bytes that are no UTF-8; write text"
                ) from error
    rows = content.to_pylist()
    fractions = [value for row in rows if isinstance(value := row.get("image"), float) and value % 1 > 0]
    if fractions:  # whether it was 1.1 or 1.10 nobody can tell
        raise UserError(
            f"{path}: {listing('images are named by numbers with fractions; write names as text', fractions)}"
        )
    return Table(rows, [f"row {number}" for number in range(1, len(rows) + 1)])
