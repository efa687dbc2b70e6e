"""Where the time of `make demo` goes, in seconds of CPU by command: `python -m benchmarks.demo`.

Every Python process of the run notes what it used when it ends: a job's start is counted, time spent waiting for a core is not, so
that the figures hold on a machine that others use too. Baseline, if one is given: the same of another checkout
(`git worktree add ../before v0.1`, then `--before ../before`), run after it on the same machine.
"""

from __future__ import annotations

import collections
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import add_arguments, report, start
from core.console import UserError, run_cli
from core.flags import command

_ROOT = Path(__file__).resolve().parent.parent
_NOTES = "THREESHNET_BENCHMARK_NOTES"
# Python imports a module of this name, if it finds one, at its start.
_SITECUSTOMIZE = f'''
import atexit, os, resource, sys

def note(process=os.getpid()):
    if os.getpid() == process:
        used = resource.getrusage(resource.RUSAGE_SELF)
        with open(os.environ["{_NOTES}"], "a") as file:
            print(used.ru_utime + used.ru_stime, " ".join(sys.orig_argv[1:]).replace("\\n", " "), sep="\\t", file=file)

atexit.register(note)
'''
NOTES = "notes.tsv"
WHOLE, OTHERS = "the whole run", "shells, and processes that were ended"


def run_demo(
    checkout: Path, folder: Path, cores: str, options: Sequence[str]
) -> tuple[dict[str, tuple[int, float]], float]:
    """Snakemake's whole run in a checkout, its results below a folder of its own.

    Returns:
        By command (processes, seconds of CPU), `WHOLE` among them; and seconds until it ended.

    Raises:
        UserError: it failed.
    """
    environment = noting(folder)
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", cores, *options, "--config", f"results={folder / 'results'}"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - clock
    if done.returncode:
        raise UserError(f"the run in {checkout} failed:\n{done.stderr[-2000:]}")
    found = by_command((folder / NOTES).read_text())
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found[OTHERS] = (0, whole - sum(cpu for _, cpu in found.values()))
    found[WHOLE] = (sum(processes for processes, _ in found.values()), whole)
    return found, seconds


def noting(folder: Path) -> dict[str, str]:
    """The environment in which Python processes leave a line in `NOTES` of a folder: seconds of CPU, a tab, their arguments."""
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return kept | {_NOTES: str(folder / NOTES), "PYTHONPATH": str(folder)}


def by_command(notes: str) -> dict[str, tuple[int, float]]:
    """(processes, seconds of CPU) by what was started: `python -m extractors.run --feature grids ...` is
    "extractors.run grids"."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for line in notes.splitlines():
        cpu, arguments = line.split("\t", 1)
        module = re.match(r"-m (\S+)(?: ([a-z]+)\b)?", arguments)
        feature = re.search(r"--feature (\S+)", arguments)
        words = [word for word in (*module.groups(), feature and feature[1]) if word] if module else ["python"]
        found[" ".join(words)].append(float(cpu))
    return {name: (len(cpus), sum(cpus)) for name, cpus in found.items()}


def scores(results: Path) -> dict[str, float]:
    """rSum by run or ensemble and test set."""
    files = [*results.glob("evaluation/*/*/metrics.json"), *results.glob("ensembles/*/*/metrics.json")]
    return {f"{file.parts[-3]} on {file.parts[-2]}": json.loads(file.read_text())["rsum"] for file in sorted(files)}


def rows_of(found: dict[str, tuple[int, float]], seconds: float, rsums: dict[str, float]) -> list[dict[str, Any]]:
    whole = found[WHOLE][1]
    rows = [
        {"what": name, "ours": cpu, "note": f"{processes} processes, {100 * cpu / whole:.0f} % of the CPU time"}
        for name, (processes, cpu) in sorted(found.items(), key=lambda item: -item[1][1])
    ]
    rows.append({"what": "until it ended", "ours": seconds})
    return rows + [{"what": f"rSum of {name}", "ours": rsum, "unit": ""} for name, rsum in rsums.items()]


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.demo", __doc__)
    parser.add_argument("--cores", default="all")
    parser.add_argument("--before", type=Path, help="another checkout of this repository, as baseline")
    parser.add_argument("--options", nargs="*", default=[], help="more words for Snakemake: a target, a configuration")
    add_arguments(parser)
    args = parser.parse_args(argv)
    device, measured = start(args), []
    for checkout in (_ROOT, *([args.before] if args.before else [])):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            found, seconds = run_demo(checkout, folder, args.cores, args.options)
            measured.append(rows_of(found, seconds, scores(folder / "results")))
    rows, *others = measured
    for other in ({row["what"]: row["ours"] for row in rows} for rows in others):
        for row in rows:
            if (baseline := other.get(row["what"])) is not None and row["ours"]:
                row |= {"baseline": baseline} | ({"ratio": baseline / row["ours"]} if "unit" not in row else {})
    report("demo", args, device, rows)


if __name__ == "__main__":
    run_cli(main)
