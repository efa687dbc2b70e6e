"""The index: one row per image, captions grouped in the same order. Its row order is the join key of everything after it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from catalog.layout import CAPTIONS_PER_IMAGE
from core import layout
from core.console import UserError, progress
from core.files import atomic_path
from core.kinds import other_kind

INDEX_VERSION = "1"

IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("split", pa.string()),
        ("content_hash", pa.string()),
        ("error", pa.string()),
    ]
)
CAPTIONS_SCHEMA = pa.schema([("caption_id", pa.string()), ("image_id", pa.string()), ("text", pa.string())])
_IMAGES_AT_ONCE = 32  # that a thread looks at


@dataclass(frozen=True)
class Index:
    """`images` and `captions` tables (schemas above), the digest of the images, and what was left out or taken otherwise."""

    images: pa.Table
    captions: pa.Table
    digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """What an index was made by.

    Attributes:
        settings: of the dataset. idle: those of them that changed nothing, whatever their values.
        reason: what the workflow remembered as the reason to make it.
    """

    settings: Mapping[str, Any]
    idle: Sequence[str]
    reason: str

    def same(self, settings: Mapping[str, Any]) -> bool:
        """Whether a dataset with these settings has the same index, as long as its files are the same."""
        before, now = ({k: v for k, v in one.items() if k not in self.idle} for one in (self.settings, settings))
        return before == now


@dataclass(frozen=True)
class ImageRows:
    """The images table column by column, as shard jobs and seals take it, and its digest.

    Attributes:
        sizes: upright (height, width), (0, 0) where unknown. content_hashes: "" of a file that could not be read; None for all:
            nobody knows them, so no row of a former store can be taken over.
    """

    ids: Sequence[str]
    digest: str
    paths: Sequence[str] = ()
    sizes: Sequence[tuple[int, int]] = ()
    content_hashes: Sequence[str] | None = None


def index_digest(image_ids: Iterable[str], content_hashes: Iterable[str]) -> str:
    """sha256 over `image_id NUL content_hash NEWLINE` of every row: changes with any image, its order or its name."""
    digest = hashlib.sha256()
    for image_id, content_hash in zip(image_ids, content_hashes, strict=True):
        digest.update(f"{image_id}\0{content_hash}\n".encode())
    return digest.hexdigest()


def read_parquet(path: Path, columns: Sequence[str], fix: str) -> pa.Table:
    """A table that this program wrote.

    Args:
        columns: some that it must have. fix: what to do where it cannot be used, for messages.

    Raises:
        UserError: there is no such file, it is damaged, or another table.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; {fix}")
    try:
        # `pq.read_table` would import pyarrow's datasets, and pandas with them: for nothing, in every job.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged, or no Parquet file; remove it and {fix}") from error
    if missing := [name for name in columns if name not in table.column_names]:
        raise UserError(f"{path} is another table: it has no column {missing[0]}; {fix}")
    return table


def write_index(
    images_path: Path,
    captions_path: Path,
    images: pa.Table,
    captions: pa.Table,
    *,
    notes: Sequence[str] = (),
    limited: bool = False,
    made: Made | None = None,
    refused: str = "",
) -> str:
    """Write both tables, atomically, captions first; returns the index digest.

    Args:
        notes: for whoever reads of the dataset. limited: every caption counts; those that do not have been left out.
        made: what it is made by.
        refused: what is wrong with the captions, of which the table then has none and which nobody may read.
    """
    digest = index_digest(images.column("image_id").to_pylist(), images.column("content_hash").to_pylist())
    metadata = {"index_version": INDEX_VERSION, "index_digest": digest}
    for path, table in ((captions_path, captions), (images_path, images)):
        own = {"notes": json.dumps(list(notes))} if notes and path == images_path else {}
        own |= {"limited": "yes"} if limited and path == captions_path else {}
        own |= {"refused": refused} if refused and path == captions_path else {}
        own |= {"made": json.dumps(asdict(made))} if made and path == images_path else {}
        with atomic_path(path) as temporary:
            pq.write_table(table.replace_schema_metadata(metadata | own), temporary)
    return digest


def _read(path: Path, column: str) -> tuple[pa.Table, str]:
    """A table of the index, told by one of its columns, and the index digest."""
    table = read_parquet(path, (column,), "make it with the target `index`")
    metadata = table.schema.metadata or {}
    version = metadata.get(b"index_version", b"").decode()
    if version != INDEX_VERSION:
        raise UserError(
            f"{path} has index version {version or 'none'}, this program reads {INDEX_VERSION}; make it again"
        )
    if refused := metadata.get(b"refused"):
        raise UserError(f"{path} is for features alone: {refused.decode()}; make it again with the target `index`")
    return table, metadata[b"index_digest"].decode()


def captions_refused(path: str | os.PathLike[str]) -> bool:
    """Whether this captions.parquet is not to be read: there were captions, but none that could be used."""
    return b"refused" in _metadata(path)


def made_by(path: str | os.PathLike[str]) -> Made | None:
    """What this images.parquet was made by; None of a file that does not say so, or is none."""
    try:
        return Made(**json.loads(_metadata(path)[b"made"]))
    except (LookupError, ValueError, TypeError):
        return None


def _metadata(path: str | os.PathLike[str]) -> dict[bytes, bytes]:
    """Of a table of the index; none of a file that is none."""
    try:
        return pq.read_schema(path).metadata or {}
    except (OSError, ValueError, TypeError):  # pyarrow's own errors are of these kinds
        return {}


def read_images(path: str | os.PathLike[str]) -> tuple[pa.Table, str]:
    """The images table and the index digest. UserError if there is none or it has another version."""
    return _read(Path(path), "path")


def read_image_rows(path: str | os.PathLike[str]) -> ImageRows:
    """`read_images` as `ImageRows`."""
    table, digest = read_images(path)
    columns = {name: table.column(name).to_pylist() for name in ("image_id", "path", "height", "width", "content_hash")}
    sizes = list(zip(columns["height"], columns["width"], strict=True))
    return ImageRows(columns["image_id"], digest, columns["path"], sizes, columns["content_hash"])


def counted_captions(captions: pa.Table) -> int | None:
    """How many captions of an image count in a captions table; None: all. Indexes of version 0.1 hold more than the field's five."""
    return None if (captions.schema.metadata or {}).get(b"limited") else CAPTIONS_PER_IMAGE


def read_captions(path: str | os.PathLike[str]) -> pa.Table:
    """The captions table. UserError if there is none or it has another version."""
    return _read(Path(path), "caption_id")[0]


def read_index(path: str | os.PathLike[str]) -> Index:
    """Both tables, from the index folder or from its images.parquet."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    images, digest = read_images(folder / layout.IMAGES)
    captions, captions_digest = _read(folder / layout.CAPTIONS, "caption_id")
    if captions_digest != digest:
        raise UserError(f"{folder}: {layout.IMAGES} and {layout.CAPTIONS} are of different runs; make the index again")
    notes = (images.schema.metadata or {}).get(b"notes", b"[]")
    return Index(images, captions, digest, tuple(json.loads(notes)))


_heard = threading.local()  # what Pillow warns of while a thread looks at an image


def _describe(path: str) -> tuple[int, int, str, str | None, list[str], int]:
    """(upright width, height, sha256, error, warnings, frames) of one file; only the header is decoded."""
    _heard.warnings, _heard.frames = [], 1
    return *_looked_at(path), _heard.warnings, _heard.frames


def _hear(message: Warning | str, category: type[Warning], *_: object) -> None:
    # Of its guard against bombs an image that is still read is no matter.
    if not issubclass(category, Image.DecompressionBombWarning):
        _heard.__dict__.setdefault("warnings", []).append(" ".join(str(message).split()))


def _looked_at(path: str) -> tuple[int, int, str, str | None]:
    try:
        with open(path, "rb") as file:
            content_hash = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            try:
                return *_upright_size(file), content_hash, None
            except Exception as error:  # noqa: BLE001 - Pillow raises many kinds for broken headers; each is a note in the index
                return 0, 0, content_hash, _fault(path, error)
    except OSError as error:
        return 0, 0, "", f"cannot be read ({error.strerror})"


def _fault(path: str, error: Exception) -> str:
    """What a file is whose header Pillow could not read."""
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; scale it down"
    empty = "" if os.path.getsize(path) else "an empty file (0 bytes); copy it again"
    return other_kind(path) or empty or f"not a readable image ({type(error).__name__})"


def _upright_size(file: BinaryIO) -> tuple[int, int]:
    with Image.open(file) as image:
        width, height = image.size
        if image.format != "MPO":  # whose further frames are what the camera adds
            with contextlib.suppress(Exception):  # whoever decodes the image says what is wrong with it
                _heard.frames = getattr(image, "n_frames", 1)
                image.seek(0)
        # Of a TIFF Pillow tells the upright size already; what it read of the file is in the tags.
        turned = image.format == "TIFF" and (image.tag_v2.get(256), image.tag_v2.get(257)) != (width, height)
        upright = turned or image.getexif().get(0x0112, 1) not in (5, 6, 7, 8)
    return (width, height) if upright else (height, width)


def describe_images(
    image_ids: Sequence[str],
    paths: Sequence[str],
    splits: Sequence[str],
    workers: int = 4,
    notes: list[str] | None = None,
) -> pa.Table:
    """The images table: sizes and content hashes read in parallel; an unreadable file gets an `error`, not a stop.

    Args:
        notes: what Pillow warns of, and which files hold more than one image, is added to them.
    """
    # Some at a time: handing one image to a thread takes as long as looking at it.
    parts = [paths[start : start + _IMAGES_AT_ONCE] for start in range(0, len(paths), _IMAGES_AT_ONCE)]
    with warnings.catch_warnings(), ThreadPoolExecutor(max(1, workers)) as pool:
        warnings.simplefilter("always")
        warnings.showwarning = _hear
        found = (fact for part in pool.map(lambda part: [_describe(path) for path in part], parts) for fact in part)
        facts = list(progress(found, total=len(paths), desc="index", unit="image"))
    doubtful = [f"{path}: {fact[4][0]}" for path, fact in zip(paths, facts, strict=True) if fact[4]]
    if doubtful and notes is not None:
        notes.append(listing("images with damaged metadata, which are taken as far as they can be read", doubtful))
    moving = [path for path, fact in zip(paths, facts, strict=True) if fact[5] > 1]
    if moving and notes is not None:
        notes.append(listing("files of several frames or pages, of which the first is the image", moving))
    return pa.Table.from_pydict(
        {
            "image_id": list(image_ids),
            "path": list(paths),
            "width": [f[0] for f in facts],
            "height": [f[1] for f in facts],
            "split": list(splits),
            "content_hash": [f[2] for f in facts],
            "error": [f[3] for f in facts],
        },
        schema=IMAGES_SCHEMA,
    )


def listing(what: str, names: Sequence[str], limit: int = 5) -> str:
    """`12 captions without an image: a, b, c, d, e, ...` for messages that report everything at once."""
    shown = ", ".join(repr(n) for n in names[:limit])
    return f"{len(names)} {what}: {shown}{', ...' if len(names) > limit else ''}"


def check_image_ids(image_ids: Sequence[str]) -> list[str]:
    """Problems with ids: empty, too long, control characters, path tricks, no text at all, or equal after normalisation."""
    # Cs: what Python makes of file names that are not UTF-8; no Parquet or JSON file can hold it.
    hostile = [i for i in image_ids if not i or len(i) > 255 or i.startswith("/") or ".." in i.split("/") or "\\" in i
               or any(unicodedata.category(c) in ("Cc", "Cs") for c in i)]  # fmt: skip
    seen: dict[str, str] = {}
    collisions = []
    for image_id in image_ids:
        key = unicodedata.normalize("NFC", image_id)
        if key in seen:
            collisions.append(image_id)
        seen[key] = image_id
    problems = []
    if hostile:
        problems.append(
            listing(
                "image ids that cannot be used (empty, over 255 characters, not UTF-8, control characters or path "
                "tricks); rename the files",
                hostile,
            )
        )
    if collisions:
        problems.append(
            listing(
                "image ids that occur twice, or differ in Unicode form alone; rename or remove one",
                collisions,
            )
        )
    return problems
