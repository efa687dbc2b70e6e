"""One training step against the original procedure: `python -m benchmarks.training`.

A step is: batch on the host -> device, forward, hinge loss with the hardest negatives, backward, clipping, AdamW. "image
side" leaves the text encoder out (fixed caption embeddings), "whole" has both. Sides take turns on the same weights and
the same batch; the learning rate is zero, so that every step computes the same thing.

Captions have COCO's spread of lengths, visual tokens are dropped with probability 0.2, as in training.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import baseline, common, data
from core.console import run_cli
from core.devices import matmul_precision
from core.flags import command
from model.data import image_tensors
from model.losses import triplet_loss
from model.three_shnet import ThreeSHNet

PARTS = {"image": "image side", "whole": "whole"}
OPTIONS = ("fp32", "tf32", "bf16", "bf16-compile")
# A GPU's target is for bf16, a CPU's for fp32.
TARGETS = {"cpu": ("fp32", 1.5), "cuda": ("bf16", 3.0)}


def make_batch(args: argparse.Namespace) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The same batch as our loader gives it and as the original's does."""
    generator = np.random.default_rng(args.seed)
    found = data.image_arrays(args.batch_size, tokens=args.tokens, width=args.img_dim, seed=args.seed)
    visual, lengths, maps, onehots, segments = image_tensors(found, token_drop=0.2, generator=generator)
    tokens, token_lengths = data.token_batch(data.caption_lengths(args.batch_size, generator), generator)
    ours = (visual, lengths, maps, onehots, segments, tokens, token_lengths)
    theirs = (visual.float(), lengths.float(), maps.float(), onehots.float(), segments.float(), tokens, token_lengths)
    if args.device == "cuda":
        theirs = tuple(part.pin_memory() for part in theirs)  # as its DataLoader does
    return ours, theirs


def our_step(
    network: ThreeSHNet, batch: tuple[Tensor, ...], captions: Tensor | None, option: str, device: torch.device
) -> Callable[[], Any]:
    """A step as `model.train` does it; `captions` (B, E) takes the place of the text encoder."""
    parameters = [*(network if captions is None else network.image).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=1e-4, fused=True)
    model = network if captions is None else network.encode_images
    if option == "bf16-compile":
        model = torch.compile(model)

    def step() -> float:
        torch.set_float32_matmul_precision("high" if option == "tf32" else matmul_precision(device.type))
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=option.startswith("bf16")):
            images, texts = model(*batch) if captions is None else (model(*batch[:5]), captions)
        loss = triplet_loss(images, texts, margin=0.2, hardest=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        return float(loss.detach())

    return step


def baseline_step(
    network: ThreeSHNet, batch: tuple[Tensor, ...], captions: Tensor | None, device: torch.device, *, tf32: bool
) -> Callable[[], Any]:
    """A step of the original procedure."""
    original = baseline.Baseline(network)
    parameters = [*(network if captions is None else network.image).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=1e-4)

    def step() -> float:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        *images, tokens, token_lengths = (part.to(device) for part in batch)
        images = original.encode_images(*images)
        texts = original.encode_captions(tokens, token_lengths) if captions is None else captions
        optimizer.zero_grad()
        loss = triplet_loss(images, texts, margin=0.2, hardest=True)
        value = loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        return value

    return step


def measure(part: str, args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Rows of the report for one part."""
    network = common.build_network(args).to(device).train()
    ours, theirs = make_batch(args)
    captions = None
    if part == "image":
        captions = F.normalize(torch.randn(args.batch_size, args.embed_size), dim=1).to(device)
        network.text = None
    runs = {"baseline": baseline_step(network, theirs, captions, device, tf32=args.baseline_tf32)}
    for option in args.options:
        runs[option] = our_step(network, ours, captions, option, device)
    memory = {}
    for name, run in runs.items():
        run()  # optimiser state, caches of the libraries, compilation
        network.zero_grad()
        with common.PeakMemory(device) as peak:
            run()
        memory[name] = peak
    seconds = common.interleaved(runs, args.repetitions, device, warmup=0)
    rows = []
    for option in args.options:
        row = {
            "what": f"{PARTS[part]}, {option}",
            "ours": statistics.median(seconds[option]),
            "baseline": statistics.median(seconds["baseline"]),
            "unit": "s",
            "ratio": common.ratio(seconds, option, "baseline"),
            "seconds": {"ours": seconds[option], "baseline": seconds["baseline"]},
        }
        if option == TARGETS[device.type][0]:
            row["target"] = TARGETS[device.type][1]
        rows.append(row)
        if not option.endswith("compile"):  # a compiled step hides its products from the counter
            rate, taken = common.product_rate(device, option), statistics.median(seconds[option])
            rows.append(common.share_of_peak(f"{PARTS[part]}, {option}", common.operations(runs[option]), taken, rate))
        kind = "device" if device.type == "cuda" else "host"
        rows.append(
            {
                "what": f"{PARTS[part]}, {option}: {kind} memory on top of weights and optimiser",
                "ours": memory[option].on_top(kind) / 2**30,
                "baseline": memory["baseline"].on_top(kind) / 2**30,
                "unit": "GiB",
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.training", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--options", nargs="+", choices=OPTIONS, help="of our step (default: fp32; on CUDA all)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repetitions", type=int, help="default: 5, on CUDA 20")
    parser.add_argument("--baseline-tf32", action="store_true", help="let the original use TF32 (torch 1.8 did)")
    common.add_network_arguments(parser)
    common.add_arguments(parser)
    args = parser.parse_args(argv)
    args.options = args.options or (["fp32"] if args.device == "cpu" else list(OPTIONS))
    args.repetitions = args.repetitions or (5 if args.device == "cpu" else 20)
    device = common.start(args)
    rows = [row for part in args.parts for row in measure(part, args, device)]
    common.report("training", args, device, rows)


if __name__ == "__main__":
    run_cli(main)
