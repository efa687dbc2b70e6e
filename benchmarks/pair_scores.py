"""SCAN's scores of all pairs against its authors' way, side by side: `python -m benchmarks.pair_scores`.

Theirs goes caption by caption, each against all images of a shard: regions x words, the attended contexts, their cosines.
Random embeddings of COCO's sizes: 36 regions, captions of 8 to 20 words, 1,024 wide. Both run in turns, in float32 and, as their
evaluation does, in float64; the median of `--repeats` counts. What COCO 5K would take is extrapolated from it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import common
from core.console import run_cli
from core.devices import matmul_precision
from core.flags import command
from model.kernels.cross_attention import AGGREGATES, NORMS, pair_scores

SETTINGS = {
    "t2i": {"direction": "t2i", "norm": "clipped_l2norm", "aggregate": "LogSumExp", "sharpness": 9.0, "lse": 6.0},
    "i2t": {"direction": "i2t", "norm": "clipped_l2norm", "aggregate": "LogSumExp", "sharpness": 4.0, "lse": 5.0},
}
COCO_PAIRS = 5_000 * 25_000


def caption_by_caption(
    images: Tensor,
    captions: Tensor,
    lengths: Tensor,
    *,
    direction: str,
    norm: str,
    aggregate: str,
    sharpness: float,
    lse: float,
) -> Tensor:
    """(N, M): as the authors compute it, copies of contiguous layouts and all, with their 128 x 128 shards."""
    rows = []
    for part in images.split(128):
        columns = []
        for caption, length in zip(captions, lengths.tolist(), strict=True):
            words = caption[None, :length].repeat(len(part), 1, 1)
            queries, attended = (words, part) if direction == "t2i" else (part, words)
            s = NORMS[norm](attended @ queries.mT, 2).mT.contiguous()
            weights = torch.softmax(s.flatten(0, 1) * sharpness, dim=1).view_as(s).mT.contiguous()
            context = (attended.mT @ weights).mT
            if direction == "t2i":
                context = context.contiguous()
            inner = (queries * context).sum(2)
            lengths_of = queries.norm(dim=2) * context.norm(dim=2)
            columns.append(AGGREGATES[aggregate](inner / lengths_of.clamp(min=1e-8), 1, lse))
        rows.append(torch.stack(columns, dim=1))
    return torch.cat(rows)


def _at(precision: str, way: Callable[..., Tensor], *inputs: Tensor, **settings: Any) -> Tensor:
    """With torch's products as our commands set them, or as torch does by itself; both are in full float32."""
    torch.set_float32_matmul_precision(precision)
    return way(*inputs, **settings)


def measure(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    generator = np.random.default_rng(args.seed)
    lengths = torch.from_numpy(generator.integers(8, 21, args.captions))
    normal = torch.nn.functional.normalize
    regions = normal(torch.from_numpy(generator.standard_normal((args.images, 36, args.width)).astype("f4")), dim=2)
    words = normal(torch.from_numpy(generator.standard_normal((args.captions, 20, args.width)).astype("f4")), dim=2)
    regions, words, counts = regions.to(device), words.to(device), torch.full((args.images,), 36)
    wide = (regions.double(), words.double(), lengths)
    rows: list[dict[str, Any]] = []
    for name, settings in SETTINGS.items():
        ways = {
            "ours": lambda s=settings: _at(
                matmul_precision(device.type), pair_scores, regions, counts, words, lengths, **s
            ),
            "float32": lambda s=settings: _at("highest", caption_by_caption, regions, words, lengths, **s),
            "float64": lambda s=settings: caption_by_caption(*wide, **s),
        }
        with torch.inference_mode():
            off = (ways["ours"]().double() - ways["float64"]()).abs().max()
            seconds = common.interleaved(ways, args.repeats, device)
            count = common.operations(ways["ours"])
        ours = statistics.median(seconds["ours"])
        for precision in ("float32", "float64"):
            rows.append(
                {
                    "what": f"{name}: {args.images} images x {args.captions} captions, theirs in {precision}",
                    "ours": ours,
                    "baseline": statistics.median(seconds[precision]),
                    "ratio": common.ratio(seconds, "ours", precision),
                    "unit": "s",
                }
            )
        rows[-1]["note"] = f"largest difference {off:.1e}"
        rows.append(common.share_of_peak(name, count, ours, common.product_rate(device, "fp32")))
        hours = COCO_PAIRS / (args.images * args.captions) * ours / 3600
        rows.append({"what": f"{name}: COCO 5K, extrapolated", "ours": hours, "unit": "h"})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.pair_scores", __doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    common.add_arguments(parser)
    args = parser.parse_args(argv)
    device = common.start(args)
    common.report("pair_scores", args, device, measure(args, device))


if __name__ == "__main__":
    run_cli(main)
