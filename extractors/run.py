"""Extracts one shard of one feature: `python -m extractors.run`."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from catalog.index import read_images
from console import UserError, progress, run_cli, write_json
from stores.plan import ShardPlan
from stores.schema import FEATURES, fingerprint
from stores.seal import RECEIPT_VERSION
from stores.writer import unseal, write_zarr_shard


def extract_shard(
    *,
    feature: str,
    extractor: Any,
    settings: dict[str, Any],
    recipe: int,
    image_ids: list[str],
    paths: list[str],
    sizes: list[tuple[int, int]],
    index_digest: str,
    store: Path,
    receipt: Path,
    shard: int,
    shards: int,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "cpu",
    startup_seconds: float = 0.0,
) -> dict[str, Any]:
    """Extract the rows of one shard job, write its Zarr shards and, last, its receipt.

    Args:
        extractor: see `extractors.regions.RegionExtractor`. settings: what it was built from, for the record.
        image_ids, paths, sizes: the whole index, sizes as upright (height, width).
        receipt: JSON file written when all data of the shard is on disk.

    Returns:
        The receipt.
    """
    from extractors.images import Failure, iterate_batches

    start = time.perf_counter()
    plan = ShardPlan(len(image_ids), shards)
    rows = plan.rows(shard)
    receipt.unlink(missing_ok=True)
    unseal(store)
    failures: list[dict[str, str]] = []
    files: dict[str, str] = {}
    seconds = {"startup": startup_seconds, "decode": 0.0, "network": 0.0, "write": 0.0}
    done = 0
    for index, part in plan.zarr_shards(shard):
        values = {name: spec.empty(len(part)) for name, spec in extractor.arrays.items()}
        batches = iterate_batches(
            [paths[i] for i in part], list(part), extractor.input, batch_size, workers, [sizes[i] for i in part]
        )
        ticks = progress(
            range(len(part)), total=len(part), desc=f"{feature} shard {shard + 1}/{shards}", unit="image"
        )
        clock = time.perf_counter()
        for batch in batches:
            seconds["decode"] += time.perf_counter() - clock
            if isinstance(batch, Failure):
                failures.append({"image_id": image_ids[batch.row], "path": batch.path, "error": batch.error})
                next(ticks)
                clock = time.perf_counter()
                continue
            clock = time.perf_counter()
            for row, result in zip(batch.rows, extractor(batch), strict=True):
                for name, value in result.items():
                    if value.dtype.kind == "f" and not np.isfinite(value).all():
                        raise UserError(
                            f"{feature} of image {image_ids[row]} ({paths[row]}): array {name} is not finite; "
                            "set precision: fp32 and check the weights file"
                        )
                    values[name][row - part.start] = value
                next(ticks)
            seconds["network"] += time.perf_counter() - clock
            clock = time.perf_counter()
        ticks.close()
        clock = time.perf_counter()
        files |= write_zarr_shard(store, index, values, extractor.arrays, plan)
        seconds["write"] += time.perf_counter() - clock
        done += len(part)
    seconds["total"] = time.perf_counter() - start + startup_seconds
    record = settings | {"recipe": recipe}
    content = {
        "receipt_version": RECEIPT_VERSION,
        "fingerprint": fingerprint(
            feature=feature,
            arrays=extractor.arrays,
            images=len(image_ids),
            shards=shards,
            extractor=record,
            weights_digest=extractor.weights_digest,
            index_digest=index_digest,
        ),
        "feature": feature,
        "shard": shard,
        "shards": shards,
        "rows": [rows.start, rows.stop],
        "images": done,
        "failures": sorted(failures, key=lambda f: f["image_id"]),
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "images_per_second": round(done / max(1e-9, seconds["total"] - startup_seconds), 2),
        "device": device,
        "arrays": {
            name: {"shape": list(spec.shape), "dtype": spec.dtype, "fill": spec.fill}
            for name, spec in extractor.arrays.items()
        },
        "extractor": record,
        "attributes": extractor.attributes,
        "weights_digest": extractor.weights_digest,
        "index_digest": index_digest,
        "files": files,
    }
    write_json(receipt, content)
    return content


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m extractors.run", description=__doc__.splitlines()[0])
    parser.add_argument("--feature", required=True, choices=FEATURES)
    parser.add_argument("--images", required=True, type=Path, help="the index' images.parquet")
    parser.add_argument("--shard", required=True, type=int, help="0-based")
    parser.add_argument("--shards", required=True, type=int)
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--receipt", required=True, type=Path)
    parser.add_argument("--settings", required=True, help="the feature's settings as JSON")
    parser.add_argument("--recipe", required=True, type=int, help="the extractor's RECIPE, as the workflow read it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="decoding threads beside the network")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args()
    start = time.perf_counter()
    settings = json.loads(args.settings)
    images, digest = read_images(args.images)

    import torch

    torch.set_num_threads(args.threads)
    module = importlib.import_module(f"extractors.{args.feature}")
    if args.recipe != module.RECIPE:
        raise UserError(
            f"--recipe {args.recipe} is not extractors/{args.feature}.py's RECIPE {module.RECIPE}; start the workflow again"
        )
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    extractor = module.build_extractor(**settings).to(device)
    heights, widths = images.column("height").to_pylist(), images.column("width").to_pylist()
    content = extract_shard(
        feature=args.feature,
        extractor=extractor,
        settings=settings,
        recipe=args.recipe,
        image_ids=images.column("image_id").to_pylist(),
        paths=images.column("path").to_pylist(),
        sizes=list(zip(heights, widths, strict=True)),
        index_digest=digest,
        store=args.store,
        receipt=args.receipt,
        shard=args.shard,
        shards=args.shards,
        batch_size=settings.get("batch_size", 8),
        workers=args.workers,
        device=device if device == "cpu" else torch.cuda.get_device_name(device),
        startup_seconds=time.perf_counter() - start,
    )
    print(
        f"{args.feature} shard {args.shard + 1}/{args.shards}: {content['images']} images, "
        f"{len(content['failures'])} failed, {content['images_per_second']} images/s"
    )


if __name__ == "__main__":
    run_cli(main)
