"""Removes what the jobs of a configuration made: `python -m rules.clean --config FILE` lists it, `--delete` removes it.

`snakemake --delete-all-output` knows the files that rules declare, not the chunks of stores, the states of trainings, the pictures
of searches. Only names that jobs write are looked for; folders go whole where a job replaces them whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from core import layout
from core.console import UserError, run_cli
from core.features import FEATURES
from core.flags import add_mapping, command
from model.runs import imported_by_hand
from reporting.run import chart_file
from reporting.sections.training import TITLES
from search.build import captions_file, images_file
from settings import Settings, load_settings

_LOCKS = Path(".snakemake/locks")


def made_by_jobs(settings: Settings) -> list[Path]:
    """Files and folders of a configuration's results that its jobs made and that are there.

    Not among them: imported runs and stores that somebody put there, and whatever the configuration itself names.

    Raises:
        UserError: the results lie in a bucket.
    """
    if settings.results.startswith("s3://"):
        raise UserError(f"results: {settings.results} is a bucket; remove what lies there with the bucket's own tools")
    named = {Path(os.path.abspath(value)) for value in _texts(settings.model_dump(exclude={"results"}))}
    found = []
    for path in dict.fromkeys(_candidates(settings, Path(settings.results))):
        whole = Path(os.path.abspath(path))
        if os.path.lexists(path) and not any(one == whole or whole in one.parents for one in named):
            found.append(path)
    return found


def _candidates(settings: Settings, results: Path) -> Iterator[Path]:
    """What may be there; what a killed job left of it (`.NAME.*.tmp`) included."""
    for path in _outputs(settings, results):
        yield path
        yield from path.parent.glob(f".{path.name[:80]}.*.tmp")


def _outputs(settings: Settings, results: Path) -> Iterator[Path]:
    for name, dataset in settings.datasets.items():
        yield from (Path(layout.images(results, name)), Path(layout.captions(results, name)))
        if dataset.makes:
            yield Path(layout.made(results, dataset.makes, name))
        for feature in FEATURES:
            yield from _store(results, name, feature)
            yield from (Path(layout.export(results, name, feature)), Path(layout.verified(results, name, feature)))
    for run in settings.runs:
        yield from _run(results, run)
        for testset in settings.testsets:
            for path in (layout.embeddings, layout.scores, layout.metrics, layout.ranks):
                yield Path(path(results, run, testset))
    for ensemble in settings.ensembles:
        for path in (layout.ensemble_metrics, layout.ensemble_ranks):
            yield from (Path(path(results, ensemble, testset)) for testset in settings.testsets)
    for search, section in settings.search.items():
        marker = Path(layout.search(results, search))
        yield from (marker, marker.with_name(layout.IMAGES), marker.with_name(layout.CAPTIONS))
        for run in (*settings.runs, *section.imported):
            yield from (marker.with_name(images_file(run)), marker.with_name(captions_file(run)))
        yield from marker.parent.glob(f"thumbnails/[0-9a-f][0-9a-f]/{'[0-9a-f]' * 16}*.jpg")
    yield from (Path(layout.table(results, suffix)) for suffix in layout.TABLES)
    yield Path(layout.times(results))
    page = Path(layout.report(results))
    yield from (page, Path(layout.why(results)), *(page.parent / "figures" / chart_file(title) for title in TITLES))
    yield from Path(layout.log(results, "any")).parent.rglob("*.log")
    yield from Path(layout.benchmark(results, "any")).parent.rglob("*.tsv")


def _store(results: Path, dataset: str, feature: str) -> Iterator[Path]:
    store = Path(layout.store(results, dataset, feature))
    receipts = Path(layout.receipts_of(store))
    parts = [*receipts.glob("[0-9]*.json"), *receipts.glob(".made.json")]
    # Sealed and without a receipt: no job of ours left it so, somebody put it there.
    if parts or not Path(layout.seal_of(store)).exists():
        yield store
    yield from (*parts, receipts / "0.json")
    yield from store.parent.glob(f"{store.stem}.former-*.zarr")


def _run(results: Path, run: str) -> Iterator[Path]:
    folder = Path(layout.run_folder(results, run))
    if not imported_by_hand(folder):
        yield from (folder / name for name in layout.RUN_FILES)
        yield from folder.glob("tensorboard/events.out.tfevents.*")
    state = Path(layout.run_state(results, run))
    yield from (state / layout.STATE, state / layout.FINISHED, *state.glob(layout.BEST.format(epoch="*")))


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested settings: it may be a path."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def delete(paths: Sequence[Path], results: Path, below: Iterable[Path] = ()) -> None:
    """Remove files, folders and links (not what links lead to), then folders in `results` that this left empty.

    Args:
        below: further paths, there or not, whose folders go as well where they are empty.
    """
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for folder in sorted(
        {parent for path in (*paths, *below) for parent in path.parents}, key=lambda one: -len(one.parts)
    ):
        if folder == results or results in folder.parents:
            with contextlib.suppress(OSError):  # something is left in it
                folder.rmdir()


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("rules.clean", __doc__)
    add_mapping(parser, "--config", "the configuration whose results they are", required=True)
    parser.add_argument("--delete", action="store_true", help="remove what is listed; without it nothing is changed")
    args = parser.parse_args(argv)
    settings = load_settings(args.config, check_files=False)
    if args.delete and any(_LOCKS.glob("*.lock")):
        raise UserError(
            f"a workflow is running in this folder, or was killed: {_LOCKS} is not empty; snakemake --unlock"
        )
    found = made_by_jobs(settings)
    for path in found:
        print(json.dumps(str(path)) if "\n" in str(path) else path)
    size = sum(map(_size, found)) / 2**20
    if args.delete:
        results = Path(settings.results)
        # `--delete-all-output` leaves folders without a file.
        delete(found, results, _candidates(settings, results))
    print(
        f"{len(found)} files and folders, {size:,.1f} MiB: " + ("removed" if args.delete else "--delete removes them")
    )


if __name__ == "__main__":
    run_cli(main)
