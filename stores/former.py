"""Rows of an earlier store by the same extractor, so that only images that are new or changed need a network.

An index that changed makes its stores out of date, but a row depends on an image's content and on the extractor alone.
The first job of a new extraction renames the sealed store to `{feature}.former-{fingerprint}.zarr` beside it, where the
jobs find it, however often they are killed and started again; sealing the new store removes it.

Rows are looked up by content hash, which the seal records. A store without hashes, of other settings or of other weights is
never looked into; nor is one in a bucket, where nothing can be renamed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.console import UserError
from core.files import digest_json
from stores.places import Location
from stores.reader import Store, open_store
from stores.schema import CONTENT_HASHES, IMAGE_IDS, deciding
from stores.writer import unseal

# Of a store's root attributes, those that are not the extractor's own.
_OURS = ("schema_version", "feature", "arrays", "extractor", "weights_digest")
_OF_THE_INDEX = ("plan", "index_digest", "fingerprint", "dropped", "failures")


@dataclass(frozen=True)
class Former:
    """Rows that need not be extracted: `places` says which row of the index is which row of `store`; `same`: it is the very one."""

    store: Store
    places: dict[int, int]
    same: bool = False

    def fill(self, values: Mapping[str, np.ndarray], part: range) -> list[int]:
        """Put the rows of `part` that there are into `values` (arrays of len(part) rows); returns which. UserError: damage."""
        rows = [row for row in part if row in self.places]
        if rows:
            targets, sources = [row - part.start for row in rows], [self.places[row] for row in rows]
            for name, target in values.items():
                target[targets] = self.store.rows(name, sources)
        return rows

    def release(self, files: Iterable[str]) -> None:
        """The very store has these files again: with both, a disk would have to hold all of it twice."""
        for name in files if self.same else ():
            Path(self.store.path, name).unlink(missing_ok=True)


def identity(description: Mapping[str, Any]) -> str:
    """Digest of what decides a row beside its image: equal for stores whose rows may stand in for each other."""
    arrays = {
        # How large the shards are and how they are compressed makes no difference to a row.
        name: {key: value for key, value in array.items() if key not in ("chunk_rows", "compression")}
        for name, array in description["arrays"].items()
    }
    own = {key: description[key] for key in (*_OURS, "attributes")}
    return digest_json({**own, "arrays": arrays, "extractor": deciding(description["extractor"])})


def find_description(
    store: Location, *, feature: str, extractor: Mapping[str, Any], weights_digest: str
) -> dict[str, Any] | None:
    """`describe_store` (but for plan and index) of a former store that such an extractor made, with these settings of it; None if
    there is none."""
    wanted = digest_json([feature, deciding(extractor), weights_digest])
    for candidate in _candidates(store):
        found = _description(candidate)
        if digest_json([found["feature"], deciding(found["extractor"]), found["weights_digest"]]) == wanted:
            return found | {"extractor": dict(extractor)}
    return None


def claim_former(
    store: Location,
    description: Mapping[str, Any],
    image_ids: Sequence[str],
    content_hashes: Sequence[str],
    rows: range,
    itself: bool = False,
) -> Former | None:
    """The rows among `rows` that a former store has; a sealed store of another index is set aside for that.

    A store with the very fingerprint that is wanted is no former one: who makes a part of it again wants it made. Where
    `itself`, nobody said so, and it is one: it is set aside as links, as other shards of it may stay as they are.

    Args:
        store: folder of the store to be made. description: `describe_store` of it.
        image_ids, content_hashes: of the whole index; an empty hash is of a file that could not be read.
    """
    wanted = identity(description)
    for candidate in _candidates(store):
        fingerprint = candidate.attributes["fingerprint"]
        same = fingerprint == digest_json(description)
        if identity(_description(candidate)) != wanted or (same and not itself):
            continue
        try:
            if candidate.path == Path(store):
                candidate = (_linked if same else _set_aside)(candidate.path, fingerprint)
            return Former(candidate, _places(candidate, image_ids, content_hashes, rows), same)
        except UserError:  # another job's seal removed it, or its list of hashes is damaged
            continue
    return None


def drop_formers(store: Location) -> None:
    """Remove the stores that were set aside for `store`; what a killed call leaves goes with the next."""
    for path in _set_aside_paths(store) + _half_linked(store):
        unseal(path)  # first, so that no half of it is ever opened
        shutil.rmtree(path, ignore_errors=True)


def _set_aside_paths(store: Location) -> list[Path]:
    path = Path(store)
    return [] if "://" in os.fspath(store) else sorted(path.parent.glob(f"{path.stem}.former-*.zarr"))


def _half_linked(store: Location) -> list[Path]:
    path = Path(store)
    return [] if "://" in os.fspath(store) else sorted(path.parent.glob(f".{path.stem}.former-*"))


def _linked(store: Path, fingerprint: str) -> Store:
    """A second folder of the store's files, which stays when parts of the store are replaced. UserError: there is none."""
    path = store.with_name(f"{store.stem}.former-{fingerprint[:16]}.zarr")
    if not path.exists():
        half = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            shutil.copytree(store, half, copy_function=os.link, dirs_exist_ok=True)
            os.rename(half, path)
        except OSError:  # no disk with links, or another job was first
            shutil.rmtree(half, ignore_errors=True)
    return open_store(path)


def _set_aside(store: Path, fingerprint: str) -> Store:
    """Rename the store; where another job did so a moment ago, the same name is there already."""
    path = store.with_name(f"{store.stem}.former-{fingerprint[:16]}.zarr")
    with contextlib.suppress(OSError):
        os.rename(store, path)
    return open_store(path)


def _candidates(store: Location) -> Iterator[Store]:
    """Sealed stores that name their images' contents: the one in place, then those set aside, the newest first."""
    if "://" in os.fspath(store):
        return
    found = []
    for path in (Path(store), *_set_aside_paths(store)):
        with contextlib.suppress(UserError, OSError):
            opened = open_store(path)
            if "arrays" in opened.attributes and (path / CONTENT_HASHES).is_dir():
                found.append((path == Path(store), (path / "zarr.json").stat().st_mtime_ns, opened))
    for _, _, opened in sorted(found, key=lambda item: item[:2], reverse=True):
        yield opened


def _description(store: Store) -> dict[str, Any]:
    attributes = store.attributes
    own = {key: value for key, value in attributes.items() if key not in (*_OURS, *_OF_THE_INDEX)}
    return {key: attributes.get(key) for key in _OURS} | {"attributes": own}


def _places(store: Store, image_ids: Sequence[str], content_hashes: Sequence[str], rows: range) -> dict[int, int]:
    wanted = {content_hashes[row] for row in rows} - {""}
    numbers = np.arange(len(store))
    ids, hashes = (store.rows(name, numbers).tolist() for name in (IMAGE_IDS, CONTENT_HASHES))
    dropped = store.dropped
    # Of several images with one content, each goes on with its own row.
    by_content: dict[Any, int] = {}
    for number, (image_id, content_hash) in enumerate(zip(ids, hashes, strict=True)):
        if content_hash in wanted and image_id not in dropped:
            by_content.setdefault(content_hash, number)
            by_content[content_hash, image_id] = number
    found = ((row, by_content.get((content_hashes[row], image_ids[row]))) for row in rows)
    places = {row: by_content.get(content_hashes[row]) if place is None else place for row, place in found}
    return {row: place for row, place in places.items() if place is not None}
