"""What the benchmarks share: a network of the sizes asked for, interleaved timing, peak memory, tables and result files."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data import VOCABULARY_SIZE
from catalog.categories import NUM_CATEGORIES
from core.devices import matmul_precision, open_device
from core.files import write_json
from model.build import new_image_encoder
from model.library_encoder import LibraryEncoder, bert_config
from model.settings import ThreeSHNetModel
from model.text import TextEncoder
from model.three_shnet import ThreeSHNet

BERT_BASE = {"layers": 12, "hidden_size": 768}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every benchmark has."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write; a folder: named after the machine and the day")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes of the network; the defaults are the paper's."""
    parser.add_argument("--embed-size", type=int, default=1024, help="E")
    parser.add_argument("--tokens", type=int, default=36, help="K, visual tokens per image")
    parser.add_argument("--img-dim", type=int, default=2048, help="D, width of a visual token")
    parser.add_argument("--bert-layers", type=int, default=BERT_BASE["layers"], help="12 for BERT base")
    parser.add_argument("--bert-size", type=int, default=BERT_BASE["hidden_size"], help="768 for BERT base")


def start(args: argparse.Namespace) -> torch.device:
    """Apply the common flags. UserError if there is no such device."""
    device, _ = open_device(args.device, threads=args.threads)
    torch.manual_seed(args.seed)
    return torch.device(device)


def build_network(args: argparse.Namespace, *, dropout: float = 0.1) -> ThreeSHNet:
    """A network of the sizes asked for, with random weights."""
    bert = LibraryEncoder(
        bert_config(
            vocabulary_size=VOCABULARY_SIZE,
            hidden_size=args.bert_size,
            layers=args.bert_layers,
            heads=max(1, args.bert_size // 64),
            intermediate_size=4 * args.bert_size,
            dropout=dropout,
        )
    )
    model = ThreeSHNetModel(embed_size=args.embed_size, dropout=dropout)
    image = new_image_encoder(ThreeSHNet, model, img_dim=args.img_dim, num_categories=NUM_CATEGORIES)
    pooling = {"pool_position_size": model.pool_position_size, "pool_hidden_size": model.pool_hidden_size}
    return ThreeSHNet(image, TextEncoder(bert, args.embed_size, **pooling))


def interleaved(
    runs: dict[str, Callable[[], Any]],
    repetitions: int,
    device: torch.device,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run, taken in turns, so that whatever else the machine does meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(-warmup, repetitions):
        for name, run in runs.items():
            taken = timed(run, device, clock)
            if repetition >= 0:
                seconds[name].append(taken)
    return seconds


def timed(run: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one call takes, on the device too."""
    synchronise(device)
    begin = clock()
    run()
    synchronise(device)
    return clock() - begin


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """How many times faster `name` is than `base`: the median over the repetitions."""
    return statistics.median(b / a for a, b in zip(seconds[name], seconds[base], strict=True))


def operations(run: Callable[[], Any]) -> int:
    """Floating point operations of a call's matrix products, convolutions and attentions, as torch counts them (a recurrent
    layer's are not among them)."""
    of_linear = {torch.ops.mkldnn._linear_pointwise: lambda rows, *_, out_shape: 2 * math.prod(rows) * out_shape[-1]}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # torch counts in this thread alone: nothing may run in others
    try:
        with FlopCounterMode(display=False, custom_mapping=of_linear) as counter:
            run()
    finally:
        torch.set_num_threads(threads)
    return counter.get_total_flops()


def core_share(what: str, count: int, run: Callable[[], Any], precision: str, repetitions: int) -> dict[str, Any]:
    """A row of the report: `share_of_peak` on one thread and in CPU time, the best of several turns of the call and of products.
    Where other processes have the machine too, this says more than wall time."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    runs = {"run": run, "products": lambda: [a @ b for _ in range(20)]}
    seconds, threads = dict.fromkeys(runs, math.inf), torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(matmul_precision("cpu"))
    try:
        for _ in range(repetitions):
            for name, call in runs.items():
                begin = time.process_time()
                call()
                seconds[name] = min(seconds[name], time.process_time() - begin)
    finally:
        torch.set_num_threads(threads)
    row = share_of_peak(what, count, seconds["run"], 20 * 2 * 1024**3 / seconds["products"])
    return row | {"what": f"{what}: of a core's matrix-product rate, CPU time"}


@functools.cache
def product_rate(
    device: torch.device,
    precision: str,
    *,
    size: int | None = None,
    repetitions: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Floating point operations per second of torch's own product of two square matrices here: the best of several calls.

    Args:
        precision: fp32, tf32 or bf16. size: of the matrices (default: 1,024, on CUDA 8,192).
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else matmul_precision(device.type))
    try:
        seconds = interleaved({"product": lambda: a @ b}, repetitions, device, clock=clock)["product"]
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * size**3 / min(seconds)


def share_of_peak(what: str, count: int, seconds: float, rate: float) -> dict[str, Any]:
    """A row of the report: operations per second of a part, as a share of `product_rate`, where its limit lies."""
    return {
        "what": f"{what}: of this machine's matrix-product rate",
        "ours": 100 * count / seconds / rate,
        "unit": "%",
        "note": f"{count / 1e9:.4g} GFLOP in {seconds:.3g} s; a product of two matrices makes {rate / 1e9:.4g} GFLOP/s",
    }


class PeakMemory:
    """Peak memory of a block in bytes: `host` of the whole process, libraries included, `device` what torch allocated."""

    def __init__(self, device: torch.device) -> None:
        self.torch_device = device
        self.host = self.device = 0
        self._before = {"host": 0, "device": 0}

    def on_top(self, kind: str) -> int:
        """What the block needed beyond what was in use before it; `kind` is host or device."""
        return max(0, getattr(self, kind) - self._before[kind])

    def __enter__(self) -> PeakMemory:
        synchronise(self.torch_device)
        self._before["host"] = _status("VmRSS")
        # Linux forgets the peak so far; where that is forbidden, `host` is the peak of the process's life.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        if self.torch_device.type == "cuda":
            self._before["device"] = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        synchronise(self.torch_device)
        self.host = _status("VmHWM")
        if self.torch_device.type == "cuda":
            self.device = torch.cuda.max_memory_allocated()


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def machine(device: torch.device) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{model}, {os.cpu_count()} cores",
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numpy")},
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def report(name: str, args: argparse.Namespace, device: torch.device, rows: Sequence[dict[str, Any]]) -> None:
    """Print machine, settings and a table; with `--out` write the same as JSON.

    Args:
        rows: `{what, ours, baseline, unit, ratio, target, note}`; all but `what` may be left out. `target` is the ratio
            promised, or a limit in the row's unit with `at_most: True`.
    """
    place = machine(device)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    print(f"benchmarks.{name} on {place['device']}")
    print("  " + ", ".join(f"{key} {value}" for key, value in place.items() if value is not None and key != "device"))
    print("  " + ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None))
    rows = [{**row, "met": _met(row)} for row in rows]
    table = [("", "ours", "baseline", "ratio", "target", "")]
    for row in rows:
        limit, unit = row.get("target"), row.get("unit", "s")
        target = "" if limit is None else (f"<= {_number(limit)} {unit}" if row.get("at_most") else f">= {limit:g}x")
        verdict = {None: "", True: "met", False: "MISSED"}[row["met"]]
        cells = [row["what"], *(_cell(row.get(side), unit) for side in ("ours", "baseline"))]
        cells += [f"{row['ratio']:.2f}x" if "ratio" in row else "", target, verdict]
        table.append(tuple(cells))
    widths = [max(len(line[i]) for line in table) for i in range(6)]
    for line in table:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
        )
    for row in rows:
        if "note" in row:
            print(f"{row['what']}: {row['note']}")
    if args.out:
        path = args.out
        if path.suffix != ".json":
            where = "".join(c if c.isalnum() else "-" for c in place["device"]).strip("-")
            path = path / f"{name}_{where}_{place['date']}.json"
        write_json(path, {"benchmark": name, "machine": place, "settings": settings, "results": list(rows)})
        print(f"written to {path}", file=sys.stderr)


def _met(row: dict[str, Any]) -> bool | None:
    if row.get("target") is None:
        return None
    return row["ours"] <= row["target"] if row.get("at_most") else row["ratio"] >= row["target"]


def _cell(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_number(value)} {unit}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
