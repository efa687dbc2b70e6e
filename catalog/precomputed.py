"""Features in the layout of SCAN, VSE-infinity and 3SHNet, as a dataset without images.

Per split, in one folder: `{split}_ims.npy` (N,K,D), `{split}_caps.txt` (one caption a line, five per image), and, as far as
they exist, `{split}_ids.txt`, `{split}_capids.txt`, `{split}_boxes.npy`; 3SHNet adds `{split}_segmentations.npy` (N,133,7,7),
`{split}_seg_maps.npy` (N,64,64) and `{split}_cat_onehots.npy` (N,133). Rows are images, or images repeated five times.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catalog.annotations import Annotations
from catalog.index import check_image_ids, listing
from catalog.layout import BOXES_FILE, CAPTIONS_PER_IMAGE, array_path, layout_files
from catalog.tables import TOKEN_LINE
from core.console import UserError, progress
from core.kinds import other_kind
from core.text import decode_text

_BLOCK_BYTES = 32 << 20
_FEW_EQUAL = 0.05  # of the images of a split; a few pictures are there twice in every dataset


def open_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file, mapped into memory. UserError if there is none or it holds objects (never unpickled).

    What has been looked at stays in memory while the array lives: open it anew for every block.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is a .npz archive")
        if not array.ndim:
            raise ValueError("it is a single number")
        if rest := _behind(path, array):
            raise UserError(
                f"{path} holds {rest:,} bytes behind its array {array.shape}, as of several that were saved into one file; save each to a file"
            )
        return array
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; complete the folder or correct the dataset's splits") from error
    except Exception as error:  # a damaged header raises errors of every kind
        # numpy would advise to unpickle them, which runs what a stranger wrote.
        objects = (
            re.search("Python objects|pickle", str(error))
            and "an array of Python objects, which are never opened; save plain numbers with numpy.save"
        )
        what = (
            other_kind(path)
            or objects
            or f"not an array of numbers in .npy format, or cut off ({error}); copy it again"
        )
        raise UserError(f"{path} is {what}") from error


def _behind(path: Path, array: np.ndarray) -> int:
    """How many bytes a file has behind its array; zeros, as disks and tools append, do not count."""
    end = getattr(array, "offset", 0) + array.nbytes
    rest = path.stat().st_size - end
    if rest > 0:
        with open(path, "rb") as file:
            file.seek(end)
            if any(file.read(_BLOCK_BYTES)):
                return rest
    return 0


@dataclass(frozen=True)
class Part:
    """One split's files: `prefix`, number of `images`, per file name how many rows an image has (1, or as many as captions), and
    how many captions."""

    prefix: str
    images: int
    steps: dict[str, int]
    captions: int = CAPTIONS_PER_IMAGE


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without their ends; only newlines end one, as in the loaders of the field."""
    lines = decode_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_parts(
    folder: str, splits: dict[str, str], features: Sequence[str], captions_per_image: int = CAPTIONS_PER_IMAGE
) -> dict[str, Part]:
    """What the files of each split hold, by their headers, in the order of the index' rows: by the splits' names.

    UserError: listing all files that are missing or do not fit.
    """
    problems: list[str] = []
    parts: dict[str, Part] = {}
    names = [name for feature in features for name in layout_files(feature).values()]
    for split, prefix in sorted(splits.items()):
        path = Path(folder) / f"{prefix}_caps.txt"
        if not path.is_file():
            problems.append(f"{path} does not exist; complete the folder or correct the dataset's splits")
            continue
        lines = read_lines(path)
        captions = len(lines)
        images, rest = divmod(captions, captions_per_image)
        if rest or not images:
            how_many = "five" if captions_per_image == 5 else captions_per_image
            last = "its last line is empty, remove it; " if lines and not lines[-1].strip() else ""
            problems.append(
                f"{path} has {captions} lines, which is no multiple of {how_many} captions per image; {last}captions_per_image of the "
                "dataset says how many there are"
            )
            continue
        steps = {}
        boxes = "regions" in features and array_path(folder, prefix, BOXES_FILE).exists()
        for name in [*names, BOXES_FILE] if boxes else names:
            try:
                rows = len(open_array(array_path(folder, prefix, name)))
            except UserError as error:
                problems.append(str(error))
                continue
            if rows not in (images, captions):
                times = "five" if captions_per_image == 5 else captions_per_image
                problems.append(
                    f"{array_path(folder, prefix, name)} has {rows} rows, {path} {captions} captions; expected "
                    f"{images} rows (one per image) or {captions} (each image {times} times)"
                )
            steps[name] = rows // images
        parts[split] = Part(prefix, images, steps, captions_per_image)
    if problems:
        raise UserError(f"precomputed features in {folder}:\n  " + "\n  ".join(problems))
    return parts


def read_precomputed(
    folder: str,
    splits: dict[str, str],
    features: Sequence[str],
    workers: int = 2,
    captions_per_image: int = CAPTIONS_PER_IMAGE,
) -> Annotations:
    """Index rows and content hashes. Reads every byte once, for the hashes, a block at a time.

    Args:
        folder: of the files. splits: file prefix by split name. features: which files to expect. workers: threads.

    Raises:
        UserError: listing everything wrong at once.
    """
    parts = read_parts(folder, splits, features, captions_per_image)
    hashes: list[str] = []
    found = Annotations([], [], [], [], [], [], content_hashes=hashes)
    problems: list[str] = []
    for split, part in parts.items():
        captions = read_lines(Path(folder) / f"{part.prefix}_caps.txt")
        ids = _ids(folder, part, problems)
        caption_ids = _caption_ids(folder, part, ids, problems)
        blank = [f"line {n}" for n, text in enumerate(captions, 1) if not text.strip()]
        if blank:
            problems.append(listing(f"empty captions in {part.prefix}_caps.txt", blank))
        if all(TOKEN_LINE.fullmatch(text) for text in captions):
            problems.append(
                f"{part.prefix}_caps.txt has `name#number<TAB>caption` lines; leave the caption alone in each"
            )
        found.image_ids += ids
        found.paths += [f"{array_path(folder, part.prefix, next(iter(part.steps)))}#{i}" for i in range(part.images)]
        found.splits += [split] * part.images
        found.caption_ids += caption_ids
        found.caption_images += [i for i in ids for _ in range(part.captions)]
        found.texts += captions
    if len(found.image_ids) != len(found.splits):  # an `_ids.txt` of another length
        raise UserError(f"precomputed features in {folder}:\n  " + "\n  ".join(problems))
    repeated = _repeated_ids(parts, found)
    problems += repeated or check_image_ids(found.image_ids)
    if not repeated and len(set(found.caption_ids)) < len(found.caption_ids):
        seen: set[str] = set()
        twice = [c for c in found.caption_ids if c in seen or seen.add(c)]
        problems.append(listing("caption ids that occur twice", twice))
    for part in parts.values() if not problems else ():
        digests, differing = _hash_rows(folder, part, workers)
        seen = set()
        again = [
            i
            for i, digest in zip(found.image_ids[len(hashes) :], digests, strict=False)
            if digest in seen or seen.add(digest)
        ]
        if len(again) > len(digests) * _FEW_EQUAL:
            found.notes.append(
                listing(
                    f"images of {part.prefix}_*.npy have the very features of one above them; were rows written twice?",
                    again,
                )
            )
        hashes += digests
        problems += [
            listing(f"images whose five rows in {part.prefix}_{name}.npy are not equal", rows)
            + " (with one caption an image, set captions_per_image: 1)"
            for name, rows in differing.items()
        ]
    if problems:
        raise UserError(f"precomputed features in {folder}:\n  " + "\n  ".join(problems))
    return found


def _repeated_ids(parts: dict[str, Part], found: Annotations) -> list[str]:
    """Ids that stand twice in the `_ids.txt` files: in one of them, or in those of two splits (row numbers, for example)."""
    splits: dict[str, list[str]] = {}
    for image_id, split in zip(found.image_ids, found.splits, strict=True):
        splits.setdefault(image_id, []).append(split)
    groups: dict[tuple[str, ...], list[str]] = {}
    for image_id, own in splits.items():
        if len(own) > 1:
            groups.setdefault(tuple(dict.fromkeys(own)), []).append(image_id)
    return [
        listing(f"image ids that occur twice in {' and '.join(f'{parts[s].prefix}_ids.txt' for s in own)}", ids)
        + ". Write ids that differ over all splits into these files, or remove them: rows are then numbered"
        for own, ids in groups.items()
    ]


def _ids(folder: str, part: Part, problems: list[str]) -> list[str]:
    """Image ids: of the file, one per image or per caption, or made from the row numbers."""
    path = Path(folder) / f"{part.prefix}_ids.txt"
    if not path.is_file():
        return [f"{part.prefix}-{i:06d}" for i in range(part.images)]
    ids = [line.strip() for line in read_lines(path)]
    if len(ids) == part.images * part.captions:
        if any(ids[i] != ids[i - i % part.captions] for i in range(len(ids))):
            problems.append(f"{path} has a line per caption, but the five lines of an image are not always equal")
        ids = ids[:: part.captions]
    if len(ids) != part.images:
        problems.append(f"{path} has {len(ids)} lines for {part.images} images; remove or correct the file")
    return ids


def _caption_ids(folder: str, part: Part, ids: list[str], problems: list[str]) -> list[str]:
    path = Path(folder) / f"{part.prefix}_capids.txt"
    if not path.is_file():
        return [f"{i}#{k}" for i in ids for k in range(part.captions)]
    caption_ids = [line.strip() for line in read_lines(path)]
    if len(caption_ids) != part.images * part.captions:
        problems.append(
            f"{path} has {len(caption_ids)} lines for {part.images * part.captions} captions; remove or correct it"
        )
    return caption_ids


def _hash_rows(folder: str, part: Part, workers: int) -> tuple[list[str], dict[str, list[str]]]:
    """sha256 of every image's rows in all files; and, per file, images whose repeated rows differ."""
    arrays = {name: open_array(array_path(folder, part.prefix, name)) for name in part.steps}
    row_bytes = sum(array[:1].nbytes * part.steps[name] for name, array in arrays.items())
    headers = "\0".join(f"{name} {a.dtype.str} {a.shape[1:]}" for name, a in sorted(arrays.items())).encode()
    size = max(1, _BLOCK_BYTES // max(1, row_bytes))
    blocks = [range(start, min(start + size, part.images)) for start in range(0, part.images, size)]

    def hash_block(rows: range) -> tuple[list[str], dict[str, list[str]]]:
        digests = [hashlib.sha256(headers) for _ in rows]
        differing: dict[str, list[str]] = {}
        for name, step in sorted(part.steps.items()):
            block = open_array(array_path(folder, part.prefix, name))[rows.start * step : rows.stop * step]
            for i, digest in enumerate(digests):
                own = np.ascontiguousarray(block[i * step])
                digest.update(own)
                # Bytes, not values: NaN differs from itself, and is the import's to complain of.
                if any(np.ascontiguousarray(block[i * step + k]).tobytes() != own.tobytes() for k in range(1, step)):
                    differing.setdefault(name, []).append(f"image {rows[i]}")
        return [digest.hexdigest() for digest in digests], differing

    hashes: list[str] = []
    differing: dict[str, list[str]] = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = progress(pool.map(hash_block, blocks), total=len(blocks), desc=f"hash {part.prefix}", unit="block")
        for digests, wrong in results:
            hashes += digests
            for name, rows in wrong.items():
                differing.setdefault(name, []).extend(rows)
    return hashes, differing


def standardised(ids: np.ndarray) -> np.ndarray:
    """(id/133 - 0.3342)/0.0621, as an early loader of 3SHNet's authors standardised maps; float64."""
    return (np.asarray(ids, np.float64) / 133 - 0.3342) / 0.0621


def seg_map_encoding(path: Path) -> str:
    """Whether a `_seg_maps.npy` holds class ids ("raw") or `standardised` ones, by the range of 64 rows of it.

    Standardised ids reach from -5.4 to 10.6 and none is a whole number.
    """
    maps = open_array(path)
    for row in np.unique(np.linspace(0, len(maps) - 1, 64).astype(np.int64)):
        values = np.asarray(maps[row], np.float64)
        if (values < 0).any() or (values != np.floor(values)).any():
            return "standardised"
    return "raw"
