"""How extraction scales over workers, measured, and what that means for large datasets: `python -m benchmarks.scaling`.

Measured: the workflow's own shard jobs (`extractors.run`) over the same photographs, one worker after another against
several at once, each with its own GPU or the same number of CPU threads. Efficiency is the time of one worker over the
workers' time times their number; 1 is perfect.

Simulated: all shard jobs of a dataset in a queue in front of 1 to 512 workers, with the seconds per image and per start
that were measured, and the assumptions that are printed beside the hours. `--seconds regions=0.139 panoptic=0.066` takes
figures of another device instead, named by `--worker`; nothing is measured then.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine
from benchmarks.detectors import seed_weights
from benchmarks.extraction import DEFAULTS, write_photographs
from core.console import UserError, run_cli
from core.files import write_json
from core.flags import command
from extractors.networks import build

DATASETS = {"COCO": 123_287, "1 million": 1_000_000, "100 million": 100_000_000}
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Assumptions:
    """What the simulation takes for granted; a field's metadata says it in words."""

    shard_minutes: float = 20.0
    queue_seconds: float = 17.0
    failures_per_1000_hours: float = 1.0
    index_images_per_second: float = 5000.0
    seal_mb_per_second: float = 500.0

    def words(self) -> list[str]:
        """One sentence each."""
        return [
            f"a shard is made to last {self.shard_minutes:g} minutes, but there are at least two shards per worker "
            "and feature, as far as there are 8 images for each",
            f"a job holds its worker {self.queue_seconds:g} s longer than its command runs (Slurm and the two starts of "
            "Snakemake: measured on a busy one-node cluster, see docs/clusters.md)",
            f"{self.failures_per_1000_hours:g} of a thousand worker hours ends in a failure; its shard starts again at the "
            "end of the queue, and what the job had done is lost",
            f"the index reads {self.index_images_per_second:,.0f} image headers a second on one machine (2 cores, images in "
            "the page cache: `python -m benchmarks.index`), before any extraction",
            f"sealing reads a store at {self.seal_mb_per_second:,.0f} MB/s on one machine, after its last shard; the three "
            "stores are sealed side by side",
            "stores have 75 % of the bytes of raw float16 features: 36 x 2048 (regions), 49 x 2048 (grids), "
            "133 x 49 and 64 x 64 bytes (panoptic)",
            "workers are alike, images and stores are read and written as fast as they are wanted, the queue is ours alone, "
            "and memory suffices; Snakemake's own time for planning and submitting is left out",
        ]


BYTES_PER_IMAGE = {
    "regions": 0.75 * 36 * 2048 * 2,
    "grids": 0.75 * 49 * 2048 * 2,
    "panoptic": 0.75 * (133 * 49 * 2 + 64 * 64),
}


def shard_count(images: int, seconds_per_image: float, workers: int, assumptions: Assumptions) -> int:
    """Jobs that a feature is cut into."""
    wanted = math.ceil(images * seconds_per_image / (60 * assumptions.shard_minutes))
    return max(1, min(images // 8, max(wanted, 2 * workers)))


def simulate(
    images: int,
    workers: int,
    costs: Mapping[str, tuple[float, float]],
    assumptions: Assumptions = Assumptions(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> dict[str, float]:
    """One extraction of all features of `costs`.

    Args:
        images: of the dataset. workers: GPUs, one job each at a time.
        costs: feature -> (seconds per image, seconds that a job needs before its first image).

    Returns:
        hours: from the start of the index to the last seal. extraction_hours: of these, workers were at work.
        worker_hours: that workers were held. efficiency: hours that the images alone need / worker_hours.
        jobs: started, with those that failed. failed.
    """
    generator = random.Random(seed)
    # First in, first out, longest jobs first: what is short fills the gaps at the end.
    queue: list[tuple[str, float]] = []
    for feature, (per_image, startup) in costs.items():
        count = shard_count(images, per_image, workers, assumptions)
        small, more = divmod(images, count)
        overhead = startup + assumptions.queue_seconds
        queue += [(feature, overhead + per_image * (small + (shard < more))) for shard in range(count)]
    queue.sort(key=lambda job: -job[1])
    free = [0.0] * workers
    held, failed, jobs, useful = 0.0, 0, 0, 0.0
    done = dict.fromkeys(costs, 0.0)
    rate = assumptions.failures_per_1000_hours / 1000 / 3600
    position = 0
    while position < len(queue):
        feature, seconds = queue[position]
        position += 1
        start = heapq.heappop(free)
        jobs += 1
        lifetime = generator.expovariate(rate) if rate else math.inf
        taken = min(seconds, lifetime)
        if lifetime < seconds:
            failed += 1
            queue.append((feature, seconds))
        else:
            done[feature] = max(done[feature], start + seconds)
        held += taken
        heapq.heappush(free, start + taken)
    index = images / assumptions.index_images_per_second
    seals = {f: images * BYTES_PER_IMAGE[f] / (assumptions.seal_mb_per_second * 1e6) for f in costs}
    useful = sum(images * per_image for per_image, _ in costs.values())
    return {
        "hours": (index + max(done[f] + seals[f] for f in costs)) / 3600,
        "extraction_hours": max(done.values()) / 3600,
        "worker_hours": held / 3600,
        "efficiency": useful / held,
        "jobs": jobs,
        "failed": failed,
    }


def extraction_seconds(
    folder: Path, feature: str, settings: dict[str, Any], images: int, workers: int, device: str, threads: int
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds until `workers` jobs, one shard each of the index in `folder`, are through; and their receipts."""
    place = folder / f"{feature}_{workers}"
    processes = []
    clock = time.perf_counter()
    for shard in range(workers):
        command = [
            sys.executable,
            "-m",
            "extractors.run",
            "--feature",
            feature,
            "--images",
            str(folder / "images.parquet"),
        ]
        command += ["--shard", str(shard), "--shards", str(workers), "--store", str(place / f"{feature}.zarr")]
        command += ["--receipt", str(place / f"{shard}.json"), "--settings", json.dumps(settings)]
        command += ["--recipe", str(_recipe(feature)), "--threads", str(threads), "--workers", str(threads)]
        command += ["--device", "cpu" if device == "cpu" else "cuda"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if device != "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = str(shard % torch.cuda.device_count())
        with (folder / f"{feature}_{workers}_{shard}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    codes = [process.wait() for process in processes]
    taken = time.perf_counter() - clock
    if any(codes):
        log = next(folder / f"{feature}_{workers}_{k}.log" for k, code in enumerate(codes) if code)
        raise UserError(f"a job for {feature} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return taken, [json.loads((place / f"{shard}.json").read_text()) for shard in range(workers)]


def _recipe(feature: str) -> int:
    import importlib

    return importlib.import_module(f"extractors.{feature}").RECIPE


def measure(feature: str, architecture: str, counts: Sequence[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per number of workers: seconds, images per second, efficiency, start-up; the first row has one worker."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        write_photographs(folder / "photos", args.images)
        dataset = {"source": "folder", "images": str(folder / "photos")}
        command = [
            sys.executable,
            "-m",
            "catalog.run",
            "index",
            "--dataset",
            "photos",
            "--settings",
            json.dumps(dataset),
        ]
        command += ["--images", str(folder / "images.parquet"), "--captions", str(folder / "captions.parquet")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if architecture.startswith("scenes_"):
            weights = Path("weights", f"{architecture}.safetensors").resolve()
        else:
            weights = folder / "model_final.pkl"
            network = build(architecture)
            seed_weights(network)
            state = {name: value.numpy() for name, value in network.state_dict().items()}
            weights.write_bytes(pickle.dumps({"model": state, "__author__": "seeded"}))
        settings = {"architecture": architecture, "weights": str(weights), "batch_size": args.batch}
        settings |= {"precision": args.precision}
        for workers in counts:
            runs = [
                extraction_seconds(folder, feature, settings, args.images, workers, args.device, args.threads)
                for _ in range(args.rounds)
            ]
            seconds, receipts = min(runs, key=lambda run: run[0])
            startup = max(receipt["seconds"]["startup"] for receipt in receipts)
            work = max(receipt["seconds"]["total"] - receipt["seconds"]["startup"] for receipt in receipts)
            rows.append(
                {
                    "feature": feature,
                    "architecture": architecture,
                    "workers": workers,
                    "seconds": seconds,
                    "startup_seconds": startup + seconds - max(r["seconds"]["total"] for r in receipts),
                    "images_per_second": args.images / work,
                    "seconds_per_image": work * workers / args.images,
                }
            )
            row = rows[-1]
            row["efficiency"] = rows[0]["seconds_per_image"] / row["seconds_per_image"]
            row["efficiency_with_startup"] = rows[0]["seconds"] / (workers * seconds)
            print(
                f"| {feature} | {architecture} | {workers} | {row['images_per_second']:.3g} | {row['efficiency']:.2f} | "
                f"{row['efficiency_with_startup']:.2f} | {row['startup_seconds']:.1f} |",
                flush=True,
            )
    return rows


def simulations(costs: Mapping[str, tuple[float, float]], assumptions: Assumptions, seed: int) -> list[dict[str, Any]]:
    """A row per dataset and number of workers."""
    return [
        {"dataset": name, "images": images, "workers": workers, **simulate(images, workers, costs, assumptions, seed)}
        for name, images in DATASETS.items()
        for workers in WORKERS
    ]


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _pairs(values: Sequence[str]) -> dict[str, float]:
    result = {}
    for value in values:
        feature, _, seconds = value.partition("=")
        try:
            result[feature] = float(seconds)
        except ValueError:
            result[feature] = math.nan
        if feature not in DEFAULTS or not 0 < result[feature] < math.inf:
            raise UserError(f"--seconds {value}: write FEATURE=SECONDS, feature being one of {', '.join(DEFAULTS)}")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.scaling", __doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    gpus = torch.cuda.device_count()
    parser.add_argument("features", nargs="*", help=f"of {', '.join(DEFAULTS)} (all, if none is named)")
    parser.add_argument("--scenes", action="store_true", help="the small embedded detectors instead of full-size ones")
    parser.add_argument("--images", type=int, default=8 if not gpus else 2000, help="in all, for any number of workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, *{max(2, gpus)}], help="numbers to compare")
    parser.add_argument("--threads", type=int, default=1 if not gpus else 4, help="of each worker")
    parser.add_argument("--rounds", type=int, default=1, help="the fastest counts")
    parser.add_argument("--batch", type=int, default=4 if not gpus else 32)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--device", default="cuda" if gpus else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seconds", nargs="+", metavar="FEATURE=SECONDS", help="per image: simulate only")
    parser.add_argument(
        "--startup", type=float, default=30.0, help="seconds of a job before its first image, with --seconds"
    )
    parser.add_argument("--worker", help="what --seconds were taken on, for the heading")
    for field in fields(Assumptions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    parser.add_argument("--seed", type=int, default=0, help="of the failures")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.features if name not in DEFAULTS]:
        raise UserError(f"unknown feature {unknown[0]!r}; choose from {', '.join(DEFAULTS)}")
    if args.images < max(args.workers):
        raise UserError(f"--images {args.images} are too few for {max(args.workers)} workers")
    assumptions = Assumptions(**{field.name: getattr(args, field.name) for field in fields(Assumptions)})
    content: dict[str, Any] = {"benchmark": "scaling", "measured": []}
    if args.seconds:
        costs = {feature: (seconds, args.startup) for feature, seconds in _pairs(args.seconds).items()}
        worker = args.worker or "the device of --seconds"
    else:
        place = machine(torch.device(args.device))
        content["machine"] = place
        share = f"{args.threads} thread(s) of {place['cpu']}" if args.device == "cpu" else place["device"]
        worker = f"{share}, {args.precision}"
        print(f"Worker: {worker}; {args.images} photographs of 640x480; torch {place['torch']}, {place['date']}")
        print("| feature | architecture | workers | images/s | efficiency | with start-up | start-up s |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for feature in args.features or DEFAULTS:
            architecture = f"scenes_{feature}" if args.scenes else DEFAULTS[feature]
            content["measured"] += measure(feature, architecture, sorted({1, *args.workers}), args)
        alone = [row for row in content["measured"] if row["workers"] == 1]
        costs = {row["feature"]: (row["seconds_per_image"], row["startup_seconds"]) for row in alone}
    rows = simulations(costs, assumptions, args.seed)
    content |= {"worker": worker, "costs": costs, "assumptions": assumptions.words(), "simulated": rows}
    print(f"\nSimulated for workers like {worker}")
    for feature, (seconds, startup) in costs.items():
        print(f"- {feature}: {seconds:.3g} s an image, {startup:.3g} s before a job's first image")
    for sentence in content["assumptions"]:
        print(f"- {sentence}")
    print("\n| dataset | workers | hours | of them extraction | worker hours | efficiency | jobs | failed |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['dataset']} | {row['workers']} | {_hours(row['hours'])} | {_hours(row['extraction_hours'])} | "
            f"{_hours(row['worker_hours'])} | {row['efficiency']:.2f} | {row['jobs']:,} | {row['failed']:,} |"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, content)


if __name__ == "__main__":
    run_cli(main)
