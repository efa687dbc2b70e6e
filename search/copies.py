"""Files of a search that lies in a bucket, on this machine: copies in `results/BUCKET/FOLDER/`, beside the logs.

Copied is what is mapped or read whole: embeddings, tables, run folders. Thumbnails and features are read where they lie.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from core import layout
from core.console import UserError
from core.files import digest_file, location
from core.layout import CONFIG, VOCABULARY, WEIGHTS
from search.vectors import AGAIN
from stores.places import Bucket, Location, Place, place_of


def folder_of(place: Place) -> Path:
    """Where this machine has a place's files: the folder itself, or that of its copies."""
    return Path(layout.work_of(str(place)))


@contextlib.contextmanager
def changing(place: Place, names: Sequence[str]) -> Iterator[Path]:
    """Files of a place as a folder to work in. Those of a bucket that changed are put back there if no error leaves the block."""
    folder = folder_of(place)
    found: dict[str, str] = {}
    if isinstance(place, Bucket):
        for name in names:
            (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                place.fetch(name, folder / name)
                found[name] = digest_file(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if isinstance(place, Bucket):
        for name in names:
            if digest_file(folder / name) != found.get(name):
                place.send(name, folder / name)


def fetched(place: Place, digests: Mapping[str, str]) -> Path:
    """The folder that has these files of a place. A copy that is of its digest already is not fetched again.

    Args:
        digests: of each file's name its sha256.

    Raises:
        UserError: a file of a bucket is missing or of another digest.
    """
    folder = folder_of(place)
    for name, digest in digests.items() if isinstance(place, Bucket) else ():
        target = folder / name
        if target.is_file() and digest_file(target) == digest:
            continue
        with contextlib.suppress(FileNotFoundError):
            place.fetch(name, target)
            if digest_file(target) == digest:
                continue
        raise UserError(f"{place}/{name} is missing or has changed since; {AGAIN}")
    return folder


def run_folder(run: Location, weights_digest: str | None = None) -> Path:
    """A run's folder on this machine. `weights_digest`: of the weights that a copy may have already."""
    place = place_of(run)
    folder = folder_of(place)
    if isinstance(place, Bucket):
        weights = folder / WEIGHTS
        known = weights_digest is not None and weights.is_file() and digest_file(weights) == weights_digest
        for name in (CONFIG, VOCABULARY) if known else (CONFIG, VOCABULARY, WEIGHTS):
            try:
                place.fetch(name, folder / name)
            except FileNotFoundError:
                (folder / name).unlink(missing_ok=True)  # who loads the run says what it lacks
    return folder


def relative(target: Location, folder: Place) -> str:
    """How `search.json` in a folder names what lies elsewhere: results may be moved whole. See `resolved`."""
    target = location(os.fspath(target))
    if isinstance(target, str) and isinstance(folder, Bucket):
        return posixpath.relpath(target.removeprefix("s3://"), str(folder).removeprefix("s3://"))
    if isinstance(target, Path) and not isinstance(folder, Bucket):
        return os.path.relpath(target, str(folder))
    return target if isinstance(target, str) else os.path.abspath(target)  # neither moves with the other


def resolved(given: str, folder: Place) -> str:
    """What `relative` has named."""
    if "://" in given or os.path.isabs(given):
        return given
    if isinstance(folder, Bucket):
        return "s3://" + posixpath.normpath(posixpath.join(str(folder).removeprefix("s3://"), given))
    return os.path.normpath(os.path.join(str(folder), given))
