"""Stores -> the files that other programs keep for each image: bottom-up-attention, LXMERT, grid-feats-vqa, 3SHNet on COCO."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from catalog.index import read_images
from core.console import UserError, progress
from core.features import Feature
from core.files import atomic_path
from stores.class_names import class_names
from stores.places import Location
from stores.reader import Store, open_store

_ROWS_AT_ONCE = 64
_ARRAYS = (
    "features",
    "counts",
    "boxes",
    "class_ids",
    "scores",
    "class_scores",
    "attribute_ids",
    "attribute_scores",
    "grid_shapes",
)
#: Which feature a format is of; the field's program keeps no other in it.
FORMATS: dict[str, tuple[Feature, ...]] = {
    "npz": ("regions",),
    "tsv": ("regions",),
    "pth": ("grids",),
    "coco": ("regions", "grids"),
    "h5": ("regions", "grids"),
    "h5_arrays": ("regions", "grids"),
    "h5_table": ("regions", "grids"),
}


def export_images(*, formats: Iterable[str], index: Path, visual: Location, output: Path) -> dict[str, int]:
    """Write a visual store in further formats, each below `output`; a format that is not of its feature is left out.

        npz   {id}.npz of bottom-up-attention: x, bbox, num_bbox, image_h, image_w, info
        tsv   features.tsv of LXMERT, an image a line
        pth   {id}.pth of grid-feats-vqa: a float32 tensor (1, D, h, w)
        coco  {id}.npy of 3SHNet's COCO branch, float32 (tokens, D), in coco_region_features/ or coco_grid_features/
        h5, h5_arrays, h5_table    of captioning codes, see `exchange.h5_files`

    All numbers are float32, which holds float16: importing the files gives the same store. Images without features have no file.
    Classes or attributes that a store does not know are -1, their scores 0.

    Args:
        formats: of `FORMATS`. index: folder of images.parquet. visual: a sealed store of that index.

    Returns:
        Images written, by format.

    Raises:
        UserError: a store of another index, regions without boxes where a format needs them, or cells that are no grid.
    """
    table, digest = read_images(index / "images.parquet")
    store = open_store(visual)
    if store.attributes.get("index_digest") != digest:
        raise UserError(f"{visual} was made from another index than {index}; extract its features again")
    feature = store.attributes["feature"]
    wanted = [name for name in dict.fromkeys(formats) if feature in FORMATS[name]]
    if {"npz", "tsv"} & set(wanted) and "boxes" not in store.arrays:
        raise UserError(f"{visual} has no boxes, which npz and tsv hold; leave these out of export.formats")
    ids, heights, widths = (table[name].to_pylist() for name in ("image_id", "height", "width"))
    rows = [row for row, image_id in enumerate(ids) if image_id not in store.dropped]
    writers: dict[str, Callable[[str, dict[str, Any]], Any]] = {
        "npz": lambda image_id, image: _write_npz(output / "npz" / f"{image_id}.npz", image),
        "pth": lambda image_id, image: _write_pth(output / "pth" / f"{image_id}.pth", image),
        "coco": lambda image_id, image: _write_npy(
            output / f"coco_{feature.removesuffix('s')}_features" / f"{image_id}.npy", image
        ),
    }
    with contextlib.ExitStack() as stack:
        if "tsv" in wanted:
            lines = stack.enter_context(open(stack.enter_context(atomic_path(output / "features.tsv")), "wb"))
            writers["tsv"] = lambda image_id, image: lines.write(_line(image_id, image))
        for name, opened in _h5(wanted, output, store, [ids[row] for row in rows]):
            writers[name] = stack.enter_context(opened)
        starts = range(0, len(rows), _ROWS_AT_ONCE)
        for start in progress(starts, total=len(starts), desc=", ".join(wanted), unit="block") if wanted else ():
            for row, image in _images(store, rows[start : start + _ROWS_AT_ONCE]):
                image |= {"height": heights[row] or 0, "width": widths[row] or 0}
                for name in wanted:
                    writers[name](ids[row], image)
    return {name: len(rows) for name in wanted}


def _h5(wanted: Iterable[str], output: Path, store: Store, ids: list[str]) -> Iterator[tuple[str, Any]]:
    """Writers of HDF5 files by format, to be entered; h5py is imported for them alone."""
    if not any(name.startswith("h5") for name in wanted):
        return
    from exchange.h5_files import as_table, by_array, by_image

    feature = store.attributes["feature"]
    if "h5" in wanted:
        yield "h5", by_image(output, feature, _classes(store))
    if "h5_arrays" in wanted:
        yield "h5_arrays", by_array(output)
    if "h5_table" in wanted:
        yield "h5_table", as_table(output, ids, store.shape("features")[1])


def _classes(store: Store) -> int:
    """How many classes the detector of a regions store tells apart: by their names, else by the largest number."""
    if (names := class_names(store.attributes)) or "class_ids" not in store.arrays:
        return len(names)
    blocks = (np.arange(start, min(start + 4096, len(store))) for start in range(0, len(store), 4096))
    return max((1 + int(store.rows("class_ids", block).max()) for block in blocks), default=0)


def _images(store: Store, rows: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row's arrays without padding; features in float32."""
    found = {name: store.rows(name, np.array(rows)) for name in _ARRAYS if name in store.arrays}
    for at, row in enumerate(rows):
        count = int(found["counts"][at])
        image: dict[str, Any] = {
            name: v[at][:count] for name, v in found.items() if name not in ("counts", "grid_shapes")
        }
        image["features"] = image["features"].astype(np.float32)
        if "grid_shapes" in found:
            image["shape"] = tuple(int(side) for side in found["grid_shapes"][at])
        yield row, image


def _told(image: dict[str, Any]) -> dict[str, np.ndarray]:
    """Ids and confidences as bottom-up-attention and LXMERT call them."""
    count = len(image["features"])
    nothing = {"ids": np.full(count, -1, np.int64), "scores": np.zeros(count, np.float32)}
    return {
        "objects_id": image.get("class_ids", nothing["ids"]).astype(np.int64),
        "objects_conf": image.get("scores", nothing["scores"]).astype(np.float32),
        "attrs_id": image.get("attribute_ids", nothing["ids"]).astype(np.int64),
        "attrs_conf": image.get("attribute_scores", nothing["scores"]).astype(np.float32),
    }


def _write_npz(path: Path, image: dict[str, Any]) -> None:
    content = {"x": image["features"], "bbox": image["boxes"].astype(np.float32), "num_bbox": len(image["features"])}
    content |= {"image_h": image["height"], "image_w": image["width"], "info": np.array(_told(image), dtype=object)}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **content)


def _write_pth(path: Path, image: dict[str, Any]) -> None:
    import torch

    height, width = image["shape"]
    if height * width != len(image["features"]):
        raise UserError(f"{path.stem} has {len(image['features'])} cells, which are no {height} x {width} grid")
    grid = torch.from_numpy(np.ascontiguousarray(image["features"].T)).reshape(1, -1, height, width)
    with atomic_path(path) as temporary:
        torch.save(grid, temporary)


def _write_npy(path: Path, image: dict[str, Any]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, image["features"])


def _line(image_id: str, image: dict[str, Any]) -> bytes:
    """An image in LXMERT's file."""
    cells = [
        image_id,
        str(image["height"]),
        str(image["width"]),
        *(_base64(values) for values in _told(image).values()),
    ]
    cells += [str(len(image["features"])), _base64(image["boxes"].astype(np.float32)), _base64(image["features"])]
    return ("\t".join(cells) + "\n").encode()


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
