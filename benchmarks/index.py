"""Time to index a dataset of COCO's size: `python -m benchmarks.index`.

Writes a folder of 123,287 JPEG files (hard links to a few, so that the file system and not the disk is measured), a
Karpathy file to match, and indexes it as the workflow does. Baseline: the same files one after another.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from catalog.index import describe_images, write_index
from catalog.karpathy import read_karpathy
from core.console import run_cli
from core.files import write_json
from core.flags import command

COCO_IMAGES = 123_287
_ORIGINALS = 16  # a file system may limit the links to one file (ext4: 65,000)


def make_dataset(folder: Path, images: int, side: int = 32) -> tuple[Path, Path]:
    """(Karpathy JSON, image folder) of `images` links to a few JPEG files of `side` x `side` pixels, 5 captions each."""
    originals = []
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(_ORIGINALS):
        originals.append(folder / f"original_{i}.jpg")
        Image.fromarray(random.integers(0, 255, (side, side, 3), np.uint8)).save(originals[-1])
    for split in ("train2014", "val2014"):
        (folder / "images" / split).mkdir()
    entries = []
    for i in range(images):
        split = "val2014" if i % 3 == 0 else "train2014"
        name = f"COCO_{split}_{i + 1:012d}.jpg"
        os.link(originals[i % _ORIGINALS], folder / "images" / split / name)
        sentences = [
            {"raw": f"caption {k} of image {i}.", "tokens": ["caption"], "imgid": i, "sentid": 5 * i + k}
            for k in range(5)
        ]
        entries.append(
            {
                "filename": name, "filepath": split, "imgid": i, "cocoid": i + 1, "sentences": sentences,
                "sentids": [s["sentid"] for s in sentences], "split": {0: "test", 1: "val"}.get(i % 25, "restval" if i % 4 == 0 else "train"),
            }
        )  # fmt: skip
    annotations = folder / "dataset_coco.json"
    annotations.write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return annotations, folder / "images"


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.index", __doc__)
    parser.add_argument("--images", type=int, default=COCO_IMAGES)
    parser.add_argument("--side", type=int, default=32, help="pixels; 400 makes files of about COCO's size")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args(argv)
    figures: dict[str, float] = {"images": args.images, "workers": args.workers}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotations, images = make_dataset(folder, args.images, args.side)

        start = clock = time.perf_counter()
        found = read_karpathy(str(annotations), str(images))
        figures["seconds annotations"], clock = time.perf_counter() - clock, time.perf_counter()
        table = describe_images(found.image_ids, found.paths, found.splits, args.workers)
        figures["seconds images"], clock = time.perf_counter() - clock, time.perf_counter()
        write_index(folder / "images.parquet", folder / "captions.parquet", table, found.captions())
        figures["seconds tables"] = time.perf_counter() - clock
        figures["seconds in all"] = time.perf_counter() - start

        sample = slice(0, min(args.images, 10_000))
        clock = time.perf_counter()
        describe_images(found.image_ids[sample], found.paths[sample], found.splits[sample], workers=1)
        alone = (time.perf_counter() - clock) * args.images / (sample.stop - sample.start)
        figures["seconds images, one after another"] = alone
        figures["ratio"] = alone / figures["seconds images"]
    for key, value in figures.items():
        print(f"{key:36} {value:10.2f}" if isinstance(value, float) else f"{key:36} {value:10}")
    if args.output:
        write_json(args.output, figures)


if __name__ == "__main__":
    run_cli(main)
