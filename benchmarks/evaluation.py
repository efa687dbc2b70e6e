"""A whole evaluation at the size of COCO 5K against the original procedure: `python -m benchmarks.evaluation`.

Random features lie in real stores (`--features memory` where the libraries for that are missing), the network has random
weights. Encoding: store rows -> images -> embeddings, strings -> pieces -> embeddings; the original reads float32 arrays
that are already in memory, and encodes each image five times. Metrics: both directions at full size.

Where encoding all of it takes too long, `--encode-images` has both sides encode so many images and their captions, in
turns; the report then says what was scaled. Metrics are never scaled.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import baseline, common, data
from core.console import run_cli
from core.devices import keep_freed_memory, matmul_precision
from core.flags import command
from core.scores import SUMMED
from evaluation.metrics import retrieval_metrics
from model.data import Features, Split
from model.embed import embed_captions, embed_images
from model.ranking import ranks_from_similarity, retrieval_scores

PARTS = ("encoding", "metrics")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
METRICS_TARGETS = {"cpu": 8.0, "cuda": 100.0}
EVALUATION_TARGET = 5.0


def measure_encoding(
    args: argparse.Namespace, device: torch.device, features: Features, items: Split, seconds: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Both sides encode `--encode-images` images and their captions, in turns; adds to `seconds`, scaled to `--images`."""
    network = common.build_network(args).to(device).eval()
    tokenizer = data.tokenizer()
    count = args.encode_images
    captions = items.captions[: count * data.CAPTIONS_PER_IMAGE]
    original = baseline.Baseline(network)
    arrays = data.arrays_for_baseline(features, count)
    pairs = baseline.PairsInMemory(arrays, captions, tokenizer, train=False)
    batches = baseline.loader(pairs, args.batch_size)
    tf32 = {True: "high", False: "highest"}

    def ours_images() -> np.ndarray:
        with _precision(args.precision, device):
            return embed_images(network, features, items.image_rows[:count], batch_size=128, workers=args.workers)

    def ours_captions() -> np.ndarray:
        with _precision(args.precision, device):
            return embed_captions(network, tokenizer, captions)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        return ours_images(), ours_captions()

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        torch.set_float32_matmul_precision(tf32[args.baseline_tf32])
        return baseline.encode(original, batches, device)

    memory = {}
    for name, run in {"ours": ours, "baseline": theirs}.items():
        with common.PeakMemory(device) as peak:
            run()
        memory[name] = peak
    runs = {"images": ours_images, "captions": ours_captions, "baseline": theirs}
    taken = common.interleaved(runs, args.repetitions, device, warmup=0, clock=CLOCKS[args.clock])
    taken["ours"] = [a + b for a, b in zip(taken["images"], taken["captions"], strict=True)]
    scale = args.images / count
    seconds["ours"] = [value * scale for value in taken["ours"]]
    seconds["baseline"] = [value * scale for value in taken["baseline"]]
    what = f"encoding {count} images, {len(captions)} captions"
    rows = [
        _row(what, taken, unit="s"),
        {"what": "  of it images", "ours": statistics.median(taken["images"])},
        {"what": "  of it captions", "ours": statistics.median(taken["captions"])},
    ]
    rate = common.product_rate(device, args.precision)
    for name, run in {"images": ours_images, "captions": ours_captions}.items():
        seconds_taken = statistics.median(taken[name])
        work = common.operations(run)
        if args.clock == "wall":
            rows.append(common.share_of_peak(f"  {name}", work, seconds_taken, rate))
        if device.type == "cpu":
            rows.append(common.core_share(f"  {name}", work, run, args.precision, args.repetitions))
    kinds = ("host", "device") if device.type == "cuda" else ("host",)
    for kind in kinds:
        peaks = {name: getattr(peak, kind) / 2**30 for name, peak in memory.items()}
        rows.append({"what": f"{what}: peak {kind} memory", **peaks, "unit": "GiB"})
    rows[-1]["note"] = (
        f"the process holds the original's {sum(a.nbytes for a in arrays.values()) / 2**30:.2f} GiB of features on both "
        "sides; ours does not need them"
    )
    return rows


def measure_metrics(
    args: argparse.Namespace, device: torch.device, items: Split, seconds: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Similarities and metrics of random embeddings at full size; adds to `seconds` what an evaluation spends on them."""
    generator = np.random.default_rng(args.seed)
    images = generator.standard_normal((args.images, args.embed_size), dtype=np.float32)
    captions = images[items.caption_image] * np.float32(0.2)
    captions += generator.standard_normal(captions.shape, dtype=np.float32)
    images, captions = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, captions))
    doubles = images.astype(np.float64), captions.astype(np.float64)  # as the original's encoding leaves them
    given = (
        [torch.from_numpy(x).to(device) for x in (images, captions)] if device.type == "cuda" else [images, captions]
    )
    found: dict[str, dict] = {}

    def ours() -> None:
        found["ours"] = retrieval_metrics(*given, items.caption_image)

    def theirs() -> None:
        found["baseline"] = baseline.metrics(baseline.similarities(*doubles))

    size = f"{len(images)} x {len(captions)}"
    whole = common.interleaved({"ours": ours, "baseline": theirs}, args.repetitions, device, clock=CLOCKS[args.clock])
    difference = max(
        abs(found["ours"][way][key] - found["baseline"][way][key]) for way in ("i2t", "t2i") for key in SUMMED
    )
    for name in whole:
        seconds[name] = [a + b for a, b in zip(seconds.get(name, [0.0] * args.repetitions), whole[name], strict=True)]
    memory = {}
    for name, run in {"ours": ours, "baseline": theirs}.items():
        with common.PeakMemory(device) as peak:
            run()
        memory[name] = peak
    rows = [
        _measure_ranking(args, images @ captions.T, baseline.similarities(*doubles), items.caption_image),
        _row(
            f"similarities and metrics from {size} embeddings, {device.type}",
            whole,
            target=METRICS_TARGETS["cuda"] if device.type == "cuda" else None,
            note=f"largest difference of a recall between the two sides: {difference:.3f} points",
        ),
        {
            "what": "similarities and metrics: host memory on top",
            **{name: peak.on_top("host") / 2**30 for name, peak in memory.items()},
            "unit": "GiB",
        },
    ]
    if device.type == "cuda":
        rows.append(
            {"what": "similarities and metrics: device memory", "ours": memory["ours"].device / 2**30, "unit": "GiB"}
        )
    return rows


def _measure_ranking(
    args: argparse.Namespace, single: np.ndarray, double: np.ndarray, caption_image: np.ndarray
) -> dict[str, Any]:
    """The ranking loops alone, from similarities: ours in float32, the original's in float64. NumPy on the CPU."""
    runs = {
        "ours": lambda: retrieval_scores(*ranks_from_similarity(single, caption_image)),
        "baseline": lambda: baseline.metrics(double),
    }
    what = f"metrics alone from {single.shape[0]} x {single.shape[1]} similarities, CPU"
    return _row(what, common.interleaved(runs, args.repetitions, torch.device("cpu")), target=METRICS_TARGETS["cpu"])


@contextlib.contextmanager
def _precision(name: str, device: torch.device):
    torch.set_float32_matmul_precision("high" if name == "tf32" else matmul_precision(device.type))
    with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
        yield


def _row(what: str, seconds: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """A row of the report; `more` without what is None."""
    row = {name: statistics.median(seconds[name]) for name in ("ours", "baseline")}
    taken = {name: seconds[name] for name in ("ours", "baseline")}
    more = {key: value for key, value in more.items() if value is not None}
    return {"what": what, **row, "ratio": common.ratio(seconds, "ours", "baseline"), "seconds": taken, **more}


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.evaluation", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=int, default=5000, help="with five captions each")
    parser.add_argument("--encode-images", type=int, help="encode only so many of them (default: all)")
    parser.add_argument("--features", choices=("store", "memory"), default="store")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32", help="of our encoding")
    parser.add_argument("--baseline-tf32", action="store_true", help="let the original use TF32 (torch 1.8 did)")
    parser.add_argument("--batch-size", type=int, default=256, help="pairs per batch of the original")
    parser.add_argument("--workers", type=int, default=2, help="threads that read our stores")
    parser.add_argument("--repetitions", type=int, default=3)
    clocks = "cpu: seconds of CPU, for machines that others use too; with --threads 1, since threads that wait count (default: wall)"
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=clocks)
    parser.add_argument("--folder", type=Path, help="for the stores (default: a temporary folder, removed afterwards)")
    common.add_network_arguments(parser)
    common.add_arguments(parser)
    args = parser.parse_args(argv)
    args.encode_images = min(args.encode_images or args.images, args.images)
    device = common.start(args)
    if device.type == "cpu":
        keep_freed_memory()  # as `evaluation.encode`; the original gains by it too
    items = data.split(args.images, seed=args.seed)
    seconds: dict[str, list[float]] = {}
    rows = []
    if "encoding" in args.parts:
        shape = {"tokens": args.tokens, "width": args.img_dim, "seed": args.seed}
        with tempfile.TemporaryDirectory(prefix="benchmark.", dir=args.folder) as folder:
            if args.features == "store":
                features = data.features_in_stores(Path(folder), args.images, **shape)
            else:
                features = data.features_in_memory(args.images, **shape)
            rows += measure_encoding(args, device, features, items, seconds)
    if "metrics" in args.parts:
        rows += measure_metrics(args, device, items, seconds)
    if len(args.parts) == len(PARTS):
        note = None
        if args.encode_images < args.images:
            note = (
                f"NOT measured in full: encoding was measured on {args.encode_images} of {args.images} images and its "
                f"time multiplied by {args.images / args.encode_images:g} on both sides; metrics were measured in full"
            )
        what = f"whole evaluation, {args.images} images"
        rows.append(_row(what, seconds, target=EVALUATION_TARGET, note=note))
    common.report("evaluation", args, device, rows)


if __name__ == "__main__":
    run_cli(main)
