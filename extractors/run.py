"""Extracts one shard of one feature: `python -m extractors.run`."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalog.index import ImageRows, listing, read_images
from core.console import UserError, progress, run_cli
from core.devices import open_device
from core.features import Feature
from core.files import digest_file
from core.flags import add_device, add_mapping, add_shard, command
from core.machine import may_reuse
from extractors.engines import build_extractor
from stores.former import find_description, identity
from stores.job import ShardJob, check_recipe, job_index
from stores.places import Location
from stores.plan import ShardPlan
from stores.schema import Source, describe_store, described_source


class LazyExtractor:
    """An extractor that is built when it is first needed: never, where a former store has all rows.

    Args:
        build: makes the extractor and says on which device, in words. The extractor has `input` (`InputSpec`), `arrays` (name ->
            `ArraySpec`), `weights_digest`, perhaps `attributes` (dict for readers of the store), and turns an `ImageBatch`
            into one dict of rows per image.
        feature: whose rows it makes. settings: what it is built from, recipe included, for the record.
        known: what a former store of the same extractor says of it (`stores.former`); without it, it is built at once.

    Raises (when the extractor is built):
        UserError: it is not what is `known`. And whatever `build` raises.
    """

    def __init__(
        self,
        build: Callable[[], tuple[Any, str]],
        *,
        feature: str,
        settings: Mapping[str, Any],
        known: Mapping[str, Any] | None = None,
    ) -> None:
        self._build, self._extractor, self._known = build, None, known
        self._feature, self._settings = feature, settings
        #: The device in words, and seconds that building took after the first call of anything.
        self.device, self.seconds = "none", 0.0
        self.source = self._source(self._built()) if known is None else described_source(known)

    def _source(self, extractor: Any) -> Source:
        attributes = getattr(extractor, "attributes", {})
        return Source(self._feature, extractor.arrays, self._settings, extractor.weights_digest, attributes)

    def _built(self) -> Any:
        if self._extractor is None:
            start = time.perf_counter()
            extractor, self.device = self._build()
            if self._known is not None:
                self._check(extractor)
                self.seconds = time.perf_counter() - start
            self._extractor = extractor
        return self._extractor

    def _check(self, extractor: Any) -> None:
        if identity(describe_store(self._source(extractor), ShardPlan(1, 1), "")) != identity(self._known):
            raise UserError(
                f"the {self._feature} extractor is not the one that made the former store, though settings and "
                "weights are the same: the program or the weights changed meanwhile; remove the former store and start again"
            )

    @property
    def input(self) -> Any:
        """How images are brought to the network."""
        return self._built().input

    def __call__(self, batch: Any) -> list[dict[str, np.ndarray]]:
        """One dict of rows per image."""
        return self._built()(batch)


def extract_shard(
    extractor: LazyExtractor,
    images: ImageRows,
    *,
    batch_size: int = 8,
    workers: int = 0,
    **job_options: Any,
) -> dict[str, Any]:
    """Extract the rows of one shard job.

    Rows of images that a former store of the same extractor has are taken from there. Memory: those of `ShardJob`, and a few
    batches of images.

    Args:
        batch_size: images per batch at most. workers: decoding threads. job_options: see `ShardJob`.

    Returns:
        The receipt. An image that cannot be decoded is listed in its `failures`; its rows keep the arrays' fill values.

    Raises:
        UserError: no such shard, or features that are not finite.
        ValueError: the extractor's rows do not fit its arrays. And whatever the network raises.
    """
    job = ShardJob(extractor.source, images, **job_options)
    feature = extractor.source.feature

    def work() -> Iterator[int]:
        """Does all the work; yields the row of every image when it is done with."""
        for index, part in job.parts:
            values, taken = job.former_rows(part)
            yield from taken
            new = [row for row in part if row not in taken]
            for row, result in _results(extractor, new, images, batch_size, workers, job):
                if isinstance(result, str):
                    job.fail(row, result)
                else:
                    place = f"{feature} of image {images.ids[row]!r} ({images.paths[row]})"
                    _store_row(values, row - part.start, result, place)
                yield row
            job.write(index, values)

    with job:
        for _ in progress(work(), total=len(job.rows), desc=str(job), unit="image"):
            pass
        job.seconds["startup"] += extractor.seconds
        job.device = extractor.device
        job.note(extracted=len(job.rows) - job.taken_over - job.failed)
    return job.result


def _results(
    extractor: LazyExtractor, rows: Sequence[int], images: ImageRows, batch_size: int, workers: int, job: ShardJob
) -> Iterator[tuple[int, dict[str, np.ndarray] | str]]:
    """(row, the network's rows for that image, or why it could not be decoded)."""
    from extractors.images import Failure, iterate_batches

    if not rows:
        return
    paths, sizes = [images.paths[row] for row in rows], [images.sizes[row] for row in rows]
    batches = iterate_batches(paths, rows, extractor.input, batch_size, workers, sizes)
    while True:
        with job.timed("decode"):
            batch = next(batches, None)
        if batch is None:
            return
        if isinstance(batch, Failure):
            yield batch.row, batch.error
            continue
        with job.timed("network"):
            results = extractor(batch)
        yield from zip(batch.rows, results, strict=True)


def _store_row(values: dict[str, np.ndarray], at: int, result: dict[str, np.ndarray], place: str) -> None:
    """Put one image's rows in place; strictly, as numpy would broadcast a wrong shape and wrap a wrong dtype."""
    if result.keys() != values.keys():
        raise ValueError(f"{place}: the extractor gave arrays {sorted(result)} instead of {sorted(values)}")
    for name, row in result.items():
        target = values[name]
        if row.shape != target.shape[1:] or row.dtype != target.dtype:
            raise ValueError(
                f"{place}: array {name} is {row.dtype} {row.shape} instead of {target.dtype} {target.shape[1:]}"
            )
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            raise UserError(
                f"{place}: array {name} has values that are not finite in {row.dtype}; "
                "set precision: fp32 and check the weights"
            )
        target[at] = row


def known_extractor(feature: Feature, settings: dict[str, Any], recipe: int, store: Location) -> dict[str, Any] | None:
    """What a former store says of this very extractor; None if there is none, or where only building it tells."""
    weights = settings.get("weights")
    if settings.get("engine", "native") != "native" or not weights or not os.path.isfile(weights):
        return None
    return find_description(
        store, feature=feature, extractor=settings | {"recipe": recipe}, weights_digest=digest_file(weights)
    )


def extract(
    *,
    feature: Feature,
    images: Path,
    store: Location,
    shard: int,
    shards: int,
    settings: dict[str, Any],
    recipe: int,
    workers: int,
    device: str,
    threads: int,
    on_bad_image: str = "drop",
    **place: Any,
) -> None:
    """Extract one shard with the extractor that these settings describe; it is built where it is needed.

    Raises:
        UserError: among others, where the index knows of images that cannot be read and `on_bad_image` is "fail".
    """
    start = time.perf_counter()
    # Everything that can be wrong with the command, before torch is imported.
    batch_size = settings.get("batch_size", 8)
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size of {feature} must be a whole number of at least 1, not {batch_size!r}")
    rows = job_index(images, store=store, shard=shard, shards=shards)
    if on_bad_image == "fail":
        _refuse_broken(images)

    def build() -> tuple[Any, str]:
        opened, words = open_device(device, threads=threads)
        import torch

        # A redone shard must give the same bytes.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        check_recipe(recipe, importlib.import_module(f"extractors.{feature}").RECIPE, f"extractors/{feature}.py")
        return build_extractor(feature, **settings).to(opened), words

    known = known_extractor(feature, settings, recipe, store)
    receipt = extract_shard(
        LazyExtractor(build, feature=feature, settings=settings | {"recipe": recipe}, known=known),
        rows,
        store=store,
        shard=shard,
        shards=shards,
        # No store tells whether a configuration file of the user's is still what it was.
        take_over=not os.path.isfile(settings.get("config") or ""),
        itself=may_reuse(),
        batch_size=batch_size,
        workers=workers,
        startup_seconds=time.perf_counter() - start,
        **place,
    )
    print(
        f"{feature} shard {shard + 1}/{shards}: {receipt['images']} images, "
        f"{len(receipt['failures'])} of them unreadable, {receipt['taken_over']} taken over from the former store, "
        f"{receipt['extracted']} extracted, {receipt['images_per_second']} images/s on {receipt['device']}"
    )


def _refuse_broken(images: Path) -> None:
    """UserError: the index found images broken, so that no store could be sealed; hours of extraction would be in vain."""
    table, _ = read_images(images)
    broken = [f"{row['path']}: {row['error']}" for row in table.select(["path", "error"]).to_pylist() if row["error"]]
    if broken:
        raise UserError(
            f"{listing('images cannot be read', broken)}; mend or remove them, or set features.on_bad_image: drop"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("extractors.run", __doc__)
    add_shard(parser)
    add_mapping(parser, "--settings", "the feature's settings", required=True)
    parser.add_argument("--recipe", required=True, type=int, help="the extractor's RECIPE, as the workflow read it")
    parser.add_argument("--workers", type=int, default=0, help="decoding threads beside the network (default: 0)")
    add_device(parser, threads=1)
    parser.add_argument(
        "--on-bad-image",
        choices=("fail", "drop"),
        default="drop",
        help="fail: not at all with images that the index found broken",
    )
    extract(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
