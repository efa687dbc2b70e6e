"""Stores -> the `.npy` and `.txt` files that SCAN, VSE-infinity and 3SHNet's own code read."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from catalog.annotations import UNLISTED
from catalog.categories import NUM_CATEGORIES, UPSNET_TO_COCO, VOID
from catalog.index import listing, read_index
from catalog.layout import BOXES_FILE, CAPTIONS_PER_IMAGE, PANOPTIC_FILES, array_path
from catalog.precomputed import standardised
from core.console import UserError, progress
from core.features import VISUAL
from core.files import atomic_path, exclusive
from stores.places import Location
from stores.reader import Store, open_store

_BLOCK_BYTES = 32 << 20


def export_dataset(
    *,
    index: Path,
    visual: Location,
    panoptic: Location | None,
    output: Path,
    names: dict[str, str] | None = None,
    class_order: str = "upsnet",
    seg_maps: str = "raw",
    repeat_images: bool = False,
) -> dict[str, int]:
    """Write `{split}_ims.npy`, `_caps.txt`, `_ids.txt`, `_capids.txt` of every split; `_boxes.npy`, and 3SHNet's
    `_seg_maps.npy`, `_cat_onehots.npy` and `_segmentations.npy`, where the stores have them. All arrays are float32.

    3SHNet's arrays are the same beside regions and beside grids: what the other of the two folders holds already is linked, not
    written again. float16 fits into float32, so importing the files again gives the same stores. Unused regions are rows of zeros; void
    in maps is 133, as 3SHNet's position after its classes.

    Args:
        index: folder of the two tables. visual, panoptic: sealed stores of that index. output: folder, made if need be.
        names: file prefix by split, otherwise the split's name. class_order: "upsnet" or "coco". seg_maps: "raw" class ids
            or "standardised". repeat_images: each image five times, as some loaders expect.

    Returns:
        Images written, by file prefix.

    Raises:
        UserError: stores of another index, or images that have fewer than five captions.
    """
    tables = read_index(index)
    stores = [open_store(path) for path in (visual, panoptic) if path is not None]
    for store in stores:
        if store.attributes.get("index_digest") != tables.digest:
            raise UserError(f"{store.path} was made from another index than {index}; extract its features again")
    dropped = set().union(*(store.dropped for store in stores))
    ids, splits = tables.images["image_id"].to_pylist(), tables.images["split"].to_pylist()
    captions: dict[str, list[tuple[str, str]]] = {}
    columns = (tables.captions[name].to_pylist() for name in ("image_id", "caption_id", "text"))
    for image_id, caption_id, text in zip(*columns, strict=True):
        captions.setdefault(image_id, []).append((caption_id, text))
    rows: dict[str, list[int]] = {}
    for row, (image_id, split) in enumerate(zip(ids, splits, strict=True)):
        if image_id not in dropped and split != UNLISTED:
            rows.setdefault(split, []).append(row)
    short = [ids[row] for own in rows.values() for row in own if len(captions.get(ids[row], ())) < CAPTIONS_PER_IMAGE]
    if captions and short:
        raise UserError(
            f"{index}: {listing('images have fewer than five captions, which this layout cannot hold', short)}"
        )
    prefixes = {split: (names or {}).get(split, split) for split in rows}
    if len(set(prefixes.values())) < len(prefixes):
        raise UserError(f"export.names gives two splits one name: {prefixes}; change one of them")

    output.mkdir(parents=True, exist_ok=True)
    times = CAPTIONS_PER_IMAGE if repeat_images else 1
    jobs: list[tuple[Store, str, str, Callable[[np.ndarray], np.ndarray]]] = [(stores[0], "features", "ims", _plain)]
    if "boxes" in stores[0].arrays:
        jobs.append((stores[0], "boxes", BOXES_FILE, _plain))
    shared: list[tuple[Store, str, str, Callable[[np.ndarray], np.ndarray]]] = []
    if panoptic is not None:
        converters = _panoptic_converters(class_order, seg_maps)
        shared = [(stores[1], array, name, converters[array]) for array, name in PANOPTIC_FILES.items()]
    twins = [output.with_name(name) for name in VISUAL if output.name in VISUAL and name != output.name]
    for split, own in rows.items():
        prefix = prefixes[split]
        for store, array, name, convert in jobs:
            _write_array(array_path(output, prefix, name), store, array, np.array(own), convert, times)
        # Both folders may be made at once.
        with exclusive(output.with_name(".panoptic.lock")) if shared and twins else contextlib.nullcontext():
            for store, array, name, convert in shared:
                path = array_path(output, prefix, name)
                _write_array(path, store, array, np.array(own), convert, times, [twin / path.name for twin in twins])
        lines = {"ids": [ids[row] for row in own]}
        if captions:
            pairs = [pair for row in own for pair in captions[ids[row]][:CAPTIONS_PER_IMAGE]]
            lines |= {"capids": [caption_id for caption_id, _ in pairs], "caps": [text for _, text in pairs]}
        for name, texts in lines.items():
            with atomic_path(output / f"{prefix}_{name}.txt") as temporary:
                # Bytes: text mode would end lines as the platform likes.
                temporary.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return {prefixes[split]: len(own) for split, own in rows.items()}


def _plain(values: np.ndarray) -> np.ndarray:
    return values


def _panoptic_converters(class_order: str, seg_maps: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    order = np.array(UPSNET_TO_COCO) if class_order == "upsnet" else np.arange(NUM_CATEGORIES)
    lookup = np.full(256, NUM_CATEGORIES, np.float64)
    lookup[order] = np.arange(NUM_CATEGORIES)
    lookup[VOID] = NUM_CATEGORIES
    if seg_maps == "standardised":
        lookup = standardised(lookup)
    lookup = lookup.astype(np.float32)
    return {
        "seg_maps": lambda values: lookup[values],
        "category_onehots": lambda values: values[:, order],
        "seg_features": lambda values: values[:, order],
    }


def _write_array(
    path: Path, store: Store, array: str, rows: np.ndarray, convert: Any, times: int, twins: Iterable[Path] = ()
) -> None:
    """Write an array as `np.save` would, block by block; or link one of the `twins`, if it holds the same bytes."""
    shape = store.shape(array)[1:]
    size = max(1, _BLOCK_BYTES // (4 * times * max(1, int(np.prod(shape, dtype=np.int64)))))
    starts = range(0, len(rows), size)
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (len(rows) * times, *shape)}
    np.lib.format.write_array_header_1_0(header, described)
    length = header.tell() + 4 * len(rows) * times * int(np.prod(shape, dtype=np.int64))

    def parts() -> Iterator[bytes]:
        yield header.getvalue()
        for start in progress(starts, total=len(starts), desc=path.name, unit="block"):
            block = convert(store.rows(array, rows[start : start + size])).astype("<f4")
            yield np.repeat(block, times, axis=0).tobytes()

    for twin in twins:
        if twin.is_file() and twin.stat().st_size == length and _holds(twin, parts()) and _linked(twin, path):
            return
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for part in parts():
            file.write(part)


def _holds(path: Path, parts: Iterable[bytes]) -> bool:
    """Whether a file begins with these bytes."""
    with open(path, "rb") as file:
        return all(file.read(len(part)) == part for part in parts)


def _linked(twin: Path, path: Path) -> bool:
    """Whether `path` could be made a second name of the file `twin`."""
    if path.exists() and path.samefile(twin):
        return True
    try:
        with atomic_path(path) as temporary:
            temporary.unlink()
            os.link(twin, temporary)
    except OSError:  # a file system without links, or with too many
        return False
    return True
