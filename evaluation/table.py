"""The results as a table for the terminal.

`python -m evaluation.table --results results` (with `--config` to show exactly what a configuration asks for), or
`python -m evaluation.table PATH/metrics.json ...`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console import UserError, read_mapping, run_cli

COLUMNS = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Entry:
    """One metrics file: `system` is a run's or an ensemble's name, `metrics` None where the file does not exist yet."""

    testset: str
    system: str
    ensemble: bool
    metrics: dict[str, Any] | None


def metrics_path(results: str | os.PathLike[str], system: str, testset: str, ensemble: bool) -> Path:
    """Where the workflow puts the metrics of a run or an ensemble on a test set."""
    return Path(results) / ("ensembles" if ensemble else "evaluation") / system / testset / "metrics.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if not {"i2t", "t2i", "rsum"} <= metrics.keys():
            raise ValueError("i2t, t2i or rsum is missing")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a metrics file: {error}") from error
    return metrics


def configured_entries(results: str | os.PathLike[str], config: dict[str, Any]) -> list[Entry]:
    """One entry per test set and per run and ensemble of `config`, in its order."""
    systems = [(name, False) for name in config.get("runs") or {}]
    systems += [(name, True) for name in config.get("ensembles") or {}]
    entries = []
    for testset in config.get("testsets") or {}:
        for system, ensemble in systems:
            path = metrics_path(results, system, testset, ensemble)
            entries.append(Entry(testset, system, ensemble, _read(path) if path.is_file() else None))
    return entries


def found_entries(paths: Iterable[str | os.PathLike[str]]) -> list[Entry]:
    """One entry per file `.../{system}/{testset}/metrics.json`."""
    entries = []
    for path in map(Path, paths):
        metrics = _read(path)
        parts = path.resolve().parts
        ensemble = "runs" in metrics or (len(parts) > 3 and parts[-4] == "ensembles")
        entries.append(Entry(parts[-2], parts[-3] if len(parts) > 2 else "", ensemble, metrics))
    return sorted(entries, key=lambda entry: (entry.testset, entry.ensemble))


def _numbers(block: dict[str, Any]) -> list[str]:
    recalls = [block[direction][key] for direction in ("i2t", "t2i") for key in ("r1", "r5", "r10")]
    return [f"{value:.1f}" for value in [*recalls, block["rsum"]]]


def format_table(entries: Sequence[Entry]) -> str:
    """The table as text: per test set its systems with their fold means, then the controls and chance."""
    lines: list[tuple[str, list[str]] | str] = []
    for testset in dict.fromkeys(entry.testset for entry in entries):
        group = [entry for entry in entries if entry.testset == testset]
        done = [entry for entry in group if entry.metrics]
        size = f": {done[0].metrics['images']} images, {done[0].metrics['captions']} captions" if done else ""
        lines.append(f"{testset}{size}")
        for entry in group:
            label = f"  {entry.system}" + (" (ensemble)" if entry.ensemble else "")
            if entry.metrics is None:
                lines.append((label, ["not computed"]))
                continue
            lines.append((label, _numbers(entry.metrics)))
            if folds := entry.metrics.get("folds"):
                label = f"    mean of {folds['count']} folds of {folds['images_per_fold']} images"
                lines.append((label, _numbers(folds)))
        for entry in done:
            if control := entry.metrics.get("control"):
                lines.append((f"  control: {entry.system}, images shuffled", _numbers(control)))
        if done and (chance := done[0].metrics.get("chance")):
            lines.append(("  chance", _numbers(chance)))
    width = max([len(line[0]) for line in lines if not isinstance(line, str)] + [10]) + 2
    header = [
        " " * width + "  image -> text       text -> image",
        " " * width + "".join(f"{name:>7}" for name in (*COLUMNS, *COLUMNS)) + f"{'rSum':>8}",
    ]
    body = []
    for line in lines:
        if isinstance(line, str):
            body += ["", line]
        elif len(line[1]) == 1:
            body.append(f"{line[0]:<{width}}  {line[1][0]}")
        else:
            label, numbers = line
            body.append(f"{label:<{width}}" + "".join(f"{value:>7}" for value in numbers[:-1]) + f"{numbers[-1]:>8}")
    return "\n".join(header + body)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m evaluation.table", description=__doc__.split("\n")[0])
    parser.add_argument("metrics", nargs="*", help="metrics.json files, if --results is not given")
    parser.add_argument("--results", help="the results folder")
    parser.add_argument("--config", help="show what this configuration asks for: JSON, or a JSON or YAML file")
    args = parser.parse_args()
    if bool(args.results) == bool(args.metrics):
        raise UserError("give either --results DIR or one or more metrics.json files")
    if args.config and not args.results:
        raise UserError("--config needs --results DIR")
    if args.config:
        entries = configured_entries(args.results, read_mapping(args.config, flag="--config"))
    else:
        paths = args.metrics
        if args.results:
            results = Path(args.results)
            paths = sorted(results.glob("evaluation/*/*/metrics.json"))
            paths += sorted(results.glob("ensembles/*/*/metrics.json"))
        entries = found_entries(paths)
    if not entries:
        raise UserError(f"no metrics under {args.results}: run the evaluation first (snakemake --cores N evaluate)")
    sys.stdout.write(format_table(entries) + "\n")


if __name__ == "__main__":
    run_cli(main)
