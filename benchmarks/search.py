"""Exact search in blocks against FAISS, and from how many questions on an index pays: `python -m benchmarks.search`.

Embeddings are synthetic: normalised, scattered around a thousand centres, questions near some of them. FAISS (`pip install --group
faiss`) searches exactly (IndexFlatIP), or only the lists nearest to a question (IndexIVFFlat), which has to be built first; the
break-even is the number of questions that the time of building would have answered exactly, less what the index itself takes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import add_arguments, interleaved, ratio, report, start
from core.console import run_cli
from core.flags import command
from search.vectors import nearest

TOP = 10
_CENTRES = 1000


def embeddings(rows: int, width: int, generator: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """(rows, width) float32, normalised."""
    found = np.empty((rows, width), np.float32)
    for begin in range(0, rows, 50_000):
        part = found[begin : begin + 50_000]
        part[:] = generator.standard_normal(part.shape, dtype=np.float32)
        part += 1.2 * centres[generator.integers(0, len(centres), len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return found


def measured(rows: int, args: argparse.Namespace, device: Any) -> list[dict[str, Any]]:
    """The table's lines for one number of rows."""
    generator = np.random.default_rng(args.seed)
    centres = generator.standard_normal((_CENTRES, args.width), dtype=np.float32)
    made = min(rows, args.indexed)
    table = embeddings(made, args.width, generator, centres)
    if rows > made:  # what lies in a row makes no difference to the time of an exact search
        table = np.concatenate([table] * math.ceil(rows / made))[:rows]
    questions = embeddings(args.questions, args.width, generator, centres)
    place = iter(range(10**9))

    def question() -> np.ndarray:
        return questions[next(place) % len(questions)]

    ways = {"exact": lambda: nearest([table], [question()], TOP)}
    lines: list[dict[str, Any]] = []
    try:
        import faiss
    except ImportError:
        faiss = None
        print("FAISS is absent (pip install --group faiss): exact search alone is measured")
    built = recall = 0.0
    lists = max(1, round(math.sqrt(rows)))
    if faiss is not None:
        faiss.omp_set_num_threads(args.threads or faiss.omp_get_max_threads())
        flat = faiss.IndexFlatIP(args.width)
        flat.add(table)
        ways["faiss flat"] = lambda: flat.search(question()[None], TOP)
        if rows <= args.indexed:
            begin = time.perf_counter()
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(args.width), args.width, lists, faiss.METRIC_INNER_PRODUCT)
            index.train(table[generator.permutation(rows)[: 40 * lists]])
            index.add(table)
            built = time.perf_counter() - begin
            index.nprobe = args.probes
            _, near = index.search(questions, TOP)
            right = [nearest([table], [one], TOP)[0] for one in questions]
            recall = float(np.mean([len(set(a) & set(b)) / TOP for a, b in zip(near, right, strict=True)]))
            ways["faiss lists"] = lambda: index.search(question()[None], TOP)
    seconds = interleaved(ways, args.repetitions, device)
    middle = {name: float(np.median(times)) for name, times in seconds.items()}
    what = f"{rows:,} x {args.width}"
    lines.append({"what": f"{what}: a question, exact in blocks", "ours": 1000 * middle["exact"], "unit": "ms"})
    if "faiss flat" in ways:
        lines[-1] |= {"baseline": 1000 * middle["faiss flat"], "ratio": ratio(seconds, "exact", "faiss flat")}
        lines[-1] |= {"note": "baseline: FAISS, exact"}
    if "faiss lists" in ways:
        saved = middle["exact"] - middle["faiss lists"]
        note = f"baseline: {lists} lists, {args.probes} looked into: {recall:.0%} of the {TOP} nearest found, built in {built:.1f} s; "
        note += f"pays from {math.ceil(built / saved):,} questions on" if saved > 0 else "never pays"
        lines.append({"what": f"{what}: against lists", "ours": 1000 * middle["exact"], "unit": "ms", "note": note})
        lines[-1] |= {"baseline": 1000 * middle["faiss lists"], "ratio": ratio(seconds, "exact", "faiss lists")}
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.search", __doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--indexed", type=int, default=200_000, help="no lists are built of more rows")
    parser.add_argument("--width", type=int, default=1024, help="E")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--probes", type=int, default=16, help="lists that are looked into")
    parser.add_argument("--repetitions", type=int, default=15)
    add_arguments(parser)
    args = parser.parse_args(argv)
    device = start(args)
    report("search", args, device, [line for rows in args.rows for line in measured(rows, args, device)])


if __name__ == "__main__":
    run_cli(main)
