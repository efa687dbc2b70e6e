"""What a job's start costs, in seconds of CPU: `python -m benchmarks.startup`.

Each part in a new process, as jobs do it, with the import of torch that all of them need. Baseline: the same by torchvision's,
torch's and transformers' own means.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import add_arguments, report, start
from core.console import run_cli
from core.flags import command

_ROOT = Path(__file__).resolve().parent.parent
_STEP = "p = torch.nn.Parameter(torch.zeros(9)); p.grad = torch.ones(9); kind([p], lr=0.1, fused=True).step()"
_TORCH = "import torch"
_SIZES = '{"vocabulary_size": 2000, "hidden_size": 128, "layers": 2, "heads": 2, "intermediate_size": 512, "max_positions": 64}'
PARTS = {
    "the end of a job": ("from core.console import run_cli; run_cli(lambda: None)", "pass"),
    "operators of an extraction": (
        "from extractors.networks.ops import nms; nms(torch.rand(3, 4).cumsum(1), torch.rand(3), 0.5)",
        "from torchvision.ops import nms; nms(torch.rand(3, 4).cumsum(1), torch.rand(3), 0.5)",
    ),
    "first step of an optimiser": (
        f"from model.training.optimizer import _uncompiled; kind = _uncompiled(torch.optim.AdamW); {_STEP}",
        f"from model.training.optimizer import _uncompiled; kind = torch.optim.AdamW; {_STEP}",
    ),
    "a text encoder with random weights": (
        f"from model.text import encoder_of; encoder_of({_SIZES})",
        f"from model.library_encoder import LibraryEncoder, bert_config; LibraryEncoder(bert_config(**{_SIZES}))",
    ),
}


def cpu_seconds(code: str) -> float:
    """Of a new process with one thread that runs this code after importing torch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", f"{_TORCH}; torch.set_num_threads(1); {code}"], cwd=_ROOT, check=True, timeout=600
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.startup", __doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    add_arguments(parser)
    args = parser.parse_args(argv)
    codes = {_TORCH: "pass"} | {f"{n}, {way}": c for n, p in PARTS.items() for way, c in zip("ab", p, strict=True)}
    found: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(args.repetitions):
        for name, code in codes.items():
            found[name].append(cpu_seconds(code))
    rows = [{"what": _TORCH, "ours": statistics.median(found[_TORCH])}]
    for name in PARTS:
        ours, baseline = (statistics.median(found[f"{name}, {way}"]) for way in "ab")
        rows.append({"what": f"{name}, torch too", "ours": ours, "baseline": baseline, "ratio": baseline / ours})
    report("startup", args, start(args), rows)


if __name__ == "__main__":
    run_cli(main)
