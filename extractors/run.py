"""Extracts one shard of one feature: `python -m extractors.run`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from catalog.index import read_images
from core.console import UserError, progress, run_cli
from core.devices import claim_gpu
from core.files import digest_file, read_mapping
from stores.former import Former, claim_former, find_description, identity
from stores.places import Location, location
from stores.plan import ShardPlan
from stores.receipts import write_receipt
from stores.schema import COMPRESSIONS, FEATURES, ArraySpec, compressed, describe_store, described_arrays
from stores.writer import check_store_path, unseal, write_zarr_shard


class LazyExtractor:
    """An extractor that is built when it is first needed: never, where a former store has all rows.

    Args:
        build: makes the extractor and says on which device, in words.
        known: what a former store of the same extractor says of it (`stores.former`); without it, it is built at once.

    Raises (when the extractor is built):
        UserError: it is not what is `known`. And whatever `build` raises.
    """

    def __init__(self, build: Callable[[], tuple[Any, str]], known: Mapping[str, Any] | None = None) -> None:
        self._build, self._extractor, self._known = build, None, known
        #: The device in words, and seconds that building took after the first call of anything.
        self.device, self.seconds = "none", 0.0
        if known is not None:
            self.arrays: dict[str, ArraySpec] = described_arrays(known)
            self.weights_digest: str = known["weights_digest"]
            self.attributes: dict[str, Any] = known["attributes"]
        else:
            built = self._built()
            self.arrays, self.weights_digest = built.arrays, built.weights_digest
            self.attributes = getattr(built, "attributes", {})

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
        description = describe_store(
            feature=self._known["feature"],
            arrays=extractor.arrays,
            plan=ShardPlan(1, 1),
            extractor=self._known["extractor"],
            weights_digest=extractor.weights_digest,
            index_digest="",
            attributes=getattr(extractor, "attributes", None),
        )
        if identity(description) != identity(self._known):
            raise UserError(
                f"the {self._known['feature']} extractor is not the one that made the former store, though settings and "
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
    *,
    feature: str,
    extractor: LazyExtractor,
    settings: dict[str, Any],
    recipe: int,
    image_ids: Sequence[str],
    paths: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    content_hashes: Sequence[str] | None,
    index_digest: str,
    store: Location,
    receipt: Path,
    shard: int,
    shards: int,
    compression: str = COMPRESSIONS[0],
    batch_size: int = 8,
    workers: int = 0,
    startup_seconds: float = 0.0,
) -> dict[str, Any]:
    """Extract the rows of one shard job, publish its Zarr shards and, last, its receipt.

    Rows of images that a former store of the same extractor has (see `stores.former`) are taken from there. Repeated, it
    gives the same bytes. The store is unsealed. Memory: the rows of two Zarr shards (at
    most 512 each), of a third where they are taken over, and a few batches of images.

    Args:
        extractor: around one that has `input` (`InputSpec`), `arrays` (name -> `ArraySpec`), `weights_digest`, perhaps
            `attributes` (dict for readers of the store), and turns an `ImageBatch` into one dict of rows per image.
        settings, recipe: what the extractor was built from, for the record.
        image_ids, paths, sizes: the whole index, sizes as upright (height, width), (0, 0) where unknown.
        content_hashes: of the whole index; None: extract all rows.
        receipt: JSON file written when all data of the shard is on disk (see `stores.receipts`).
        compression: of the store, one of `COMPRESSIONS`.
        batch_size: images per batch at most. workers: decoding threads.
        startup_seconds: spent before this call, for the record.

    Returns:
        The receipt. An image that cannot be decoded is listed in its `failures`; its rows keep the arrays' fill values.

    Raises:
        UserError: no such shard, or features that are not finite.
        ValueError: the extractor's rows do not fit its arrays. And whatever the network raises.
    """
    start = time.perf_counter()
    plan = ShardPlan(len(image_ids), shards)
    rows = plan.rows(shard)
    arrays = compressed(extractor.arrays, compression)
    description = describe_store(
        feature=feature,
        arrays=arrays,
        plan=plan,
        extractor=settings | {"recipe": recipe},
        weights_digest=extractor.weights_digest,
        index_digest=index_digest,
        attributes=extractor.attributes,
    )
    check_store_path(store)
    # From here on the shard counts as unfinished, whatever an earlier run left.
    receipt.unlink(missing_ok=True)
    former = None if content_hashes is None else claim_former(store, description, image_ids, content_hashes, rows)
    unseal(store)
    taken = 0
    failures: list[tuple[int, dict[str, str]]] = []
    files: dict[str, str] = {}
    seconds = {"total": 0.0, "startup": startup_seconds, "decode": 0.0, "network": 0.0, "write": 0.0}

    def write(index: int, values: dict[str, np.ndarray]) -> None:
        clock = time.perf_counter()
        files.update(write_zarr_shard(store, index, values, arrays, plan))
        seconds["write"] += time.perf_counter() - clock

    def work() -> Iterator[int]:
        """Does all the work; yields the row of every image when it is done with."""
        nonlocal taken
        # One Zarr shard is compressed and written while the network makes the next one's rows.
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            writing: Future[None] | None = None
            for index, part in plan.zarr_shards(shard):
                values, old = _former_rows(arrays, former, part)
                taken += len(old)
                yield from old
                new = [row for row in part if row not in set(old)]
                for row, result in _results(extractor, new, paths, sizes, batch_size, workers, seconds):
                    if isinstance(result, str):
                        failures.append((row, {"image_id": image_ids[row], "path": str(paths[row]), "error": result}))
                    else:
                        place = f"{feature} of image {image_ids[row]!r} ({paths[row]})"
                        _store_row(values, row - part.start, result, place)
                    yield row
                if writing is not None:
                    writing.result()
                writing = writer.submit(write, index, values)
            if writing is not None:
                writing.result()

    for _ in progress(work(), total=len(rows), desc=f"{feature} {shard + 1}/{shards}", unit="image"):
        pass
    seconds["total"] = time.perf_counter() - start + startup_seconds
    seconds["startup"] += extractor.seconds
    return write_receipt(
        receipt,
        description=description,
        shard=shard,
        rows=rows,
        failures=[failure for _, failure in sorted(failures, key=lambda item: item[0])],
        seconds=seconds,
        device=extractor.device,
        files=files,
        taken_over=taken,
        notes={"extracted": len(rows) - taken - len(failures)},
    )


def _former_rows(
    arrays: Mapping[str, ArraySpec], former: Former | None, part: range
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Arrays for the rows of `part`, and those rows that are in them already: all that `former` has, or none if damaged."""
    values = {name: spec.empty(len(part)) for name, spec in arrays.items()}
    if former is None:
        return values, []
    try:
        return values, former.fill(values, part)
    except UserError as error:
        # All of them anew: a part that is made again by itself gets the very bytes it had.
        print(f"rows {part.start} to {part.stop - 1} are extracted, not taken over: {error}", flush=True)
        return {name: spec.empty(len(part)) for name, spec in arrays.items()}, []


def _results(
    extractor: LazyExtractor,
    rows: Sequence[int],
    paths: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    workers: int,
    seconds: dict[str, float],
) -> Iterator[tuple[int, dict[str, np.ndarray] | str]]:
    """(row, the network's rows for that image, or why it could not be decoded); adds to `seconds`."""
    from extractors.images import Failure, iterate_batches

    if not rows:
        return
    chosen = [paths[row] for row in rows], rows, extractor.input, batch_size, workers, [sizes[row] for row in rows]
    batches = iterate_batches(*chosen)
    while True:
        clock = time.perf_counter()
        batch = next(batches, None)
        seconds["decode"] += time.perf_counter() - clock
        if batch is None:
            return
        if isinstance(batch, Failure):
            yield batch.row, batch.error
            continue
        clock = time.perf_counter()
        results = extractor(batch)
        seconds["network"] += time.perf_counter() - clock
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


def pick_device(name: str) -> tuple[str, str]:
    """(torch device, the same in words) of "auto", "cpu", "cuda" or "cuda:N". UserError if it is not there."""
    import torch

    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return "cpu", "cpu"
    if device.type != "cuda" or not available or (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; choose auto or cpu"
        )
    return str(device), torch.cuda.get_device_name(device)


def known_extractor(feature: str, settings: dict[str, Any], recipe: int, store: Location) -> dict[str, Any] | None:
    """What a former store says of this very extractor; None if there is none, or where only building it tells."""
    weights = settings.get("weights")
    if settings.get("engine", "native") != "native" or not weights or not os.path.isfile(weights):
        return None
    return find_description(
        store, feature=feature, extractor=settings | {"recipe": recipe}, weights_digest=digest_file(weights)
    )


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m extractors.run", description=__doc__.splitlines()[0])
    parser.add_argument("--feature", required=True, choices=FEATURES)
    parser.add_argument("--images", required=True, type=Path, help="the index' images.parquet")
    parser.add_argument("--shard", required=True, type=int, help="0-based")
    parser.add_argument("--shards", required=True, type=int, help="how many shards the store is made in")
    parser.add_argument("--store", required=True, type=location, help="folder or s3:// address ending in .zarr")
    parser.add_argument("--receipt", required=True, type=Path, help="JSON file, written last")
    parser.add_argument("--settings", required=True, help="the feature's settings: JSON, or a JSON or YAML file")
    parser.add_argument("--recipe", required=True, type=int, help="the extractor's RECIPE, as the workflow read it")
    parser.add_argument("--compression", choices=COMPRESSIONS, default=COMPRESSIONS[0], help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the network on the CPU (default: 1)")
    parser.add_argument("--workers", type=int, default=0, help="decoding threads beside the network (default: 0)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    args = parser.parse_args(argv)

    # Everything that can be wrong with the command, before torch is imported.
    settings = read_mapping(args.settings, flag="--settings")
    batch_size = settings.get("batch_size", 8)
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size of {args.feature} must be a whole number of at least 1, not {batch_size!r}")
    check_store_path(args.store)
    images, digest = read_images(args.images)
    ShardPlan(images.num_rows, args.shards).rows(args.shard)

    def build() -> tuple[Any, str]:
        if args.device == "auto":
            claim_gpu()
        import torch

        torch.set_num_threads(max(1, args.threads))
        # A redone shard must give the same bytes.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        module = importlib.import_module(f"extractors.{args.feature}")
        if args.recipe != module.RECIPE:
            raise UserError(
                f"--recipe {args.recipe} is not the RECIPE {module.RECIPE} of extractors/{args.feature}.py: "
                "the program changed under a running workflow; start it again"
            )
        device, device_name = pick_device(args.device)
        try:
            inspect.signature(module.build_extractor).bind(**settings)
        except TypeError as error:
            raise UserError(f"--settings of {args.feature}: {error}") from error
        return module.build_extractor(**settings).to(device), device_name

    extractor = LazyExtractor(build, known_extractor(args.feature, settings, args.recipe, args.store))
    sizes = zip(images.column("height").to_pylist(), images.column("width").to_pylist(), strict=True)
    content = extract_shard(
        feature=args.feature,
        extractor=extractor,
        settings=settings,
        recipe=args.recipe,
        image_ids=images.column("image_id").to_pylist(),
        paths=images.column("path").to_pylist(),
        sizes=list(sizes),
        # No store tells whether a configuration file of the user's is still what it was.
        content_hashes=(
            None if os.path.isfile(settings.get("config") or "") else images.column("content_hash").to_pylist()
        ),
        index_digest=digest,
        store=args.store,
        receipt=args.receipt,
        shard=args.shard,
        shards=args.shards,
        compression=args.compression,
        batch_size=batch_size,
        workers=args.workers,
        startup_seconds=time.perf_counter() - start,
    )
    print(
        f"{args.feature} shard {args.shard + 1}/{args.shards}: {content['images']} images, "
        f"{len(content['failures'])} of them unreadable, {content['taken_over']} taken over from the former store, "
        f"{content['extracted']} extracted, {content['images_per_second']} images/s on {content['device']}"
    )


if __name__ == "__main__":
    run_cli(main)
