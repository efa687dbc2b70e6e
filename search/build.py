"""What is needed to find a dataset's images by sentences. Made again, only what is new is embedded and shrunk.

search.json                   written last: what the search is of, where its runs and stores are, digests of the files beside it
images.parquet                the rows that can be found;   captions.parquet   theirs
{run}.images.safetensors      embeddings, each with a digest of what it was made from;   {run}.captions.safetensors   (`search.vectors`)
thumbnails/                   a small JPEG for each content of an image file, named by its digest
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.index import read_captions, read_images
from core import layout
from core.console import UserError, progress
from core.embedded import knows_drawings_only, warning
from core.files import atomic_path, digest_file, digest_json
from core.layout import CONFIG, VOCABULARY, WEIGHTS
from core.pictures import load_upright
from model.runs import check_same_extractor, load_run, read_config
from search.copies import changing, relative, run_folder
from search.vectors import KEY_BYTES, updated
from stores.class_names import read_names
from stores.places import Location, Place, place_of

if TYPE_CHECKING:
    from model.data import Features

SEARCH_VERSION = 2
SEARCH, THUMBNAIL_SIDE = "search.json", 384
_ROWS_AT_ONCE = 512


def build_search(
    *,
    dataset: str,
    images: Path,
    captions: Path,
    runs: Mapping[str, Mapping[str, str]],
    output: Path,
    place: Location | None = None,
    without_captions: bool = False,
    region_names: Path | None = None,
    photographs: bool = False,
    batch_size: int = 128,
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Make or bring up to date what lies in `place`; then write its `search.json`, and that again to `output`.

    Args:
        dataset: its name. images, captions: its index. runs: for each run its `folder`, and the stores `visual` and, where its
            network needs it, `panoptic`. place: a folder, or an address in a bucket; None: the folder of `output`.
        without_captions: embed none. batch_size: images at a time.
        region_names: file of the names of the regions' classes, for stores that do not know them.
        photographs: the images are not drawings of the embedded renderer, so the page warns where its detectors made the features.

    Raises:
        UserError: a run cannot be loaded, has no vocabulary, or was trained on other features; stores of another index;
            embeddings that are not finite.
    """
    for run in runs.values():
        read_config(run["folder"])  # mistakes before the seconds that importing torch takes
    from core.devices import full_float32, open_device

    opened, _ = open_device(device, threads=threads)
    full_float32(opened)
    where = place_of(Path(output).parent if place is None else place)
    for old in (where, place_of(Path(output).parent)):
        old.remove(SEARCH)  # what follows replaces parts of what it describes
    table, digest = read_images(images)
    here = {name: {**run, "folder": str(run_folder(run["folder"]))} for name, run in runs.items()}
    loaded = {name: _load(name, run, digest) for name, run in here.items()}
    dropped = set().union(*(features.dropped for _, _, _, features in loaded.values()))
    ids = table["image_id"].to_pylist()
    rows = np.array([row for row, image_id in enumerate(ids) if image_id not in dropped], dtype=np.int64)
    shown = _shown_images(table, rows)
    texts = _shown_captions(captions, shown, none=without_captions)
    shown = _with_thumbnails(shown, thumbnails_of(where))
    described = {}
    files = [layout.IMAGES, layout.CAPTIONS, *(file(name) for name in runs for file in (images_file, captions_file))]
    with changing(where, files) as folder:
        for name, one in loaded.items():
            one[0].to(opened)
            described[name] = _embed(folder, name, here[name], one, rows, texts, batch_size)
            described[name] |= {key: relative(value, where) for key, value in runs[name].items()}
        for name, content in ((layout.IMAGES, shown), (layout.CAPTIONS, texts)):
            with atomic_path(folder / name) as temporary:
                pq.write_table(content, temporary)
        digests = {name: digest_file(folder / name) for name in files}
    about = {"dataset": dataset, "index_digest": digest, "images": len(shown), "captions": len(texts), "files": digests}
    if region_names is not None:
        about["region_names"] = read_names(str(region_names))
    about |= {"warning": _warning(dataset, [features for *_, features in loaded.values()])} if photographs else {}
    whole = json.dumps({"search_version": SEARCH_VERSION, **about, "runs": described}, indent=2, ensure_ascii=False)
    for there in dict.fromkeys((str(where), str(Path(output).parent))):
        place_of(there).write(SEARCH, f"{whole}\n".encode())
    print(f"{output}: {len(shown)} images, {len(texts)} captions, {len(dropped)} images without features left out")


def _load(name: str, run: Mapping[str, str], digest: str) -> tuple[Any, dict[str, Any], Any, Features]:
    from model.data import Features
    from stores import open_store

    network, config, tokenizer = load_run(run["folder"])
    if tokenizer is None:
        raise UserError(f"run {name} in {run['folder']} has no vocabulary; import it again with --vocabulary")
    if "panoptic" in network.needs and "panoptic" not in run:
        raise UserError(f"--runs: {name} names no panoptic store, which its network reads")
    panoptic = open_store(run["panoptic"]) if "panoptic" in network.needs else None
    features = Features(open_store(run["visual"]), panoptic, index_digest=digest)
    check_same_extractor(config.get("features"), features.describe(), run=name)
    features.check_network(network, name)
    return network, config, tokenizer, features


def _warning(dataset: str, read: Sequence[Features]) -> str:
    """What to say of features that the embedded detectors made of photographs; "" where they made none."""
    stores = [item for features in read for item in features.stores.items()]
    made = [
        store.attributes.get("feature", kind)
        for kind, store in stores
        if knows_drawings_only(store.attributes.get("weights_digest"))
    ]
    return warning(dataset, dict.fromkeys(made)) if made else ""


def _shown_images(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Of the images that can be found: `row` in the stores, and what is shown."""
    table = table.select(["image_id", "path", "width", "height", "content_hash"]).take(pa.array(rows, pa.int64()))
    return table.append_column("row", pa.array(rows, pa.int64())).replace_schema_metadata(None)


def _shown_captions(captions: Path, shown: pa.Table, *, none: bool) -> pa.Table:
    """Captions of the images that can be found: `caption_id`, `text`, and `image`, a row of `shown`."""
    place = {image_id: number for number, image_id in enumerate(shown["image_id"].to_pylist())}
    table = read_captions(captions)
    columns = [table[name].to_pylist() for name in ("caption_id", "text", "image_id")]
    found = [(c, t, place[i]) for c, t, i in zip(*columns, strict=True) if i in place] if not none else []
    names, types = ("caption_id", "text", "image"), (pa.string(), pa.string(), pa.int64())
    columns = list(zip(*found, strict=True)) or [(), (), ()]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
    return pa.Table.from_arrays(arrays, names=list(names))


def _embed(
    folder: Path,
    name: str,
    run: Mapping[str, str],
    loaded: tuple[Any, dict[str, Any], Any, Features],
    rows: np.ndarray,
    texts: pa.Table,
    batch_size: int,
) -> dict[str, Any]:
    """Embeddings of one run; what is said of it in `search.json`."""
    from model.embed import caption_batches, image_batches

    network, _, tokenizer, features = loaded
    identity = _identity(run["folder"])
    captions = texts["text"].to_pylist()
    width, pairs = network.image.sizes.embed_size, network.scores == "pairs"
    _, new_images = updated(
        folder / images_file(name),
        _image_keys(features, rows),
        images_fingerprint(run["folder"], features),
        lambda chosen: image_batches(network, features, rows[chosen], batch_size=batch_size),
        width=width,
        lengths=features.counts(rows).clip(1) if pairs else None,
    )
    _, new_captions = updated(
        folder / captions_file(name),
        _keys([caption.encode() for caption in captions]),
        digest_json({"run": identity}),
        lambda chosen: caption_batches(network, tokenizer, [captions[row] for row in chosen]),
        width=width,
        lengths=tokenizer.encode(captions)[1] if pairs else None,
    )
    print(f"{name}: embedded {new_images} of {len(rows)} images and {new_captions} captions anew")
    return {"weights_digest": identity[WEIGHTS]}


def _identity(folder: Location) -> dict[str, str]:
    """What a run's embeddings depend on. Not on which index it was trained: the same weights may have been published again."""
    config = read_config(folder)
    features = {kind: one | {"index_digest": None} for kind, one in (config.get("features") or {}).items()}
    digests = {file: digest_file(Path(folder, file)) for file in (WEIGHTS, VOCABULARY)}
    return digests | {CONFIG: digest_json(config | {"features": features})}


def images_fingerprint(folder: Location, features: Features) -> str:
    """What all embeddings of a run's images have in common: the run in its `folder`, and how features are made."""
    # Not of which index: rows say themselves what they were made from.
    made = {kind: {k: v for k, v in one.items() if k != "index_digest"} for kind, one in features.describe().items()}
    return digest_json({"run": _identity(folder), "features": made})


def images_file(run: str) -> str:
    return f"{run}.images.safetensors"


def captions_file(run: str) -> str:
    return f"{run}.captions.safetensors"


def _image_keys(features: Features, rows: np.ndarray) -> np.ndarray:
    """(N, 32) uint8: of each image a digest of what its features were made from, or of the features themselves.

    A store that was extracted knows the contents of its image files; one that was imported does not.
    """
    found = [hashlib.sha256() for _ in rows]
    for kind, store in features.stores.items():
        hashes = store.content_hashes(rows)
        unknown = np.array([place for place, content in enumerate(hashes) if not content], dtype=np.int64)
        for start in range(0, len(unknown), _ROWS_AT_ONCE):
            part = unknown[start : start + _ROWS_AT_ONCE]
            arrays = [store.rows(name, rows[part]) for name in arrays_of(kind)]
            for number, place in enumerate(part):
                row = hashlib.sha256()
                for values in arrays:
                    row.update(np.ascontiguousarray(values[number]))
                hashes[place] = row.hexdigest()
        for digest, content in zip(found, hashes, strict=True):
            digest.update(f"{kind}\0{content}\n".encode())
    return _stacked([digest.digest() for digest in found])


def arrays_of(kind: str) -> tuple[str, ...]:
    """What networks read of a store."""
    from model.data import ARRAYS

    return ARRAYS[kind]


def _keys(contents: Sequence[bytes]) -> np.ndarray:
    return _stacked([hashlib.sha256(content).digest() for content in contents])


def _stacked(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), KEY_BYTES)


def _with_thumbnails(shown: pa.Table, place: Place) -> pa.Table:
    """Make the small pictures that are missing, remove those of no image; adds `thumbnail`, the name of each, or null."""
    contents, paths = shown["content_hash"].to_pylist(), shown["path"].to_pylist()
    # Features from files may have come without images: what stands for their contents is no file's digest.
    named = {c: p for c, p in zip(contents, paths, strict=True) if c and p and os.path.isfile(p)}
    known = {key.rpartition("/")[2].removesuffix(".jpg") for key in place.keys() if key.endswith(".jpg")}
    missing = [(content, path) for content, path in named.items() if content not in known]
    with ThreadPoolExecutor(4) as pool:
        jobs = pool.map(lambda job: _shrink(place, *job), missing)
        failed = {content for content in progress(jobs, total=len(missing), desc="thumbnails", unit="image") if content}
    for content in known - named.keys():
        place.remove(thumbnail(content))
    names = [content if content in named and content not in failed else None for content in contents]
    print(f"thumbnails: {len(missing) - len(failed)} made, {len(failed)} files could not be read")
    return shown.append_column("thumbnail", pa.array(names, pa.string()))


def thumbnails_of(folder: Place) -> Place:
    """Where the small pictures lie."""
    return place_of(f"{folder}/thumbnails")


def thumbnail(content: str) -> str:
    """The key of the small picture of a content: 256 folders, because few file systems like a million files in one."""
    return f"{content[:2]}/{content}.jpg"


def _shrink(place: Place, content: str, path: str) -> str | None:
    """Write one small picture; the content itself if the file cannot be read."""
    try:
        small = load_upright(path, THUMBNAIL_SIDE)
    except OSError:
        return content
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    place.write(thumbnail(content), buffer.getvalue())
    return None
