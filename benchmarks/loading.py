"""Data loading per epoch against the original's: `python -m benchmarks.loading`.

Ours: batches of `model.data.TrainingPairs` from stores, nothing preloaded, at two sizes of the data set, to see that memory
does not follow it. The original: a `DataLoader` over float32 arrays that are all in memory. Both shuffle, drop a fifth of
the visual tokens and augment the captions. An epoch is five pairs per image; `--batches` measures its first batches and
the report scales them to one. MB/s counts features as stored, float16, for both.

With `--step` the report also says how many pairs per second our training step consumes on the device.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks import baseline, common, data, training
from core.console import run_cli
from core.flags import command
from model.data import Features, TrainingPairs

T = TypeVar("T")
MEMORY_TARGET = 4.0  # GiB of host memory, whatever the size of the data set


def measure_ours(args: argparse.Namespace, folder: Path, images: int) -> tuple[float, int, int]:
    """(pairs per second, peak bytes of host memory, stored bytes of an image) of the first batches of an epoch.

    Runs in a process of its own (`in_new_process`), whose memory is that of loading and nothing else.
    """
    features = open_features(args, folder, images)
    pairs = TrainingPairs(data.split(images, seed=args.seed), features, data.tokenizer(), batch_size=args.batch_size)
    batches = min(args.batches or len(pairs), len(pairs))

    def epoch() -> None:
        with contextlib.closing(pairs.batches(0, workers=args.workers)) as source:
            for _ in itertools.islice(source, batches):
                pass

    with common.PeakMemory(torch.device("cpu")) as peak:
        seconds = common.timed(epoch, torch.device("cpu"))
    return batches * args.batch_size / seconds, peak.host, features.nbytes(1)


def measure_baseline(args: argparse.Namespace, folder: Path, images: int) -> tuple[float, int, int]:
    """The same of the original's loader; the bytes are those it holds in memory per image."""
    features = open_features(args, folder, images)
    with common.PeakMemory(torch.device("cpu")) as peak:
        arrays = data.arrays_for_baseline(features, images)
        items = data.split(images, seed=args.seed)
        pairs = baseline.PairsInMemory(arrays, items.captions, data.tokenizer(), train=True)
        loader = baseline.loader(pairs, args.batch_size, workers=args.workers)
        batches = min(args.batches or len(loader), len(loader))

        def epoch() -> None:
            for _ in itertools.islice(loader, batches):
                pass

        seconds = common.timed(epoch, torch.device("cpu"))
    return batches * args.batch_size / seconds, peak.host, sum(array.nbytes for array in arrays.values()) // images


def open_features(args: argparse.Namespace, folder: Path, images: int) -> Features:
    """The stores below `folder`, or the same features in memory."""
    if args.features == "memory":
        return data.features_in_memory(images, tokens=args.tokens, width=args.img_dim, seed=args.seed)
    return data.open_stores(folder)


def in_new_process(measure: Callable[..., T], *arguments: Any) -> T:
    """`measure(*arguments)` in a fresh interpreter."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def step_consumption(args: argparse.Namespace, device: torch.device) -> float:
    """Pairs per second of our whole training step: fp32 on a CPU, bf16 on a GPU."""
    option = training.TARGETS[device.type][0]
    network = common.build_network(args).to(device).train()
    step = training.our_step(network, training.make_batch(args)[0], None, option, device)
    seconds = common.interleaved({"step": step}, args.repetitions, device)["step"]
    return args.batch_size / statistics.median(seconds)


def measure(args: argparse.Namespace, device: torch.device, folder: Path) -> list[dict[str, Any]]:
    """All rows of the report."""
    shape = {"tokens": args.tokens, "width": args.img_dim, "seed": args.seed}
    sizes = sorted(args.images)
    rows: list[dict[str, Any]] = []
    speeds: dict[str, list[float]] = {"ours": [], "baseline": []}
    peaks: dict[int, float] = {}
    for images in sizes:
        place = folder / str(images)
        if args.features == "store":
            data.features_in_stores(place, images, **shape)
        for _ in range(args.repetitions):
            rate, peak, row_bytes = in_new_process(measure_ours, args, place, images)
            peaks[images] = max(peaks.get(images, 0.0), peak / 2**30)
            if images == sizes[0]:
                speeds["ours"].append(rate)
                rate, their_peak, their_bytes = in_new_process(measure_baseline, args, place, images)
                speeds["baseline"].append(rate)
    ours, theirs = (statistics.median(speeds[name]) for name in ("ours", "baseline"))
    ratio = statistics.median(a / b for a, b in zip(speeds["ours"], speeds["baseline"], strict=True))
    epoch = data.COCO_TRAIN_IMAGES * data.CAPTIONS_PER_IMAGE
    rows += [
        {"what": "pairs per second", "ours": ours, "baseline": theirs, "unit": "/s", "ratio": ratio, "rates": speeds},
        {
            "what": "features per second",
            "ours": ours * row_bytes / 1e6,
            "baseline": theirs * row_bytes / 1e6,
            "unit": "MB/s",
        },
        {
            "what": f"an epoch of COCO ({epoch} pairs)",
            "ours": epoch / ours / 60,
            "baseline": epoch / theirs / 60,
            "unit": "min",
            "note": "computed from the pairs per second",
        },
    ]
    for images in sizes:
        row = {"what": f"peak host memory, {images} images", "ours": peaks[images], "unit": "GiB"}
        if args.features == "store":
            row |= {"target": MEMORY_TARGET, "at_most": True}
        if images == sizes[0]:
            row["baseline"] = their_peak / 2**30
        rows.append(row)
    if args.features == "store" and len(sizes) > 1:
        growth = (peaks[sizes[-1]] - peaks[sizes[0]]) * 2**20 / (sizes[-1] - sizes[0])
        rows.append(
            {
                "what": "host memory per further image",
                "ours": growth,
                "baseline": their_bytes / 2**10,
                "unit": "KiB",
                "note": (
                    f"ours is measured from {sizes[0]} to {sizes[-1]} images (captions, no features); the "
                    "original's is the size of its arrays, of COCO's training images "
                    f"{their_bytes * data.COCO_TRAIN_IMAGES / 2**30:.0f} GiB (computed)"
                ),
            }
        )
    if args.step:
        consumed = step_consumption(args, device)
        rows.append(
            {
                "what": f"pairs per second that a training step consumes, {device.type}",
                "ours": consumed,
                "unit": "/s",
                "note": f"the loader gives {ours / consumed:.1f} times as many"
                + ("" if ours >= consumed else f": with {args.workers} workers the device WAITS for data"),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.loading", __doc__)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[2000, 8000], help=f"sizes; COCO has {data.COCO_TRAIN_IMAGES}"
    )
    parser.add_argument("--features", choices=("store", "memory"), default="store", help="memory: as preloaded")
    parser.add_argument("--batches", type=int, help="of an epoch (default: all)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2, help="threads of ours, processes of the original")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--step", action="store_true", help="also measure what a training step consumes")
    parser.add_argument("--folder", type=Path, help="for the stores (default: a temporary folder, removed afterwards)")
    common.add_network_arguments(parser)
    common.add_arguments(parser)
    args = parser.parse_args(argv)
    device = common.start(args)
    with tempfile.TemporaryDirectory(prefix="benchmark.", dir=args.folder) as folder:
        rows = measure(args, device, Path(folder))
    common.report("loading", args, device, rows)


if __name__ == "__main__":
    run_cli(main)
