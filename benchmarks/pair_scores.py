"""SCAN's scores of all pairs against its authors' way, side by side: `python -m benchmarks.pair_scores`.

Theirs goes caption by caption, each against all images of a shard: regions x words, the attended contexts, their cosines.
Random embeddings of COCO's sizes: 36 regions, captions of 8 to 20 words, 1,024 wide. Both run on `--threads` in turns, in float32
and, as their evaluation does, in float64; the median of `--repeats` counts. What COCO 5K would take is extrapolated from it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from core.console import run_cli
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
    """(N, M): as the authors compute it, contexts and all, with their 128 x 128 shards."""
    rows = []
    for part in images.split(128):
        columns = []
        for caption, length in zip(captions, lengths.tolist(), strict=True):
            words = caption[:length].expand(len(part), -1, -1).contiguous()
            queries, attended = (words, part) if direction == "t2i" else (part, words)
            s = queries @ attended.mT
            weights = torch.softmax(sharpness * NORMS[norm](s, 1), dim=2)
            context = weights @ attended
            inner = (queries * context).sum(2)
            lengths_of = queries.norm(dim=2) * context.norm(dim=2)
            columns.append(AGGREGATES[aggregate](inner / lengths_of.clamp(min=1e-8), 1, lse))
        rows.append(torch.stack(columns, dim=1))
    return torch.cat(rows)


def seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def measure(*, images: int, captions: int, width: int, threads: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    generator = np.random.default_rng(0)
    lengths = torch.from_numpy(generator.integers(8, 21, captions))
    normal = torch.nn.functional.normalize
    regions = normal(torch.from_numpy(generator.standard_normal((images, 36, width)).astype("f4")), dim=2)
    words = normal(torch.from_numpy(generator.standard_normal((captions, 20, width)).astype("f4")), dim=2)
    counts = torch.full((images,), 36)
    print(f"{images} images x {captions} captions, {width} wide, {threads} threads, median of {repeats}")
    for name, settings in SETTINGS.items():
        ways = {
            "ours, float32": lambda s=settings: pair_scores(regions, counts, words, lengths, **s),
            "theirs, float32": lambda s=settings: caption_by_caption(regions, words, lengths, **s),
            "theirs, float64": lambda s=settings: caption_by_caption(regions.double(), words.double(), lengths, **s),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        found = {}
        with torch.inference_mode():
            for _ in range(repeats):
                for way, work in ways.items():
                    spent, found[way] = seconds(work)
                    taken[way].append(spent)
        ours, single, double = (statistics.median(taken[way]) for way in ways)
        off = (found["ours, float32"].double() - found["theirs, float64"]).abs().max()
        hours = COCO_PAIRS / (images * captions) * ours / 3600
        print(
            f"{name}: {ours:.2f} s; theirs {single:.2f} s in float32 ({single / ours:.1f} times), {double:.2f} s in float64 "
            f"({double / ours:.1f} times); largest difference {off:.1e}; COCO 5K: {hours:.1f} h on these threads"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.pair_scores", __doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    measure(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
