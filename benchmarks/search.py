"""Exact search in blocks against FAISS, and from how many questions on an index pays: `python -m benchmarks.search`.

Embeddings are synthetic: normalised, scattered around a thousand centres, questions near some of them. FAISS (`pip install --group
faiss`) searches exactly (IndexFlatIP), or only the lists nearest to a question (IndexIVFFlat), which has to be built first; the
break-even is the number of questions that the time of building would have answered exactly, less what the index itself takes.

And of a run that scores pairs (SCAN): a sentence's words against the regions of every image, which are kept in half precision, in
blocks; against the network's `similarity` of all of them in memory, in single precision.
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
from search.vectors import KEY_BYTES, Vectors, inner_products, nearest, pair_similarities

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

    ways = {"exact": lambda: nearest([inner_products(table, question())], rows, TOP)}
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
            right = [nearest([inner_products(table, one)], rows, TOP)[0] for one in questions]
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


def measured_pairs(images: int, args: argparse.Namespace, device: Any) -> list[dict[str, Any]]:
    """The table's line for one number of images whose regions are kept."""
    import torch

    from model.build import new_image_encoder
    from model.scan import SCAN
    from model.settings import ScanModel

    generator = np.random.default_rng(args.seed)
    regions = embeddings(images * args.regions, args.width, generator, np.zeros((1, args.width), np.float32))
    words = embeddings(args.words, args.width, generator, np.zeros((1, args.width), np.float32))
    network = SCAN(
        new_image_encoder(SCAN, ScanModel(kind="scan", embed_size=args.width), img_dim=8), torch.nn.Identity()
    )
    lengths = np.full(images, args.regions, np.int32)
    table = Vectors(regions.astype(np.float16), np.zeros((images, KEY_BYTES), np.uint8), "", lengths)
    whole = torch.from_numpy(regions).unflatten(0, (images, args.regions)), torch.from_numpy(lengths)
    sentence = torch.from_numpy(words)[None], torch.tensor([args.words])
    scorer = pair_similarities(network.similarity, table, words, of_captions=False)

    def in_memory() -> np.ndarray:
        with torch.inference_mode():
            return network.similarity(*whole, *sentence).numpy()

    seconds = interleaved(
        {"blocks": lambda: nearest([scorer], images, TOP), "whole": in_memory}, args.repetitions, device
    )
    middle = {name: 1000 * float(np.median(times)) for name, times in seconds.items()}
    what = f"{images:,} x {args.regions} x {args.width}: a sentence of {args.words} words, pairs in blocks"
    line = {"what": what, "ours": middle["blocks"], "unit": "ms", "baseline": middle["whole"]}
    note = (
        f"baseline: all in memory, {regions.nbytes / 2**20:,.0f} MiB; kept: {table.embeddings.nbytes / 2**20:,.0f} MiB"
    )
    return [line | {"ratio": ratio(seconds, "blocks", "whole"), "note": note}]


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.search", __doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 4_000], help="of which regions are kept")
    parser.add_argument("--regions", type=int, default=36, help="of an image")
    parser.add_argument("--words", type=int, default=12, help="of a sentence, by a run that scores pairs")
    parser.add_argument("--indexed", type=int, default=200_000, help="no lists are built of more rows")
    parser.add_argument("--width", type=int, default=1024, help="E")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--probes", type=int, default=16, help="lists that are looked into")
    parser.add_argument("--repetitions", type=int, default=15)
    add_arguments(parser)
    args = parser.parse_args(argv)
    device = start(args)
    lines = [line for rows in args.rows for line in measured(rows, args, device)]
    report(
        "search",
        args,
        device,
        lines + [line for images in args.images for line in measured_pairs(images, args, device)],
    )


if __name__ == "__main__":
    run_cli(main)
