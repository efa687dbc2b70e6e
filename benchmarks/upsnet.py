"""UPSNet's time an image beside Panoptic FPN's, both by our extractor: `python -m benchmarks.upsnet`.

Photographs of 640 x 480 one at a time, seeded weights, both backbones ResNet-50; `source: semantic` is UPSNet's default, `panoptic`
is what Panoptic FPN does too. How many instances seeded weights find is their own.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import add_arguments, interleaved, ratio, report, start
from benchmarks.detectors import seed_weights
from benchmarks.extraction import SIZE, write_photographs
from core.console import run_cli
from core.flags import command
from extractors.images import iterate_batches
from extractors.loading import NetworkRunner
from extractors.networks import build
from extractors.networks.layers import fold_norms
from extractors.panoptic import PanopticExtractor

BASELINE = ("panoptic_fpn_r50", "panoptic")
MEASURED = (("upsnet_r50", "semantic"), ("upsnet_r50", "panoptic"))
AT_LEAST = 1 / 1.2  # of Panoptic FPN's speed


def runner_of(architecture: str, side: int | None) -> NetworkRunner:
    """As a job makes it, but with seeded weights and, of images, a shorter side of so many pixels."""
    network = build(architecture)
    seed_weights(network)
    if side is not None:
        network.meta = replace(network.meta, input=replace(network.meta.input, min_size=side, max_size=2 * side))
    fold_norms(network)
    return NetworkRunner(network, "seeded", "fp32")


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.upsnet", __doc__)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--side", type=int, help="shorter side of the network's input (default: each network's own, 800)"
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    device = start(args)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), args.images)
        runs = {}
        runners = {name: runner_of(name, args.side) for name in dict([BASELINE, *MEASURED])}
        for architecture, source in (BASELINE, *MEASURED):
            extractor = PanopticExtractor(runners[architecture], source=source).to(device)
            sizes = [SIZE[::-1]] * len(paths)
            batches = list(iterate_batches(paths, range(len(paths)), extractor.input, 1, 1, sizes))
            runs[architecture, source] = lambda own=extractor, batches=batches: [list(own(batch)) for batch in batches]
        seconds = interleaved(runs, args.repetitions, device)
    base = statistics.median(seconds[BASELINE]) / len(paths)
    rows = [
        {
            "what": f"{architecture}, source: {source}",
            "ours": statistics.median(seconds[architecture, source]) / len(paths),
            "baseline": base,
            "ratio": ratio(seconds, (architecture, source), BASELINE),
            "target": AT_LEAST,
        }
        for architecture, source in MEASURED
    ]
    report("upsnet", args, device, rows)


if __name__ == "__main__":
    run_cli(main)
