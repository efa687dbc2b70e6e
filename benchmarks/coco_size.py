"""The workflow's own time at COCO's size: `python -m benchmarks.coco_size`. Index, dry runs, report; seconds, and memory of the largest process.

Simulated: images are hard links to a few small JPEG files, captions five words; regions are real stores and receipts of every image,
two numbers wide (the width is no matter to any of these); embeddings of the test set are random, 1,024 wide, captions near their
images. Not simulated: the commands, each as the workflow calls it, and all rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.common import add_arguments, report, start
from benchmarks.index import COCO_IMAGES, make_dataset
from catalog.index import read_image_rows, read_index
from core import layout
from core.console import UserError, run_cli
from core.flags import command
from evaluation.embeddings import Embeddings, write_embeddings
from stores.features import region_arrays
from stores.job import ShardJob
from stores.schema import Source
from stores.seal import seal

_ROOT = Path(__file__).resolve().parent.parent
SHARDS, WIDTH, RUNS = 128, 1024, ("first", "second")
LIMITS = {"index": 15, "dry run": 10, "report": 30}  # seconds
MEMORY = 1000  # MB


def configuration(folder: Path, annotations: Path, images: Path) -> dict[str, Any]:
    """The embedded default's, on this dataset, with a model of regions alone."""
    config = yaml.safe_load((_ROOT / "config.yaml").read_text())
    coco = {"source": "karpathy", "annotations": str(annotations), "images": str(images), "shards": SHARDS}
    run = config["runs"]["region"] | {"dataset": "coco", "model": {"kind": "vse_infinity"}}
    return config | {
        "results": str(folder / "results"),
        "datasets": {"coco": coco},
        "runs": {name: run | {"seed": seed} for seed, name in enumerate(RUNS)},
        "testsets": {"coco_test": {"dataset": "coco", "split": "test", "folds": 5}},
        "ensembles": {"both": {"runs": list(RUNS)}},
        "search": {},
    }


# In between, as a process that is started from a large one counts that one's memory as its own.
_STARTER = """
import json, resource, subprocess, sys, time
clock = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
values = {"seconds": time.perf_counter() - clock, "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss / 1000}
print(json.dumps(values | {"failed": done.returncode and done.stdout.decode(errors="replace")[-2000:]}))
"""


def measured(arguments: Sequence[str]) -> dict[str, float]:
    """A command's seconds, seconds of CPU, and MB of its largest process. UserError if it fails."""
    starter = [sys.executable, "-c", _STARTER, sys.executable, *arguments]
    values = json.loads(subprocess.run(starter, cwd=_ROOT, check=True, capture_output=True).stdout)
    if failed := values.pop("failed"):
        raise UserError(f"{' '.join(arguments)[:200]} failed:\n{failed}")
    return values


def make_regions(results: Path) -> None:
    """A sealed store of every image, and its receipts."""
    images, store = (
        read_image_rows(Path(layout.images(results, "coco"))),
        Path(layout.store(results, "coco", "regions")),
    )
    arrays = region_arrays(36, 2, ("boxes", "scores", "class_ids", "class_scores"))
    receipts = [Path(layout.receipt(results, "coco", "regions", shard)) for shard in range(SHARDS)]
    for shard, receipt in enumerate(receipts):
        source = Source("regions", arrays, {"simulated": True}, "0" * 64, {})
        with ShardJob(source, images, store=store, receipt=receipt, shard=shard, shards=SHARDS) as job:
            for index, part in job.parts:
                job.write(index, {name: np.ones((len(part), *spec.shape), spec.dtype) for name, spec in arrays.items()})
    seal(store=store, receipts=receipts, images=images)


def make_scores(results: Path) -> None:
    """Embeddings of the test set by both runs, as `evaluation.encode` leaves them."""
    index = read_index(layout.images(results, "coco"))
    table = index.images.to_pydict()
    ids = [name for name, split in zip(table["image_id"], table["split"], strict=True) if split == "test"]
    owner = np.repeat(np.arange(len(ids), dtype=np.int32), 5)
    of_image = dict(zip(index.captions["caption_id"].to_pylist(), index.captions["image_id"].to_pylist(), strict=True))
    chosen = set(ids)
    captions = np.array([caption for caption, image in of_image.items() if image in chosen])
    for seed, run in enumerate(RUNS):
        generator = np.random.default_rng(seed)
        images = generator.standard_normal((len(ids), WIDTH), np.float32)
        texts = images[owner] + 6 * generator.standard_normal((len(owner), WIDTH), np.float32)
        images, texts = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (images, texts))
        path = Path(layout.embeddings(results, run, "coco_test"))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_embeddings(path, Embeddings(images, texts, owner, np.array(ids), captions, {"run": run}))


def scoring(results: Path) -> list[list[str]]:
    """The commands that score both runs and their ensemble."""
    scored = [layout.embeddings(results, run, "coco_test") for run in RUNS]
    found = []
    for name, inputs in [*zip(RUNS, ([path] for path in scored), strict=True), ("both", scored)]:
        alone = len(inputs) == 1
        metrics = (layout.metrics if alone else layout.ensemble_metrics)(results, name, "coco_test")
        ranks = (layout.ranks if alone else layout.ensemble_ranks)(results, name, "coco_test")
        module = "evaluation.metrics" if alone else "evaluation.ensemble"
        found.append(["-m", module, "--embeddings", *inputs, "--folds", "5", "--ranks", ranks, "--output", metrics])
    return found


def measure(folder: Path, images: int) -> list[dict[str, Any]]:
    """All rows of the report."""
    file, results = folder / "config.yaml", folder / "results"
    config = configuration(folder, *make_dataset(folder, images))
    file.write_text(yaml.safe_dump(config))
    snakemake = ["-m", "snakemake", "--cores", "2", "--configfile", str(file)]
    found = {"dry run: nothing is there": measured([*snakemake, "-n"])}
    found["index"] = measured([*snakemake[:4], "index", *snakemake[4:]])
    found["dry run: the index is there"] = measured([*snakemake, "-n"])
    make_regions(results)
    found["dry run: the store is there"] = measured([*snakemake, "-n"])
    make_scores(results)
    found["scores"] = [measured(arguments) for arguments in scoring(results)][-1]
    report_command = ["--results", str(results), "--stores", str(results), "--config", json.dumps(config)]
    found["report"] = measured(["-m", "reporting.run", *report_command, "--output", layout.report(results)])
    rows = []
    for name, values in found.items():
        limit = LIMITS.get(name.partition(":")[0])
        note = f"{values['cpu']:.1f} s of CPU"
        rows.append({"what": name, "ours": values["seconds"], "note": note} | _limit(limit))
        rows.append({"what": f"{name}: memory", "ours": values["memory"], "unit": "MB"} | _limit(MEMORY))
    return rows


def _limit(most: float | None) -> dict[str, Any]:
    return {} if most is None else {"target": most, "at_most": True}


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.coco_size", __doc__)
    parser.add_argument("--images", type=int, default=COCO_IMAGES)
    add_arguments(parser)
    args = parser.parse_args(argv)
    device = start(args)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args.images)
    report("coco_size", args, device, rows)


if __name__ == "__main__":
    run_cli(main)
