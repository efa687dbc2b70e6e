"""A folder of images with captions in one CSV, JSON Lines or Parquet file, or with none (extraction only)."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

from catalog.files import SUFFIXES, image_files
from catalog.index import check_image_ids, listing
from core.console import UserError

UNLISTED = "unlisted"  # split of images that no split file names


@dataclass
class Annotations:
    """What a source knows before any image is opened: parallel lists per image, and per caption."""

    image_ids: list[str]
    paths: list[str]
    splits: list[str]
    caption_ids: list[str]
    caption_images: list[str]
    texts: list[str]


def _read_rows(path: Path) -> tuple[list[dict[str, object]], list[str]]:
    """Rows of the caption file as dictionaries, and what is wrong with some; a UserError where none can be read."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pylist(), []
        except Exception as error:
            raise UserError(f"{path} is not a Parquet file ({error}); export it again") from error
    if suffix not in (".csv", ".jsonl"):
        raise UserError(f"captions file {path}: use .csv, .jsonl or .parquet, not {suffix or 'no suffix'}")
    text = decode_text(path)
    return _csv_rows(path, text) if suffix == ".csv" else (_json_rows(path, text), [])


def decode_text(path: Path) -> str:
    """A UTF-8 file's text. UserError: the line that is not UTF-8 and how to convert the file."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8 "
            f"(for example: iconv -f {encoding} -t utf-8 {path.name} > new.{path.name})"
        ) from error


def _csv_rows(path: Path, text: str) -> tuple[list[dict[str, object]], list[str]]:
    # Not splitlines(): a quoted caption may hold line breaks, and U+2028 ends no row.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows, long = [], []
    try:
        for row in reader:
            if None in row:
                long.append(f"line {reader.line_num}")
            rows.append(row)
    except csv.Error as error:
        raise UserError(
            f"{path}, the row that begins in line {reader.line_num + 1}: {error}; close its quotes and double those inside them"
        ) from error
    # Taking the first fields would cut `a dog, on a mat` short.
    what = "rows with more fields than the header (put captions that hold a comma in quotes)"
    return rows, [listing(what, long)] if long else []


def _json_rows(path: Path, text: str) -> list[dict[str, object]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); write one object per line") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: expected an object with `image` and `caption`, found {line[:40]!r}"
            )
        rows.append(row)
    return rows


def _encodable(value: object) -> bool:
    """Whether a value can be stored as UTF-8; JSON can spell halves of surrogate pairs."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def _fraction(image_id: str, seed: int) -> float:
    """A number in [0, 1) that depends on the id and the seed alone, so that adding images moves no other image."""
    digest = hashlib.sha256(f"{seed}/{image_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _read_split_files(split_files: dict[str, str], lookup: dict[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """Split by image id, and what is wrong with the files."""
    chosen: dict[str, str] = {}
    problems = []
    for split, file in split_files.items():
        unknown, ambiguous, moved = [], [], []
        for name in filter(None, (line.strip() for line in decode_text(Path(file)).split("\n"))):
            image_id = lookup.get(name, "")
            if image_id is None:
                ambiguous.append(name)
            elif not image_id:
                unknown.append(name)
            elif chosen.setdefault(image_id, split) != split:
                moved.append(f"{name} ({chosen[image_id]})")
        for what, names in (
            ("names of images that are not in the folder", unknown),
            ("names that fit several files (write the path below the folder)", ambiguous),
            ("images that another split has", moved),
        ):
            if names:
                problems.append(f"split file {file}: {listing(what, names)}")
    return chosen, problems


def read_folder(
    images: str,
    captions: str | None = None,
    splits: dict[str, float] | None = None,
    seed: int = 0,
    split: str = "all",
    split_files: dict[str, str] | None = None,
) -> Annotations:
    """Index rows of a folder.

    Args:
        images: folder, searched recursively; an image's id is its path below it without suffix.
        captions: file with columns `image` (file name, relative path or id) and `caption`; optional `caption_id`, `split`.
        splits: fractions by name, drawn per image from `seed`, where the file has no `split` column.
        split: name of the one split if there are neither.
        split_files: by split, a text file with the name of one image per line, as in captions. Images that no file names
            get the split "unlisted": they are extracted, but belong to no split.

    Raises:
        UserError: listing everything wrong at once.
    """
    root = Path(images)
    if not root.is_dir():
        raise UserError(f"image folder {images} does not exist; set datasets.<name>.images to a folder")
    files = [Path(path) for path in image_files(images)]
    if not files:
        raise UserError(f"no images in {images}; looked for {', '.join(SUFFIXES)} in it and below")
    relative = [p.relative_to(root).as_posix() for p in files]
    ids = [r.rsplit(".", 1)[0] for r in relative]
    problems = check_image_ids(ids)

    lookup: dict[str, str | None] = {}
    for r, image_id in zip(relative, ids, strict=True):
        for key in {Path(r).name, Path(r).stem}:
            # A bare name that fits files of two folders fits none of them.
            lookup[key] = image_id if lookup.get(key, image_id) == image_id else None
    # The whole path below the folder, with or without suffix, always wins.
    lookup |= dict(zip(relative, ids, strict=True)) | dict(zip(ids, ids, strict=True))

    texts: dict[str, list[tuple[str, str]]] = {i: [] for i in ids}
    chosen_split: dict[str, str] = {}
    if split_files:
        chosen_split, wrong_names = _read_split_files(split_files, lookup)
        problems += wrong_names
        split = UNLISTED
    if captions is not None:
        path = Path(captions)
        if not path.is_file():
            raise UserError(
                f"captions file {captions} does not exist; set datasets.<name>.captions to a file or leave it out"
            )
        rows, wrong_rows = _read_rows(path)
        problems += wrong_rows
        columns = set().union(*(r.keys() for r in rows[:50])) if rows else set()
        if not {"image", "caption"} <= columns:
            found = ", ".join(sorted(str(c) for c in columns)) or "none"
            raise UserError(f"{path}: needs columns `image` and `caption`; found {found}")
        unknown, empty, duplicate, ambiguous, moved, no_text, broken = [], [], [], [], [], [], []
        seen_ids: set[str] = set()
        for number, row in enumerate(rows, 1):
            name = str(row.get("image") or "")
            if not all(_encodable(row.get(column)) for column in ("image", "caption", "caption_id", "split")):
                broken.append(f"row {number} ({name})")
                continue
            image_id = lookup.get(name, "")
            if image_id is None:
                ambiguous.append(name)
                continue
            if not image_id:
                unknown.append(name)
                continue
            text = row.get("caption")
            if text is not None and not isinstance(text, str):
                no_text.append(f"row {number} ({name})")
                continue
            if not text or not text.strip():
                empty.append(f"row {number} ({name})")
                continue
            caption_id = (
                str(row["caption_id"])
                if row.get("caption_id") not in (None, "")
                else f"{image_id}#{len(texts[image_id])}"
            )
            if caption_id in seen_ids:
                duplicate.append(caption_id)
            seen_ids.add(caption_id)
            texts[image_id].append((caption_id, " ".join(text.split())))
            if row.get("split") not in (None, ""):
                value = str(row["split"])
                if chosen_split.setdefault(image_id, value) != value:
                    moved.append(name)
        for what, names in (
            ("captions of images that are not in the folder", unknown),
            ("captions whose image name fits several files (write the path below the folder)", ambiguous),
            ("empty captions", empty),
            ("rows with half a surrogate pair, as of an emoji cut in two (remove it)", broken),
            ("captions that are not text (write one row per caption)", no_text),
            ("caption ids that occur twice", duplicate),
            ("images with captions in two splits", moved),
        ):
            if names:
                problems.append(listing(what, names))
        silent = [i for i in ids if not texts[i]]
        if silent:
            problems.append(listing("images without a caption (remove them or add captions)", silent))
    if problems:
        raise UserError(
            f"dataset in {images}"
            + (f" with captions {captions}" if captions else "")
            + ":\n  "
            + "\n  ".join(problems)
        )

    names = []
    for image_id in ids:
        if image_id in chosen_split:
            names.append(chosen_split[image_id])
        elif splits:
            position, value = 0.0, _fraction(image_id, seed) * sum(splits.values())
            chosen = list(splits)[-1]  # rounding may leave the sum a hair below the last limit
            for name, share in splits.items():
                position += share
                if value < position:
                    chosen = name
                    break
            names.append(chosen)
        else:
            names.append(split)
    return Annotations(
        image_ids=ids,
        paths=[str(p) for p in files],
        splits=names,
        caption_ids=[c for i in ids for c, _ in texts[i]],
        caption_images=[i for i in ids for _ in texts[i]],
        texts=[t for i in ids for _, t in texts[i]],
    )
