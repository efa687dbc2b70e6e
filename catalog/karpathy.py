"""Karpathy's split files: `dataset_coco.json` and `dataset_flickr30k.json`, as they are or in the zip they come in."""

from __future__ import annotations

import functools
import os
import re
import zipfile
from collections.abc import Collection, Hashable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from catalog.annotations import UNLISTED, Annotations
from catalog.archives import lies_hidden
from catalog.files import image_files
from catalog.index import check_image_ids, listing
from catalog.names import NUMBER, as_name, normal, note_name
from core.console import UserError
from core.files import once, parse_json
from core.kinds import other_kind
from core.text import decode_text, one_line

CAPTIONS_PER_IMAGE = 5  # a few COCO images have more; the field uses the first five
# Every published result trains on COCO's `restval` images as well.
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: no file can hold it
Key = TypeVar("Key", bound=Hashable)
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def read_karpathy(
    annotations: str,
    images: str,
    member: str | None = None,
    splits: Collection[str] | None = None,
    missing_images: str = "fail",
    missing_captions: str = "fail",
    captions_per_image: int | None = CAPTIONS_PER_IMAGE,
) -> Annotations:
    """Index rows of a Karpathy file.

    `image_id` is COCO's number or, for Flickr30K, the file name without suffix; `caption_id` is `sentid`.

    Args:
        annotations: the JSON file, or a zip that holds it. member: its name in a zip that holds several.
        splits: which of train, val and test to take; None for all.
        missing_images: entries whose file is not there: "fail", or "drop" them. missing_captions: entries without a caption:
            "fail", "keep" them in the split "unlisted", or "drop" them.
        images: the folder with `filepath/filename` (COCO: `val2014/COCO_val2014_000000391895.jpg`) or `filename`.

    Raises:
        UserError: listing everything wrong at once, with counts and the first few names.
    """
    entries = _read_entries(annotations, member)
    if not os.path.isdir(images):
        raise UserError(f"image folder {images!r} does not exist; set datasets.<name>.images to a folder")
    files = _Files(images)
    found = Annotations([], [], [], [], [], [])
    beyond: dict[str, int] = {}
    malformed, missing, unknown_splits, silent, strangers, empty = [], [], [], [], [], []
    for number, entry in enumerate(entries):
        try:
            if isinstance(entry["filename"], float):  # 1.10 and 1.1 are one number, and two names
                raise TypeError("its filename is a number; write text")
            filename, split = str(entry["filename"]), str(entry["split"])
            sentences = [(str(s["sentid"]), s["raw"], s.get("imgid")) for s in entry["sentences"]]
            imgid = entry.get("imgid")
            if half := next((sentid for sentid, *_ in sentences if _SURROGATE.search(sentid)), None):
                raise TypeError(f"its sentid {half!r} is half a character")
        except (KeyError, TypeError) as error:
            malformed.append(f"entry {number} ({type(error).__name__}: {error})")
            continue
        if splits is not None and split in SPLITS and SPLITS[split] not in splits:
            continue
        image_id = as_name(entry.get("cocoid")) or os.path.splitext(filename)[0]
        names = [f"{entry['filepath']}/{filename}", filename] if entry.get("filepath") else [filename]
        path = files.find(names, as_name(entry.get("cocoid")))
        if path is None:
            missing.append(names[0])
            if missing_images == "drop":
                continue
        if split not in SPLITS:
            unknown_splits.append(f"{split} ({filename})")
        strangers += [sentid for sentid, _, owner in sentences if owner is not None and owner != imgid]
        texts = []
        for sentid, raw, _ in sentences[:captions_per_image]:
            text = one_line(raw) if isinstance(raw, str) and not _SURROGATE.search(raw) else ""
            if text:
                texts.append((sentid, text))
            else:
                empty.append(sentid)
        if not sentences or (not texts and missing_captions != "fail"):
            silent.append(filename)
            if missing_captions == "drop":
                continue
            split = UNLISTED if missing_captions == "keep" else split
        if captions_per_image is not None and len(sentences) > captions_per_image:
            beyond[image_id] = len(sentences) - captions_per_image
        found.image_ids.append(image_id)
        found.paths.append(path or names[0])
        found.splits.append(SPLITS.get(split, split))
        found.caption_ids += [sentid for sentid, _ in texts]
        found.caption_images += [image_id] * len(texts)
        found.texts += [text for _, text in texts]

    lacking = sorted(set(splits or ()) - set(found.splits)) if not malformed else []
    if lacking and set(splits) == set(SPLITS.values()) and found.splits:  # all that there are, however few
        found.notes.append(f"no images of split {', '.join(lacking)}")
    elif lacking:
        raise UserError(f"annotations {annotations} have no images of split {', '.join(lacking)}; correct splits")
    problems = check_image_ids(found.image_ids)
    if missing and missing_images == "drop":
        found.notes.append(listing(f"entries left out, their files are not in {images}", missing))
        missing = []
    if silent and missing_captions != "fail":
        where = "left out" if missing_captions == "drop" else f"kept outside of all splits ({UNLISTED!r})"
        found.notes.append(listing(f"images without a caption {where}", silent))
        silent = []
    if empty and missing_captions != "fail":
        found.notes.append(listing("captions left out that are empty or no text", empty))
        empty = []
    for what, names in (
        ("entries without filename, split, sentences, sentid or raw", malformed),
        (
            f"files that are not in {images} (complete the folder, set images to the one above val2014/, or missing_images: drop)",
            missing,
        ),
        (f"unknown splits (known are {', '.join(SPLITS)})", unknown_splits),
        ("images without a caption (missing_captions: keep or drop goes on)", silent),
        (
            "files that several entries name (keep one entry of each)",
            _repeats(list(dict(zip(found.image_ids, found.paths, strict=True)).values())),
        ),
        ("captions without an image: their imgid is another's", strangers),
        ("captions that are empty or no text (missing_captions: keep or drop goes on without them)", empty),
        ("caption ids that occur twice", _repeats(found.caption_ids)),
    ):
        if names:
            problems.append(listing(what, names))
    if not found.texts and not problems:
        problems.append("no caption of an image is left: " + "; ".join(found.notes))
    if problems:
        raise UserError(f"annotations {annotations} with images in {images}:\n  " + "\n  ".join(problems))
    if files.moved:
        found.notes.append(f"{files.moved} images found by their name alone, in another folder or with another suffix")
    if files.renamed:
        found.notes.append(f"{files.renamed} images found by their COCO number, under the names of COCO 2017")
    if beyond:
        found.notes.append(
            f"{sum(beyond.values())} captions of {len(beyond)} images left out: the first {captions_per_image} of an image count"
            + (", as the field does" if captions_per_image == CAPTIONS_PER_IMAGE else "")
        )
    return found


class _Files:
    """The images of a folder, found by what entries call them. Only names that the walk through it came upon are ever used:
    one with `../` in it is a missing file.

    Attributes:
        moved: how many were found in another folder or as another type. renamed: how many under the names of COCO 2017.
    """

    def __init__(self, folder: str) -> None:
        root = Path(folder)
        self._below = str(root / "_")[:-1]
        # One walk, and no `Path` for each of 123,287 names: either would take longer than all else here.
        start = len(os.path.join(root, ""))
        self._exact = {normal(name): name for name in (path[start:] for path in image_files(str(root)))}
        self.moved = self.renamed = 0

    def find(self, names: Sequence[str], number: str) -> str | None:
        """The path of the first of `names`, paths below the folder, that is there; else of the one image that has that name in
        another folder, or COCO's number."""
        name = next((self._exact[n] for n in map(normal, names) if n in self._exact), None)
        if name is None:  # in another folder, or converted to another type
            name = self._by_stem.get(_stem(normal(names[-1])))
            self.moved += name is not None
        if (
            name is None and number.isdecimal()
        ):  # COCO 2017 holds the same pictures in other folders, under the number alone
            name = self._by_number.get(int(number))
            self.renamed += name is not None
        return None if name is None else self._below + name

    @functools.cached_property
    def _by_stem(self) -> dict[str, str]:
        return _unambiguous((_stem(name), name) for name in self._exact)

    @functools.cached_property
    def _by_number(self) -> dict[int, str]:
        numbers = ((NUMBER.fullmatch(PurePosixPath(name).stem), name) for name in self._exact)
        return _unambiguous((int(number[1]), name) for number, name in numbers if number)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem.casefold()


def _unambiguous(pairs: Iterable[tuple[Key, str]]) -> dict[Key, str]:
    found: dict[Key, str | None] = {}
    for key, value in pairs:
        note_name(found, key, value)
    return {key: value for key, value in found.items() if value is not None}


_LOOKED_INTO = 1 << 25  # bytes; looking into larger files takes long, and the published ones have all splits
_SPLIT = re.compile(rb'"split"\s*:\s*"(\w+)"')


def annotated_splits(path: str) -> set[str] | None:
    """Which of our splits have entries in a JSON file, without parsing it. None: it is an archive, another kind of file, or large."""
    status = os.stat(path)
    return _annotated_splits(path, status.st_mtime_ns) if status.st_size <= _LOOKED_INTO else None


@functools.lru_cache
def _annotated_splits(path: str, time: int) -> set[str] | None:
    try:
        names = {name.decode() for name in _SPLIT.findall(Path(path).read_bytes())}
    except (OSError, UnicodeDecodeError):  # whoever makes the index says what is wrong
        return None
    return {SPLITS.get(name, name) for name in names} or None


def _read_entries(annotations: str, member: str | None) -> list[dict[str, Any]]:
    """The list `images` of the JSON."""
    try:
        if zipfile.is_zipfile(annotations):
            with zipfile.ZipFile(annotations) as archive:
                names = [n for n in archive.namelist() if n.lower().endswith(".json") and not lies_hidden(n)]
                if member is None and len(names) == 1:
                    member = names[0]
                if member not in names:
                    raise UserError(
                        f"{annotations} holds {', '.join(names) or 'no JSON file'}; name one of them: "
                        f"datasets.<name>.member" + (f" is {member!r}" if member else "")
                    )
                data = archive.read(member)
        else:
            if what := other_kind(annotations):
                raise UserError(f"annotations {annotations} are {what}")
            data = Path(annotations).read_bytes()
        # JSON may be in UTF-16 or UTF-32 as well, which its parser sees by itself.
        text = data if b"\0" in data[:4] else decode_text(annotations, data)
        content = parse_json(text, _without_tokens)
    except FileNotFoundError as error:
        raise UserError(f"annotations {annotations} do not exist; set datasets.<name>.annotations to a file") from error
    except (ValueError, zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise UserError(f"annotations {annotations} cannot be read ({error}); mend it, or get it again") from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"annotations {annotations} have no list `images`; expected Karpathy's dataset_*.json")
    return entries


def _without_tokens(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Drops the tokenised captions while parsing: they are most of the file and nobody reads them."""
    value = once(pairs)
    value.pop("tokens", None)
    return value


def _repeats(values: list[str]) -> list[str]:
    seen: set[str] = set()
    return [v for v in values if v in seen or seen.add(v)]
