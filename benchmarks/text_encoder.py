"""BERT as we run it, by the transformers library on packed captions: `python -m benchmarks.text_encoder`.

Baseline "padded": the same model and weights as the library itself runs them (its own fastest attention). Baseline "small": the
formula of `model/small_encoder.py` with the same weights; it is how every BERT was run before the library was. Training is forward
and backward, dropout as published; evaluation has captions of similar length side by side, as `model.embed` puts them. Sides take
turns; seconds are of CPU, because others may be at work on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import common, data
from core.console import run_cli
from core.flags import command
from model.library_encoder import LibraryEncoder, attending, bert_config, padded_states
from model.small_encoder import SmallConfig, SmallEncoder


def encoders(args: argparse.Namespace) -> tuple[LibraryEncoder, SmallEncoder]:
    """Both with the same weights."""
    sizes = {"vocabulary_size": data.VOCABULARY_SIZE, "hidden_size": args.bert_size, "layers": args.bert_layers}
    sizes |= {"heads": max(1, args.bert_size // 64), "intermediate_size": 4 * args.bert_size, "max_positions": 512}
    library, small = LibraryEncoder(bert_config(**sizes)), SmallEncoder(SmallConfig(**sizes))
    library.load_state_dict(small.state_dict())
    return library, small


def sides(library: LibraryEncoder, small: SmallEncoder) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Each (B, T) ids and (B,) lengths -> (B, T, H)."""

    def padded(token_ids: Tensor, lengths: Tensor) -> Tensor:
        with attending(library.model, "sdpa"):
            return padded_states(library.model, token_ids, token_ids != 0)

    return {"ours": library, "padded": padded, "small": small}


def batches(args: argparse.Namespace, captions: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Captions of COCO's lengths, sorted."""
    generator = np.random.default_rng(args.seed)
    lengths = np.sort(data.caption_lengths(captions, generator))
    return [
        data.token_batch(lengths[start : start + batch_size], generator) for start in range(0, captions, batch_size)
    ]


def training(encode: Callable[[Tensor, Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Callable[[], Any]:
    return lambda: encode(*batch).square().sum().backward()


def evaluation(encode: Callable[[Tensor, Tensor], Tensor], parts: Sequence[tuple[Tensor, Tensor]]) -> Callable[[], Any]:
    @torch.inference_mode()
    def run() -> None:
        for part in parts:
            encode(*part)

    return run


def measure(what: str, runs: dict[str, Callable[[], Any]], repetitions: int) -> list[dict[str, Any]]:
    """Rows of the report."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(-1, repetitions):
        for name, run in list(runs.items())[:: 1 if repetition % 2 else -1]:
            begin = time.process_time()
            run()
            if repetition >= 0:
                seconds[name].append(time.process_time() - begin)
    return [
        {
            "what": f"{what}, against {name}",
            "ours": statistics.median(seconds["ours"]),
            "baseline": statistics.median(seconds[name]),
            "ratio": common.ratio(seconds, "ours", name),
            "seconds": {"ours": seconds["ours"], "baseline": seconds[name]},
        }
        for name in runs
        if name != "ours"
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.text_encoder", __doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64, 128], help="of a training step")
    parser.add_argument("--captions", type=int, default=512, help="of an evaluation")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--bert-layers", type=int, default=common.BERT_BASE["layers"], help="12 for BERT base")
    parser.add_argument("--bert-size", type=int, default=common.BERT_BASE["hidden_size"], help="768 for BERT base")
    common.add_arguments(parser)
    args = parser.parse_args(argv)
    device = common.start(args)
    library, small = (encoder.to(device) for encoder in encoders(args))
    rows = []
    for size in args.batch_sizes:
        (batch,) = batches(args, size, size)
        batch = batch[0].to(device), batch[1]
        runs = {name: training(encode, batch) for name, encode in sides(library.train(), small.train()).items()}
        rows += measure(f"training step, {size} captions", runs, args.repetitions)
    parts = [(ids.to(device), lengths) for ids, lengths in batches(args, args.captions, 128)]
    runs = {name: evaluation(encode, parts) for name, encode in sides(library.eval(), small.eval()).items()}
    rows += measure(f"evaluation, {args.captions} captions", runs, args.repetitions)
    common.report("text_encoder", args, device, rows)


if __name__ == "__main__":
    run_cli(main)
