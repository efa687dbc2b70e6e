"""The embeddings of one run on one test set: a small Zarr group, written by `encode` and read by everything after."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.console import UserError

EMBEDDINGS_VERSION = 1
_ROWS_PER_CHUNK = 1024
AGAIN = "run evaluation.encode again"


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a test set by one run.

    Attributes:
        images: (N, E) float32, L2-normalised; rows in the index's order, dropped images left out.
        captions: (M, E) float32, L2-normalised; grouped by image in the images' order.
        caption_image: (M,) int32, the row in `images` that each caption describes.
        image_ids, caption_ids: (N,) and (M,) arrays of str.
        attributes: run, split and the digests of what was read.
    """

    images: np.ndarray
    captions: np.ndarray
    caption_image: np.ndarray
    image_ids: np.ndarray
    caption_ids: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)

    def of_images(self, rows: np.ndarray | slice) -> np.ndarray:
        """(k, M) similarities of these images with all captions."""
        return self.images[rows] @ self.captions.T

    def of_captions(self, rows: np.ndarray | slice) -> np.ndarray:
        """(k, N) similarities of these captions with all images."""
        return self.captions[rows] @ self.images.T


def write_embeddings(path: str | os.PathLike[str], embeddings: Embeddings) -> None:
    """Write the group to `path`, replacing what is there; equal embeddings give equal bytes.

    It is built beside `path` and renamed into place, so a reader sees the old group, none, or the whole new one.
    """
    floats = {"images": embeddings.images, "captions": embeddings.captions}
    write_group(path, floats, embeddings, {"embeddings_version": EMBEDDINGS_VERSION})


def write_group(
    path: str | os.PathLike[str],
    floats: Mapping[str, np.ndarray],
    items: Any,
    marks: Mapping[str, Any],
    *,
    columns: int | None = None,
    checked: bool = False,
) -> None:
    """Write float32 arrays (rows, columns), and which images and captions they are of, as `write_embeddings` does.

    Args:
        items: has `caption_image`, `image_ids`, `caption_ids` and `attributes`. marks: further attributes.
        columns: of a chunk; None: all. checked: whether chunks of the arrays carry a checksum.
    """
    import zarr
    from zarr.codecs import Crc32cCodec

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent))
    try:
        built = temporary / "new"
        group = zarr.create_group(str(built), attributes={**items.attributes, **marks})
        for name, given in floats.items():
            values = np.ascontiguousarray(given, dtype=np.float32)
            chunks = (
                max(1, min(len(values), _ROWS_PER_CHUNK)),
                max(1, min(values.shape[1], columns or values.shape[1])),
            )
            options = {"compressors": [Crc32cCodec()]} if checked else {}
            second = "caption" if name not in ("images", "captions") else "embedding"
            options["dimension_names"] = ["caption" if name == "captions" else "image", second]
            group.create_array(name, data=values, chunks=chunks, **options)
        caption_image = np.asarray(items.caption_image, dtype=np.int32)
        group.create_array("caption_image", data=caption_image, dimension_names=["caption"])
        for name in ("image_ids", "caption_ids"):
            values = getattr(items, name)
            chunks, axis = (max(1, len(values)),), name.removesuffix("_ids")
            array = group.create_array(name, shape=(len(values),), dtype=str, chunks=chunks, dimension_names=[axis])
            if len(values):
                array[:] = np.asarray(values, dtype=np.dtypes.StringDType())
        _list_members(built)
        if path.exists():
            os.replace(path, temporary / "old")
        os.replace(built, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _list_members(built: Path) -> None:
    """The root's metadata hold those of its arrays, so that who lists them looks at no other file in the folder.

    Snakemake puts one of its own there (`.snakemake_timestamp`), which Zarr would warn of.
    """
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        zarr.consolidate_metadata(str(built))


def open_group(path: str | os.PathLike[str], what: str, version: int) -> Any:
    """The Zarr group that `write_group` made of `what` ("embeddings", "scores") in this version.

    Raises:
        UserError: `path` is no such group, or is of another version.
    """
    import zarr

    if not (Path(path) / "zarr.json").is_file():
        raise UserError(f"no {what} at {path}: {AGAIN}")
    group = zarr.open_group(str(path), mode="r")
    found = group.attrs.get(f"{what}_version")
    if found != version:
        raise UserError(
            f"{path} has {what} version {found!r}, this program reads version {version}: {AGAIN}, "
            "or use the program's version that wrote it"
        )
    return group


def read_items(group: Any) -> dict[str, Any]:
    """What `write_group` wrote beside the floats: arguments of `Embeddings` and of `PairScores`."""
    return {
        "caption_image": np.asarray(group["caption_image"][:]),
        "image_ids": np.array(group["image_ids"][:].tolist(), dtype=str),
        "caption_ids": np.array(group["caption_ids"][:].tolist(), dtype=str),
        "attributes": dict(group.attrs),
    }


def read_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Read and check a group written by `write_embeddings`.

    Raises:
        UserError: `path` is no such group, is of a newer version, is incomplete, or holds a NaN or infinite number.
    """
    group = open_group(path, "embeddings", EMBEDDINGS_VERSION)
    try:
        floats = {name: np.asarray(group[name][:]) for name in ("images", "captions")}
        embeddings = Embeddings(**floats, **read_items(group))
    except KeyError as error:
        raise UserError(f"{path} lacks the array {error}: {AGAIN}") from error
    for name, ids in (("images", embeddings.image_ids), ("captions", embeddings.caption_ids)):
        values = getattr(embeddings, name)
        if len(values) != len(ids):
            raise UserError(f"{path} has {len(values)} {name} embeddings and {len(ids)} ids: {AGAIN}")
        # One sum per row finds NaN and infinity without a mask as large as the embeddings.
        bad = np.flatnonzero(~np.isfinite(values.sum(axis=1, dtype=np.float64)))
        if len(bad):
            raise UserError(
                f"{path}: {len(bad)} {name} have embeddings that are not finite, the first is {str(ids[bad[0]])!r}: "
                "the run's training has diverged or its input features hold NaN"
            )
    return embeddings
