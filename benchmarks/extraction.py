"""Images per second of the extractors against detectron2's way of working: `python -m benchmarks.extraction`.

Both read the same JPEG files (photographs, 640x480 as most of COCO) and use the same seeded weights in detectron2's format.
detectron2 works as its `DefaultPredictor` does: one image at a time, decoded in turn. Where detectron2 is not importable its
work is done by our networks in its manner (one image at a time, contiguous memory, norms not merged: bit for bit detectron2's
results, see `benchmarks.parity`), and the output says so. Ours is what `extractors.run` does: decoding in threads, batches of
one shape, merged norms, channels-last memory. The two take turns; printed are medians, their ratio, the cosine between our rows
and fp32's, peak memory, and where our time goes: each part's seconds, operations and share of what a large product of two matrices
makes on this machine. With one thread seconds are of the CPU, not of the clock on the wall: a machine that others use too then
measures nearly the same.

`--flat N`: instead, memory of one extraction over N images.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import parts
from benchmarks.detectors import CASES, photographs, seed_weights
from benchmarks.parity import detectron2_model
from core.console import UserError, run_cli
from core.devices import allow_tf32
from core.files import atomic_path
from core.flags import command
from extractors.engines import build_extractor
from extractors.grids import GridExtractor
from extractors.images import ImageBatch, decode_image, iterate_batches, make_batch, resize_image
from extractors.loading import NetworkRunner
from extractors.networks import load_checkpoint
from extractors.networks.layers import fold_norms
from extractors.panoptic import PanopticExtractor
from extractors.regions import RegionExtractor

# What is measured for each feature: architecture and the store array that is compared.
DEFAULTS = {"regions": "vg_r101_c4_caffe", "grids": "grid_x101", "panoptic": "panoptic_fpn_r101"}
SIZE = (640, 480)


def write_photographs(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs of 640x480: the photographs, mirrored every other time, each its own file."""
    sources = list(photographs().values())
    paths = []
    for i in range(count):
        image = Image.fromarray(sources[i % len(sources)]).resize(SIZE, Image.Resampling.BICUBIC)
        if i // len(sources) % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        paths.append(folder / f"{i:05d}.jpg")
        image.save(paths[-1], quality=90)
    return paths


def write_weights(architecture: str, path: Path, with_detectron2: bool) -> None:
    """Seeded weights in detectron2's format."""
    case = CASES[architecture]
    if with_detectron2:
        state = detectron2_model(case).state_dict()
    else:
        network = case.build(False)
        seed_weights(network)
        state = network.state_dict()
    numpy_state = {name: value.numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": numpy_state, "__author__": "seeded"}))


def detectron2_way(
    feature: str, architecture: str, weights: Path, device: str, with_detectron2: bool
) -> Callable[[Sequence[Path]], None]:
    """A function that looks at files as detectron2 does."""
    case = CASES[architecture]
    network = case.build(False)
    spec = network.meta.input
    if with_detectron2:
        model = detectron2_model(case).to(device)

        def look(paths: Sequence[Path]) -> None:
            for path in paths:
                image = decode_image(path)
                pixels = resize_image(image, spec)[:, :, ::-1]
                tensor = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
                inputs = [{"image": tensor, "height": image.shape[0], "width": image.shape[1]}]
                with torch.no_grad():
                    if feature == "grids":
                        features = model.backbone(model.preprocess_image(inputs).tensor)
                        (features["res5"] if "res5" in features else model.roi_heads.res5(features["res4"])).cpu()
                    else:
                        output = model(inputs)[0]
                        output["instances"].to("cpu")

        return look
    load_checkpoint(network, weights)
    network.to(device)

    def look_ourselves(paths: Sequence[Path]) -> None:
        allow_tf32(False)
        for path in paths:
            image = decode_image(path)
            batch = make_batch([resize_image(image, spec)], [0], [image.shape[:2]], spec)
            pixels = batch.pixels.contiguous().to(device)
            if feature == "grids":
                network.grid(pixels).cpu()
            elif feature == "panoptic":
                network.panoptic(pixels, batch.sizes, batch.original_sizes)[0].segment_map.cpu()
            else:
                network.regions(pixels, batch.sizes, [1.0])[0].features.cpu()

    return look_ourselves


def our_extractor(feature: str, architecture: str, weights: Path, precision: str, args: argparse.Namespace) -> Any:
    """The extractor of a job, on the device."""
    network = CASES[architecture].build(False)
    load_checkpoint(network, weights)
    fold_norms(network)
    extractors = {"regions": RegionExtractor, "grids": GridExtractor, "panoptic": PanopticExtractor}
    extractor = extractors[feature](NetworkRunner(network, "seeded", precision)).to(args.device)
    if args.compile:
        extractor.runner.network.backbone = torch.compile(extractor.runner.network.backbone)
    return extractor


def read_batches(extractor: Any, paths: Sequence[Path], args: argparse.Namespace) -> Iterator[ImageBatch]:
    sizes = [SIZE[::-1]] * len(paths)
    return iterate_batches(paths, range(len(paths)), extractor.input, args.batch, args.workers, sizes)


def our_way(feature: str, extractor: Any, args: argparse.Namespace) -> Callable[[Sequence[Path]], np.ndarray]:
    """A function that looks at files as `extractors.run` does and gives their rows of the main array."""
    array = "seg_features" if feature == "panoptic" else "features"

    def look(paths: Sequence[Path]) -> np.ndarray:
        rows: dict[int, np.ndarray] = {}
        for group in read_batches(extractor, paths, args):
            for row, result in zip(group.rows, extractor(group), strict=True):
                rows[row] = result[array]
        return np.stack([rows[i] for i in range(len(paths))]).astype(np.float32)

    return look


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest cosine between the images' rows."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 1e-12)).min())


def timed(function: Callable[[Sequence[Path]], Any], paths: Sequence[Path], device: str) -> tuple[float, Any]:
    clock = parts.clock(torch.device(device))
    begin = clock()
    result = function(paths)
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - begin, result


def peak_memory(device: str) -> float:
    """GiB: of the GPU, or the process's so far."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(feature: str, architecture: str, args: argparse.Namespace, with_detectron2: bool) -> list[dict[str, Any]]:
    """One row per precision."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), args.images)
        weights = Path(folder) / "model_final.pkl"
        write_weights(architecture, weights, with_detectron2)
        baseline = detectron2_way(feature, architecture, weights, args.device, with_detectron2)
        extractors = {p: our_extractor(feature, architecture, weights, p, args) for p in args.precision}
        looks = {precision: our_way(feature, extractor, args) for precision, extractor in extractors.items()}
        for function in () if args.no_warm_up else (baseline, *looks.values()):  # warm up: kernels, caches, compilation
            function(paths[: args.batch])
        times: dict[str, list[float]] = {name: [] for name in ("detectron2", *looks)}
        found: dict[str, np.ndarray] = {}
        memory: dict[str, float] = {}
        for _ in range(args.rounds):
            for name, function in (("detectron2", baseline), *looks.items()):
                if args.device != "cpu":
                    torch.cuda.reset_peak_memory_stats()
                seconds, result = timed(function, paths, args.device)
                times[name].append(seconds)
                memory[name] = peak_memory(args.device)
                if result is not None:
                    found[name] = result
        base = statistics.median(times["detectron2"])
        for name in looks:
            seconds = statistics.median(times[name])
            rows.append(
                {
                    "feature": feature,
                    "architecture": architecture,
                    "precision": name + (" compiled" if args.compile else ""),
                    "batch": args.batch,
                    "detectron2_images_per_second": len(paths) / base,
                    "images_per_second": len(paths) / seconds,
                    "ratio": base / seconds,
                    "cosine_to_fp32": cosine(found[name], found["fp32"]) if "fp32" in found else None,
                    "peak_gib": memory[name],
                    "detectron2_peak_gib": memory["detectron2"],
                }
            )
            if args.parts and not args.compile:  # a compiled part hides its products
                batches = [next(read_batches(extractors[name], paths, args))]
                rows[-1]["parts"] = parts.profile(
                    extractors[name], batches, torch.device(args.device), name, args.parts
                )
    return rows


def flat_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Resident memory after each tenth of an extraction of `args.flat` images by the embedded region detector."""
    weights = "weights/scenes_regions.safetensors"
    extractor = build_extractor("regions", architecture="scenes_regions", weights=weights).to(args.device)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), 64)
        many = [paths[i % len(paths)] for i in range(args.flat)]
        seen, marks = 0, []
        sizes = [SIZE[::-1]] * len(many)
        for group in iterate_batches(many, range(len(many)), extractor.input, args.batch, args.workers, sizes):
            seen += len(extractor(group))
            if seen * 10 // args.flat > len(marks):
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                marks.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
                print(f"{seen:>8,} images: {marks[-1]:,} MiB", flush=True)
    return {"images": args.flat, "resident_mib_by_tenths": marks}


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.extraction", __doc__)
    parser.add_argument("features", nargs="*", help=f"of {', '.join(DEFAULTS)} (default: all)")
    parser.add_argument("--architecture", help=f"of {', '.join(CASES)} (default: by feature)")
    parser.add_argument("--images", type=int, default=16, help="files per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="decoding threads of ours")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts", type=int, default=1, help="rounds for the table of parts (0: none)")
    parser.add_argument("--no-warm-up", action="store_true", help="time the first round too")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the backbone")
    parser.add_argument("--flat", type=int, metavar="N", help="memory of one extraction over N images, nothing else")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    unknown = [name for name in args.features if name not in DEFAULTS]
    if unknown:
        raise UserError(f"unknown feature {unknown[0]!r}; choose from {', '.join(DEFAULTS)}")
    torch.set_num_threads(args.threads)
    device = torch.cuda.get_device_name() if args.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    try:
        import detectron2  # noqa: F401

        with_detectron2 = True
    except ImportError:
        with_detectron2 = False
    baseline = (
        "detectron2" if with_detectron2 else "detectron2's way, done by our networks (detectron2 is not installed)"
    )
    print(f"{device}; torch {torch.__version__}; baseline: {baseline}")
    content: dict[str, Any] = {"device": device, "torch": torch.__version__, "baseline": baseline, "rows": []}
    if args.flat:
        content["memory"] = flat_memory(args)
    else:
        print(
            "| feature | architecture | precision | batch | detectron2 img/s | ours img/s | ratio | cosine | peak GiB |"
        )
        print("|---|---|---|---:|---:|---:|---:|---:|---:|")
        for feature in args.features or DEFAULTS:
            for row in measure(feature, args.architecture or DEFAULTS[feature], args, with_detectron2):
                content["rows"].append(row)
                similar = "" if row["cosine_to_fp32"] is None else f"{row['cosine_to_fp32']:.5f}"
                print(
                    f"| {feature} | {row['architecture']} | {row['precision']} | {row['batch']} | "
                    f"{row['detectron2_images_per_second']:.2f} | {row['images_per_second']:.2f} | {row['ratio']:.2f} | "
                    f"{similar} | {row['peak_gib']:.1f} |",
                    flush=True,
                )
        for row in content["rows"]:
            if "parts" in row:
                print(f"\n{row['feature']}, {row['architecture']}, {row['precision']}:\n\n{parts.table(row['parts'])}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(args.out) as temporary:
            Path(temporary).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_cli(main)
