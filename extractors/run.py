"""Extracts one shard of one feature: `python -m extractors.run`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalog.index import read_images
from console import UserError, progress, read_mapping, run_cli
from runtime import claim_gpu
from stores.places import Location, location
from stores.plan import ShardPlan
from stores.receipts import write_receipt
from stores.schema import FEATURES, describe_store
from stores.writer import check_store_path, unseal, write_zarr_shard


def extract_shard(
    *,
    feature: str,
    extractor: Any,
    settings: dict[str, Any],
    recipe: int,
    image_ids: Sequence[str],
    paths: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    index_digest: str,
    store: Location,
    receipt: Path,
    shard: int,
    shards: int,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "cpu",
    startup_seconds: float = 0.0,
) -> dict[str, Any]:
    """Extract the rows of one shard job, publish its Zarr shards and, last, its receipt.

    Repeated, it gives the same bytes. The store is unsealed. Memory: the rows of one Zarr shard (at most 512) and a few
    batches of images.

    Args:
        extractor: has `input` (`InputSpec`), `arrays` (name -> `ArraySpec`), `weights_digest`, perhaps `attributes`
            (dict for readers of the store), and turns an `ImageBatch` into one dict of rows per image.
        settings, recipe: what the extractor was built from, for the record.
        image_ids, paths, sizes: the whole index, sizes as upright (height, width), (0, 0) where unknown.
        receipt: JSON file written when all data of the shard is on disk (see `stores.receipts`).
        batch_size: images per batch at most. workers: decoding threads. device: in words, for the record.
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
    description = describe_store(
        feature=feature,
        arrays=extractor.arrays,
        plan=plan,
        extractor=settings | {"recipe": recipe},
        weights_digest=extractor.weights_digest,
        index_digest=index_digest,
        attributes=getattr(extractor, "attributes", None),
    )
    check_store_path(store)
    # From here on the shard counts as unfinished, whatever an earlier run left.
    receipt.unlink(missing_ok=True)
    unseal(store)
    failures: list[tuple[int, dict[str, str]]] = []
    files: dict[str, str] = {}
    seconds = {"total": 0.0, "startup": startup_seconds, "decode": 0.0, "network": 0.0, "write": 0.0}

    def work() -> Iterator[int]:
        """Does all the work; yields the row of every image when it is done with."""
        for index, part in plan.zarr_shards(shard):
            values = {name: spec.empty(len(part)) for name, spec in extractor.arrays.items()}
            for row, result in _results(extractor, part, paths, sizes, batch_size, workers, seconds):
                if isinstance(result, str):
                    failures.append((row, {"image_id": image_ids[row], "path": str(paths[row]), "error": result}))
                else:
                    place = f"{feature} of image {image_ids[row]!r} ({paths[row]})"
                    _store_row(values, row - part.start, result, place)
                yield row
            clock = time.perf_counter()
            files.update(write_zarr_shard(store, index, values, extractor.arrays, plan))
            seconds["write"] += time.perf_counter() - clock

    for _ in progress(work(), total=len(rows), desc=f"{feature} {shard + 1}/{shards}", unit="image"):
        pass
    seconds["total"] = time.perf_counter() - start + startup_seconds
    return write_receipt(
        receipt,
        description=description,
        shard=shard,
        rows=rows,
        failures=[failure for _, failure in sorted(failures, key=lambda item: item[0])],
        seconds=seconds,
        device=device,
        files=files,
    )


def _results(
    extractor: Any,
    part: range,
    paths: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    workers: int,
    seconds: dict[str, float],
) -> Iterator[tuple[int, dict[str, np.ndarray] | str]]:
    """(row, the network's rows for that image, or why it could not be decoded); adds to `seconds`."""
    from extractors.images import Failure, iterate_batches

    span = slice(part.start, part.stop)
    batches = iterate_batches(paths[span], part, extractor.input, batch_size, workers, sizes[span])
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
    extractor = module.build_extractor(**settings).to(device)
    sizes = zip(images.column("height").to_pylist(), images.column("width").to_pylist(), strict=True)
    content = extract_shard(
        feature=args.feature,
        extractor=extractor,
        settings=settings,
        recipe=args.recipe,
        image_ids=images.column("image_id").to_pylist(),
        paths=images.column("path").to_pylist(),
        sizes=list(sizes),
        index_digest=digest,
        store=args.store,
        receipt=args.receipt,
        shard=args.shard,
        shards=args.shards,
        batch_size=batch_size,
        workers=args.workers,
        device=device_name,
        startup_seconds=time.perf_counter() - start,
    )
    print(
        f"{args.feature} shard {args.shard + 1}/{args.shards}: {content['images']} images, "
        f"{len(content['failures'])} of them unreadable, {content['images_per_second']} images/s on {device_name}"
    )


if __name__ == "__main__":
    run_cli(main)
