"""Stores -> HDF5 files as captioning codes read them; `exchange.formats.h5_layouts` reads all of them back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.console import UserError
from core.files import atomic_path
from exchange.formats.h5_layouts import BESIDE, GRID_SHAPE

if TYPE_CHECKING:
    import h5py

Image = dict[str, Any]
_TABLE = {
    "features": "features", "boxes": "boxes", "objects_id": "class_ids", "objects_conf": "scores", "class_scores": "class_scores",
    "attrs_id": "attribute_ids", "attrs_conf": "attribute_scores",
}  # fmt: skip


@contextmanager
def by_image(output: Path, feature: str, classes: int) -> Iterator[Callable[[str, Image], None]]:
    """`features.h5` of M2 Transformer and its followers: datasets `{id}_features`, `{id}_boxes`, `{id}_cls_prob`; of grids
    `{id}_grids`, which is `{id}_features` too.

    Of all class probabilities a store knows the largest one: `cls_prob` (regions, 1 + classes) holds it at its place, the
    background's first column and all others are zero. It orders regions as the readers of these files do, by its largest number.
    What else a store knows lies beside it under the store's names.

    Args:
        classes: how many there are. Yields: what writes an image, by its id.
    """
    with _created(output / "features.h5") as file:

        def write(image_id: str, image: Image) -> None:
            if feature == "grids":
                _put(file, f"{image_id}_grids", image["features"]).attrs[GRID_SHAPE] = image["shape"]
                file[f"{image_id}_features"] = file[f"{image_id}_grids"]
                return
            _put(file, f"{image_id}_features", image["features"])
            if "boxes" in image:
                _put(file, f"{image_id}_boxes", image["boxes"])
            best = image.get("class_scores", image.get("scores"))
            if best is not None and "class_ids" in image:
                probabilities = np.zeros((len(best), 1 + classes), np.float32)
                known = np.flatnonzero(image["class_ids"] >= 0)
                probabilities[known, 1 + image["class_ids"][known]] = best[known]
                # Nearly all of it is zero.
                _put(file, f"{image_id}_cls_prob", probabilities, compression="gzip", compression_opts=1)
            for name in BESIDE:
                if name in image:
                    _put(file, f"{image_id}_{name}", image[name])

        yield write


@contextmanager
def by_array(output: Path) -> Iterator[Callable[[str, Image], None]]:
    """self-critical.pytorch's `cocobu_att.h5` and, where there are boxes, `cocobu_box.h5`, datasets called by the image's id alone;
    `cocobu_fc.h5` holds the mean of the features. Yields: see `by_image`."""
    with ExitStack() as stack:
        files: dict[str, h5py.File] = {}

        def write(image_id: str, image: Image) -> None:
            arrays = {"att": image["features"], "fc": image["features"].mean(axis=0)}
            arrays |= {"box": image["boxes"]} if "boxes" in image else {}
            for name, values in arrays.items():
                if name not in files:
                    files[name] = stack.enter_context(_created(output / f"cocobu_{name}.h5"))
                _put(files[name], image_id, values)
            if "shape" in image:
                files["att"][image_id].attrs[GRID_SHAPE] = image["shape"]

        yield write


@contextmanager
def as_table(output: Path, ids: Sequence[str], places: int) -> Iterator[Callable[[str, Image], None]]:
    """`features_table.h5` of UpDown and VisDial: `image_id` (N,), whole numbers where all are, `features` (N,K,D) padded with zeros,
    `num_boxes` (N,), `width`, `height`, and of regions `boxes` (N,K,4), `objects_id`, `objects_conf`; of grids `grid_shape`.

    Args:
        ids: of the N images that will be written, in this order. places: K. Yields: see `by_image`.
    """
    import h5py

    rows = {image_id: row for row, image_id in enumerate(ids)}
    with _created(output / "features_table.h5") as file:
        plain = all(re.fullmatch("0|[1-9][0-9]{0,17}", image_id) for image_id in ids)
        file["image_id"] = [int(i) for i in ids] if plain else np.array(ids, h5py.string_dtype())

        def write(image_id: str, image: Image) -> None:
            count = len(image["features"])
            arrays = {name: image[key] for name, key in _TABLE.items() if key in image}
            for name, values in arrays.items():
                if name not in file:
                    file.create_dataset(name, (len(ids), places, *values.shape[1:]), values.dtype)
                file[name][rows[image_id], :count] = values
            own = {"num_boxes": count, "width": image["width"], "height": image["height"]}
            own |= {GRID_SHAPE: image["shape"]} if "shape" in image else {}
            for name, value in own.items():
                if name not in file:
                    file.create_dataset(name, (len(ids), *np.shape(value)), np.int64)
                file[name][rows[image_id]] = value

        yield write


@contextmanager
def _created(path: Path) -> Iterator[h5py.File]:
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        yield file


def _put(file: h5py.File, name: str, values: np.ndarray, **options: Any) -> h5py.Dataset:
    try:
        return file.create_dataset(name, data=values, **options)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{name!r} cannot be written to an HDF5 file: the arrays of another image are called so, or like a folder in it "
            f"({error}); leave h5 and h5_arrays out of export.formats, or rename an image"
        ) from error
