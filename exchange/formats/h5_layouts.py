"""Where HDF5 files keep an image's arrays, told by the names in them.

    42_features, 42_boxes, 42_cls_prob, 42_grids    M2 Transformer, RSTNet, DLCT: datasets by image and array, one file
    42                                              self-critical.pytorch's cocobu_att.h5, cocobu_box.h5: a file for each array
    42/features, 42/boxes; features/42, boxes/42    groups by image, or by array
    features, boxes, image_id (or image_ids ...)    UpDown's, VisDial's, BAN's tables: one row an image, or rows one after the other

Where a name can be read in several ways (`cat_image_features`: `features` of cat_image, or `image_features` of cat), the images of
the index decide.

Nothing in such a file can be code. Links that lead out of a file are not followed.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.layout import H5_IDS
from catalog.names import as_name, normal
from core.console import UserError
from core.files import Written, digest_json, parse_json
from core.kinds import other_kind
from core.text import decode_text

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".h5", ".hdf5", ".he5", ".hdf")
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what the library raises of a damaged file
_MOST = 1 << 27  # numbers of one image; damage may say any
GRID_SHAPE = "grid_shape"  # attribute of a grid's cells in our own files
#: What our own files hold of regions beside the arrays of the field, by the store's names.
BESIDE = ("class_ids", "scores", "class_scores", "attribute_ids", "attribute_scores")
# Array by what files call it. Not `classes`: from where they are counted no file says.
_PARTS = {
    name: part
    for part, names in {
        "features": ("features", "feature", "feats", "feat", "att", "att_features", "att_feats", "image_features"),
        "boxes": ("boxes", "box", "bbox", "bboxes", "image_bb"),
        "grids": ("grids", "grid", "grid_features", "grid_feats"),
        "cls_prob": ("cls_prob", "cls_probs"),
        "class_ids": ("class_ids", "objects_id"),
        "scores": ("scores", "objects_conf"),
        "class_scores": ("class_scores",),
        "attribute_ids": ("attribute_ids", "attrs_id"),
        "attribute_scores": ("attribute_scores", "attrs_conf"),
        "height": ("height", "image_h"),
        "width": ("width", "image_w"),
    }.items()
    for name in names
}
_IDS = ("image_id", "image_ids", "img_ids", "img_id", "ids", "cocoids", "coco_ids")
_COUNTS = ("num_boxes", "num_bbox", "num_regions", "counts")
_RANGES = ("pos_boxes", "pos_bboxes")
_TABLE_NAMES = {*_PARTS, *_IDS, *_COUNTS, *_RANGES, GRID_SHAPE}
_ANY = "|".join(sorted(_PARTS, key=len, reverse=True))
_BY_IMAGE = re.compile(f"(.+?)_({_ANY})")  # 42_features; of 42_class_scores the longest that is known
_BY_FILE = re.compile(f"(?:.*?[_.-])?({_ANY})")  # cocobu_att
_OTHER_FILES = re.compile(
    "(?:.*[_.-])?(fc|label|labels)"
)  # cocobu_fc, cocotalk_label: of a folder they are not looked into


@dataclass(frozen=True, slots=True)
class Part:
    """One array of one image: a dataset by name."""

    path: str
    group: Any
    name: str

    #: Whether rows of zeros at its end are padding.
    padded = False

    def read(self) -> np.ndarray:
        """The array. ValueError: the file is damaged there, or it holds no numbers."""
        return _numbers(self._dataset(), self.path)

    def attribute(self, name: str) -> Any:
        """An attribute of the dataset, None if it has none."""
        return self._dataset().attrs.get(name)

    def _dataset(self) -> Any:
        import h5py

        try:
            if isinstance(self.group.get(self.name, getlink=True), h5py.HardLink):
                found = self.group[self.name]
                if isinstance(found, h5py.Dataset) and found.size is not None and found.size <= _MOST:
                    return found
        except _DAMAGE as error:
            raise ValueError(f"{self.path}: {self.name} is damaged ({error}); copy the file again") from error
        raise ValueError(f"{self.path}: {self.name} is no dataset of this file, or not of one image")


@dataclass(frozen=True, slots=True)
class Row:
    """One array of one image: a row of a table's dataset, or several of them."""

    table: _Table
    array: str
    at: int

    @property
    def path(self) -> str:
        return self.table.path

    @property
    def padded(self) -> bool:
        return self.table.counts is None and self.table.ranges is None

    def read(self) -> np.ndarray:
        """See `Part.read`."""
        return self.table.read(self.array, self.at)

    def attribute(self, name: str) -> Any:
        """See `Part.attribute`."""
        if name == GRID_SHAPE and self.table.shapes is not None:
            return self.table.shapes[self.at]
        return self.table.arrays[self.array].attrs.get(name)


Parts = dict[str, Part | Row]


def open_layouts(path: str, known: Collection[str]) -> tuple[dict[str, Parts], str]:
    """Of each image, by the name that the files give it, its arrays; and a digest of the files' names and sizes.

    Args:
        path: a file, or a folder of which all files count: of several splits, or of several arrays.
        known: names that images of the index may have.

    Raises:
        UserError: no HDF5 file, a damaged one, or none of the known layouts; an array of an image in two of the files.
    """
    files = _files(path)
    found: dict[str, Parts] = {}
    for file in files:
        for name, part, own in _parts_of(file, known, alone=len(files) == 1):
            other = found.setdefault(normal(name), {}).setdefault(part, own)
            if other is not own:
                where = f"{other.path} and {own.path} both hold" if other.path != own.path else f"{own.path} has twice"
                raise UserError(f"imports.path: {where} {part} of image {name!r}; keep one of them")
    if not any({"features", "grids"} & parts.keys() for parts in found.values()):
        with _open(files[0]) as file:
            told = ", ".join(repr(name) for name, _ in zip(file, range(5), strict=False))
        raise UserError(
            f"imports.path: {path} holds no features under names that are known: ID_features, ID, ID/features, or features with "
            f"{_IDS[0]}; in {files[0]} are {told or 'none'}. docs/datasets.md lists the layouts; rename the datasets"
        )
    return found, digest_json({os.path.basename(file): os.path.getsize(file) for file in files})


def _files(path: str) -> list[str]:
    if os.path.isdir(path):
        names = [n for n in sorted(os.listdir(path)) if n.lower().endswith(SUFFIXES) and n[0] != "."]
        files = [os.path.join(path, n) for n in names if not _OTHER_FILES.fullmatch(Path(n).stem.lower())]
        if not files:
            raise UserError(f"imports.path: folder {path!r} has no {' or '.join(SUFFIXES)} file of features")
        return files
    if not os.path.isfile(path):
        raise UserError(f"imports.path: {path!r} is not an HDF5 file or a folder of such; correct the path")
    return [path]


def _open(path: str) -> h5py.File:
    import h5py

    try:
        # Without a lock: shards read side by side, also from disks that nobody may write to.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        what = other_kind(path) or f"no HDF5 file, or cut off ({error}); copy it again"
        raise UserError(f"imports.path: {path} is {what}") from error


def _parts_of(path: str, known: Collection[str], *, alone: bool) -> Iterator[tuple[str, str, Part | Row]]:
    """(name of image, array, part) of one file. `alone`: it is the only one, so whatever it is called it holds features."""
    file = _open(path)
    try:
        if table := _table(file, path):
            for at, name in enumerate(table.ids):
                yield from ((name, array, Row(table, array, at)) for array in table.arrays)
            return
        called = _BY_FILE.fullmatch(Path(path).stem.lower())
        part = _PARTS[called[1]] if called else "features" if alone else None
        yield from _walk(file, path, "", part, known)
    except _DAMAGE as error:
        raise UserError(f"imports.path: {path} is damaged ({error}); copy it again") from error


def _walk(
    group: h5py.Group, path: str, above: str, part: str | None, known: Collection[str]
) -> Iterator[tuple[str, str, Part]]:
    """Datasets by image, below a group. `part`: the array that those called by the image alone are."""
    import h5py

    certain: set[tuple[str, str]] = set()
    doubtful: dict[str, list[tuple[str, str]]] = {}
    for name in group:
        readings, image = _readings(above, name), normal(above + name) in known
        # Hundreds of thousands are told by their names alone, which is quick; what they are is seen when they are read.
        if readings and not image:
            meant = [reading for reading in readings if reading[0] in known] or readings[:1]
            if len(meant) > 1:
                doubtful[name] = meant
            else:
                certain.update(meant)
                yield *meant[0], Part(path, group, name)
        elif not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        elif group.get(name, getclass=True) is h5py.Group:
            inside = (above, _PARTS[name]) if name in _PARTS else (f"{above}{name}/", part)
            yield from _walk(group[name], path, *inside, known)
        elif above and name in _PARTS:
            yield above[:-1], _PARTS[name], Part(path, group, name)
        elif readings:  # an image's only array here, or an array of another image
            doubtful[name] = [(normal(above + name), part)] * (part is not None) + readings
        elif part is not None:
            yield above + name, part, Part(path, group, name)
    images = {image for image, _ in certain}
    for name, meant in doubtful.items():
        # What another name has said already it is not; of an image with other arrays here it rather is.
        chosen = min(meant, key=lambda reading: (reading in certain, reading[0] not in images))
        yield *chosen, Part(path, group, name)


def _readings(above: str, name: str) -> list[tuple[str, str]]:
    """Which image's which array a dataset can be by its name, the longest array's name first."""
    if not (named := _BY_IMAGE.fullmatch(name)):
        return []
    cuts = [named.end(1), *(named.start(2) + k for k, letter in enumerate(named[2]) if letter == "_")]
    return [(normal(above + name[:cut]), _PARTS[name[cut + 1 :]]) for cut in cuts if name[cut + 1 :] in _PARTS]


class _Table:
    """Datasets whose rows are images, in the order of `ids`.

    Attributes:
        counts: of each image its used rows, None if nobody says it. ranges: (first, end) of its rows, where those of all images
            follow one another. shapes: of each image the (rows, columns) of its grid, None if nobody says it.
    """

    def __init__(
        self, path: str, ids: list[str], arrays: dict[str, Any], counts: Any, ranges: Any, shapes: Any
    ) -> None:
        self.path, self.ids, self.arrays = path, ids, arrays
        self.counts, self.ranges, self.shapes = counts, ranges, shapes

    def read(self, array: str, at: int) -> np.ndarray:
        """See `Part.read`."""
        dataset = self.arrays[array]
        if array in ("height", "width"):
            return _numbers(dataset, self.path, at)
        if self.ranges is not None:
            first, end = (int(edge) for edge in self.ranges[at])
            if not 0 <= first <= end <= len(dataset):
                raise ValueError(
                    f"{self.path}: rows {first} to {end} are beyond {dataset.name}, which has {len(dataset)}"
                )
            return _numbers(dataset, self.path, slice(first, end))
        values, count = (
            _numbers(dataset, self.path, at),
            None if self.counts is None else self._count(at),
        )
        if dataset.ndim == 1 and array in ("features", "boxes"):  # of another number of regions each, unrolled
            shape = (-1, 4) if array == "boxes" else (count, -1) if count else values.shape
            try:
                return values.reshape(shape)
            except ValueError as error:
                raise ValueError(
                    f"{self.path}: {dataset.name} has {values.size} numbers for {count} regions"
                ) from error
        if count is None or array == "grids":
            return values
        # (regions, width) or (width, regions): boxes say which.
        boxes = self.arrays.get("boxes")
        if count > max(values.shape):
            raise ValueError(f"{self.path}: {dataset.name} has {len(values)} rows for {count} regions")
        most = len(values) if boxes is None or boxes.ndim < 3 else boxes.shape[1 if boxes.shape[2] == 4 else 2]
        return values[:count] if len(values) == most else values[:, :count] if values.ndim > 1 else values

    def _count(self, at: int) -> int:
        value = self.counts.reshape(-1)[at]
        if not (value >= 0 and value == np.floor(value)):  # NaN neither
            raise ValueError(f"{self.path}: the number of its regions is {value}")
        return int(value)


def _table(file: h5py.File, path: str) -> _Table | None:
    """Datasets that hold all images; None where there are none. UserError: without ids, or of different lengths."""
    import h5py

    own = {}
    for name in _TABLE_NAMES & set(file) if len(file) < 1000 else ():
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset):
            own[name] = file[name]
    arrays = {
        _PARTS[name]: dataset
        for name, dataset in sorted(own.items())
        if name in _PARTS and dataset.ndim and (dataset.dtype.kind in "fiub" or h5py.check_vlen_dtype(dataset.dtype))
    }
    if not {"features", "grids"} & arrays.keys():
        return None
    ids, given = _ids(own, path)
    beside = {
        what: next((own[n][()] for n in names if n in own), None)
        for what, names in (("counts", _COUNTS), ("ranges", _RANGES), ("shapes", (GRID_SHAPE,)))
    }
    lengths = {dataset.name[1:]: len(dataset) for dataset in arrays.values()} if beside["ranges"] is None else {}
    lengths |= {what: len(values) for what, values in beside.items() if values is not None}
    if wrong := [f"{name} {length}" for name, length in lengths.items() if length != len(ids)]:
        raise UserError(
            f"imports.path: {path} has {len(ids)} ids ({given}), but other numbers of rows: {', '.join(wrong)}; all must be equal"
        )
    if beside["ranges"] is not None:
        if beside["ranges"].shape != (len(ids), 2):
            raise UserError(
                f"imports.path: {path}: {_RANGES[0]} has shape {beside['ranges'].shape}, not ({len(ids)}, 2)"
            )
        ranges = beside["ranges"][np.argsort(beside["ranges"][:, 0], kind="stable")]
        if len(shared := np.flatnonzero(ranges[1:, 0] < ranges[:-1, 1])):
            first, second = ranges[shared[0]].tolist(), ranges[shared[0] + 1].tolist()
            raise UserError(
                f"imports.path: {path} gives rows to two images: {first} and {second} of {', '.join(_RANGES)} overlap"
            )
        gaps = ranges[1:, 0] - ranges[:-1, 1]
        if (
            len(gaps)
            and (gaps == 1).all()
            and all(len(dataset) == ranges[-1, 1] + 1 for dataset in arrays.values() if dataset.ndim > 1)
        ):
            raise UserError(
                f"imports.path: {path}: {', '.join(_RANGES)} name the last row of each image; they must name the row behind it: add 1 to all ends"
            )
    seen: set[str] = set()
    if twice := [name for name in ids if name in seen or seen.add(name)]:
        raise UserError(f"imports.path: {path} has id {twice[0]!r} twice ({given}); keep one row of each image")
    return _Table(path, ids, arrays, **beside)


def _numbers(dataset: h5py.Dataset, path: str, rows: Any = ()) -> np.ndarray:
    """Some or all rows of a dataset. ValueError: they cannot be read, or are no numbers."""
    if dataset.is_virtual or dataset.external:  # read as zeros where they are missing, or as any file of this machine
        raise ValueError(
            f"{path}: {dataset.name} lies in other files; write its numbers into this one, with h5repack say"
        )
    try:
        values = np.asarray(dataset[rows])
        if values.dtype == object and values.size:  # rows of numbers of their own lengths, which must be equal
            values = np.stack([np.asarray(row) for row in values]) if values.ndim else np.asarray(values[()])
    except Exception as error:  # a damaged file raises errors of every kind
        if what := _unknown_filter(dataset):
            raise ValueError(
                f"{path}: {dataset.name} is compressed by {what}; write it anew, with h5repack -f GZIP=4 say"
            ) from error
        raise ValueError(f"{path}: {dataset.name} cannot be read ({error}); copy the file again") from error
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{path}: {dataset.name} holds {values.dtype}, not real numbers")
    return values


def _unknown_filter(dataset: h5py.Dataset) -> str:
    """The filter among those of a dataset that this machine lacks, "" if it has all."""
    import h5py

    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(k) for k in range(plan.get_nfilters())]
    names = [f"{name.decode(errors='replace') or 'a filter'} (number {code}), which h5py lacks"
             for code, _, _, name in filters if not h5py.h5z.filter_avail(code)]  # fmt: skip
    return names[0] if names else ""


def _ids(own: dict[str, Any], path: str) -> tuple[list[str], str]:
    """Names of the rows' images, and where they were found."""
    if (key := next((name for name in _IDS if name in own), None)) is not None:
        values = np.asarray(own[key][()]).reshape(-1).tolist()
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else as_name(v) for v in values], key
    stem = str(Path(path).with_suffix(""))
    for beside in (stem + end for end in H5_IDS):
        if os.path.isfile(beside):
            return _ids_beside(beside), os.path.basename(beside)
    raise UserError(
        f"imports.path: {path} has rows of images ({', '.join(sorted(own))}) but no ids: neither a dataset {', '.join(_IDS[:3])} ... "
        f"in it nor {os.path.basename(stem)}{', '.join(H5_IDS)} beside it; add one"
    )


class _NoObjects(pickle.Unpickler):
    """Dictionaries of numbers and texts: a file from a stranger cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no table of ids needs")


def _ids_beside(path: str) -> list[str]:
    """The ids by row: a list, lines, or BAN's dictionary of rows by id."""
    try:
        with open(path, "rb") as file:
            if path.endswith(".pkl"):
                content = _NoObjects(file, encoding="latin1").load()
            elif path.endswith(".json"):
                content = parse_json(file.read(), floats=Written)
            else:
                content = decode_text(path, file.read()).splitlines()
        if isinstance(content, dict):
            rows = {int(row): image_id for image_id, row in content.items()}
            if len(rows) < len(content):
                raise ValueError("several ids have one row")
            content = [rows[row] for row in range(len(rows))]
        return [str(value).strip() for value in content]
    except UserError as error:
        raise UserError(f"imports.path: {error}") from error
    except Exception as error:  # damaged and hostile files raise errors of every kind
        what = other_kind(path) or f"no table of ids ({type(error).__name__}: {error})"
        raise UserError(f"imports.path: {path} is {what}") from error
