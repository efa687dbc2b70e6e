"""A folder of images with captions in one CSV, JSON Lines or Parquet file, or with none (extraction only)."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from catalog.annotations import UNLISTED, Annotations
from catalog.files import SUFFIXES, left_out, sort_files
from catalog.index import check_image_ids, listing
from catalog.names import Names, as_name
from catalog.tables import read_table
from core.console import UserError
from core.text import decode_text, has_control, is_list, one_line

_UNREAD = "files that are there, but of a type that is not read (convert them, to JPEG or PNG say)"
# Files of an export begin with a split's name; a dash begins an option.
_SPLIT = re.compile(r"[^./\\\x00-\x1f-][^/\\\x00-\x1f]{0,63}")
_SET_MISSING_IMAGES = "to go on without those images, set missing_images: drop"


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


def _read_split_files(
    split_files: dict[str, str], names: Names, missing_images: str
) -> tuple[dict[str, str], list[str], list[str]]:
    """Split by image id, what is wrong with the files, and what of them was left out."""
    chosen: dict[str, str] = {}
    problems, notes, missing = [], [], False
    for split, file in split_files.items():
        unknown, unread, ambiguous, moved = [], [], [], []
        listed = list(filter(None, map(str.strip, re.split(r"\r\n|\r|\n", decode_text(file)))))
        if not listed:
            problems.append(f"split file {file}: names no image; fill it, or leave split_files.{split} out")
        for name in listed:
            image_id = names.find(name)
            if image_id is None:
                ambiguous.append(name)
            elif not image_id:
                (unread if names.unread(name) else unknown).append(names.unread(name) or name)
            elif chosen.setdefault(image_id, split) != split:
                moved.append(f"{name} ({chosen[image_id]})")
        for what, found in (
            ("names of images that are not in the folder", unknown),
            (f"names of {_UNREAD}", unread),
            ("names that fit several files (write the path below the folder)", ambiguous),
            ("images that another split has", moved),
        ):
            absent = found is unknown or found is unread
            if found and absent and missing_images == "drop":
                notes.append(f"split file {file}: {listing(f'{what}, left out', found)}")
            elif found:
                missing = missing or absent
                hint = names.hint(found[0]) if found is unknown else ""
                problems.append(f"split file {file}: {listing(what, found)}{hint}")
    return chosen, problems + [_SET_MISSING_IMAGES] * missing, notes


def image_ids(relative: list[str]) -> tuple[list[str], list[str]]:
    """Ids of images by their paths below the folder, and what to tell of them.

    An id is the path without its suffix. It is kept where two ids would be equal (`text.jpg`, `text.png`), or an id another's path
    (`text.jpg.png` beside `text.jpg`).
    """
    stems = [r.rsplit(".", 1)[0] for r in relative]
    counts, paths = Counter(stems), set(relative)
    shared = [counts[stem] > 1 or stem in paths for stem in stems]
    ids = [r if keep else stem for r, stem, keep in zip(relative, stems, shared, strict=True)]
    what = "files differ from another in the suffix alone; their ids keep it"
    told = [r for r, keep in zip(relative, shared, strict=True) if keep]
    return ids, [listing(what, told)] if told else []


@dataclass
class _Captions:
    """The captions of a file, by image; splits where its rows name them."""

    texts: dict[str, list[tuple[str, str]]]
    splits: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _read_captions(
    path: Path, ids: list[str], names: Names, *, missing_images: str, missing_captions: str
) -> _Captions:
    table = read_table(path)
    found = _Captions({i: [] for i in ids}, problems=list(table.problems), notes=list(table.notes))
    unknown, unread, nameless, empty, duplicate, ambiguous, moved, no_text, broken = [], [], [], [], [], [], [], [], []
    controls, swallowed = [], []
    seen_ids: set[str] = set()
    for place, row in zip(table.places, table.rows, strict=True):
        name, text = as_name(row.get("image")), row.get("caption")
        where = f"{place} ({name})"
        if not all(_encodable(row.get(column)) for column in ("image", "caption", "caption_id", "split")):
            broken.append(where)
            continue
        image_id = names.find(name)
        swallowed += [where] if any(names.find(inside) for inside in table.within.get(place, ())) else []
        if not name.strip():
            nameless.append(place)
        elif image_id is None:
            ambiguous.append(name)
        elif not image_id:
            (unread if names.unread(name) else unknown).append(name)
        elif text is not None and (
            is_list(text) if isinstance(text, str) else text == text
        ):  # NaN is how pandas writes nothing
            no_text.append(where)
        elif not isinstance(text, str) or not one_line(text):
            empty.append(where)
        else:
            caption_id = as_name(row.get("caption_id")) or f"{image_id}#{len(found.texts[image_id])}"
            if caption_id in seen_ids:
                duplicate.append(caption_id)
            seen_ids.add(caption_id)
            found.texts[image_id].append((caption_id, one_line(text)))
            if has_control(text):
                controls.append(where)
            value = as_name(row.get("split")).strip()
            if value and found.splits.setdefault(image_id, value) != value:
                moved.append(name)
    unread_files = [names.unread(name) for name in unread]
    if missing_images == "drop":
        for what, wrong in (
            ("captions left out, their images are not in the folder", unknown),
            (f"captions left out, of {_UNREAD}", unread_files),
        ):
            if wrong:
                found.notes.append(listing(what, wrong))
        unknown, unread_files = [], []
    if controls:
        found.notes.append(listing("captions with control characters, which count as blanks", controls))
    if empty and missing_captions != "fail":
        found.notes.append(listing("empty captions left out", empty))
        empty = []
    for what, wrong in (
        ("captions of images that are not in the folder", unknown),
        (f"captions of {_UNREAD}", unread_files),
        ("captions that name no image", nameless),
        ("captions whose image name fits several files (write the path below the folder)", ambiguous),
        ("empty captions (missing_captions: keep or drop goes on without them)", empty),
        ("rows with half a surrogate pair, as of an emoji cut in two (remove it)", broken),
        ("captions that are not text (write one row per caption)", no_text),
        ("rows with an open quote, to which the rows behind it were added (close it)", swallowed),
        ("caption ids that occur twice", duplicate),
        ("images with captions in two splits", moved),
        ("splits that differ in capitals or Unicode form alone (write each in one way)", _alike(found.splits.values())),
        (
            "splits whose names cannot be part of a file's name (no slashes, no dot or dash in front, 64 characters at most)",
            [name for name in dict.fromkeys(found.splits.values()) if not _SPLIT.fullmatch(name)],
        ),
    ):
        if wrong:
            found.problems.append(listing(what, wrong) + (names.hint(wrong[0]) if wrong is unknown else ""))
    if unknown or unread_files:
        found.problems.append(_SET_MISSING_IMAGES)
    silent = [i for i in ids if not found.texts[i]]
    if silent and missing_captions == "fail":
        what = "images without a caption (remove them, add captions, or set missing_captions: keep or drop)"
        found.problems.append(listing(what, silent))
    elif silent:
        where = "left out" if missing_captions == "drop" else f"kept outside of all splits ({UNLISTED!r})"
        found.notes.append(listing(f"images without a caption {where}", silent))
        found.silent = set(silent)
    return found


def _alike(names: Iterable[str]) -> list[str]:
    """Names that differ from another in capitals, or in Unicode form, alone."""
    known: dict[str, set[str]] = {}
    for name in names:
        known.setdefault(unicodedata.normalize("NFKC", name).casefold(), set()).add(name)
    return [name for own in known.values() if len(own) > 1 for name in sorted(own)]


def _splits(
    ids: list[str], chosen: dict[str, str], fractions: dict[str, float] | None, seed: int, rest: str
) -> list[str]:
    """The split of every image: as chosen, else drawn by the fractions, else `rest`."""
    names = []
    for image_id in ids:
        if image_id in chosen or not fractions:
            names.append(chosen.get(image_id, rest))
            continue
        position, value = 0.0, _fraction(image_id, seed) * sum(fractions.values())
        name = list(fractions)[-1]  # rounding may leave the sum a hair below the last limit
        for candidate, share in fractions.items():
            position += share
            if value < position:
                name = candidate
                break
        names.append(name)
    return names


def read_folder(
    images: str,
    captions: str | None = None,
    splits: dict[str, float] | None = None,
    seed: int = 0,
    split: str = "all",
    split_files: dict[str, str] | None = None,
    missing_images: str = "fail",
    missing_captions: str = "fail",
) -> Annotations:
    """Index rows of a folder.

    Args:
        images: folder, searched recursively; an image's id is its path below it without suffix.
        captions: file with columns `image` (see `catalog.names`) and `caption`; optional `caption_id`, `split`.
        splits: fractions by name, drawn per image from `seed`, where the file has no `split` column.
        split: name of the one split if there are neither.
        split_files: by split, a text file with the name of one image per line, as in captions. Images that no file names
            get the split "unlisted": they are extracted, but belong to no split.
        missing_images: captions of images that are not there: "fail", or "drop" them. missing_captions: images without a
            caption, or with empty ones alone: "fail", "keep" them in the split "unlisted", or "drop" them.

    Raises:
        UserError: listing everything wrong at once.
    """
    root = Path(images)
    if not root.is_dir():
        raise UserError(f"image folder {images} does not exist; set datasets.<name>.images to a folder")
    found, others = sort_files(images)
    others = [Path(path).relative_to(root).as_posix() for path in others]
    files = [Path(path) for path in found]
    if not files:
        raise UserError(
            f"no images in {images}; looked for {', '.join(SUFFIXES)} in it and below" + left_out(others, "; ")
        )
    relative = [p.relative_to(root).as_posix() for p in files]
    ids, notes = image_ids(relative)
    if others:
        notes.append(left_out(others))
    problems = check_image_ids(ids)
    names = Names(root, relative, ids, others)

    texts: dict[str, list[tuple[str, str]]] = {i: [] for i in ids}
    chosen_split: dict[str, str] = {}
    if split_files:
        chosen_split, wrong_names, left = _read_split_files(split_files, names, missing_images)
        problems, notes = problems + wrong_names, notes + left
        split = UNLISTED
    if captions is not None:
        path = Path(captions)
        if not path.is_file():
            raise UserError(
                f"captions file {captions} does not exist; set datasets.<name>.captions to a file or leave it out"
            )
        read = _read_captions(path, ids, names, missing_images=missing_images, missing_captions=missing_captions)
        texts, problems, notes = read.texts, problems + read.problems, notes + read.notes
        chosen_split = read.splits | chosen_split | dict.fromkeys(read.silent, UNLISTED)
        if missing_captions == "drop":
            kept = [k for k, image_id in enumerate(ids) if image_id not in read.silent]
            ids, files = [ids[k] for k in kept], [files[k] for k in kept]
        if not any(texts.values()) and not problems:
            problems.append("no caption of an image is left: " + "; ".join(notes))
    if problems:
        raise UserError(
            f"dataset in {images}"
            + (f" with captions {captions}" if captions else "")
            + ":\n  "
            + "\n  ".join(problems)
        )
    return Annotations(
        image_ids=ids,
        paths=[str(p) for p in files],
        splits=_splits(ids, chosen_split, splits, seed, split),
        caption_ids=[c for i in ids for c, _ in texts[i]],
        caption_images=[i for i in ids for _ in texts[i]],
        texts=[t for i in ids for _, t in texts[i]],
        notes=notes,
    )
