"""What the tables show: the metrics files, as blocks of lines that belong into one table.

A block is one protocol on one test set: published results where ours are comparable, our runs and ensembles, and for the
whole test set the controls and chance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import layout
from core.console import UserError
from core.scores import CUTOFFS
from evaluation.published import IMAGES, PRINTED, PUBLISHED

WAYS = {"i2t": "image -> text", "t2i": "text -> image"}
WITHIN = {"i2i": "image -> image", "t2t": "text -> text"}
RECALL = {f"r{k}": f"R@{k}" for k in CUTOFFS}
RANKS = {"medr": "Med r", "meanr": "Mean r"}
PRECISION = {"map_at_r": "mAP@R", "r_precision": "R-P", "r1": "R@1"}
BENCHMARKS = {"coco": "MS-COCO", "flickr30k": "Flickr30K"}


@dataclass(frozen=True)
class Layout:
    """The columns of a block, and where its numbers are in a metrics file.

    Attributes:
        directions: two, each with its heading. metrics: of each direction, with their headings.
        rsum: whether rSum follows. protocol: its name in titles, none for the standard one.
        ranks: further metrics of each direction, which only tables with room for them show.
    """

    directions: dict[str, str]
    metrics: dict[str, str]
    rsum: bool
    protocol: str = ""
    ranks: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str]:
        """`metrics` and `ranks`: the columns of one direction."""
        return self.metrics | self.ranks

    @property
    def places(self) -> list[tuple[str, str]]:
        """(direction, metric) of every column but rSum's."""
        return [(direction, metric) for direction in self.directions for metric in self.columns]

    @property
    def headings(self) -> list[str]:
        """Of the columns, once for each direction, and of rSum."""
        return [*self.columns.values()] * len(self.directions) + ["rSum"] * self.rsum


LAYOUTS = {
    "recall": Layout(WAYS, RECALL, rsum=True, ranks=RANKS),
    "folds": Layout(WAYS, RECALL, rsum=True, ranks=RANKS),
    "cxc": Layout(WAYS, RECALL, rsum=True, protocol="Crisscrossed Captions"),
    "cxc_intra": Layout(WITHIN, RECALL, rsum=False, protocol="Crisscrossed Captions"),
    "eccv": Layout(WAYS, PRECISION, rsum=False, protocol="ECCV Caption"),
}


@dataclass(frozen=True)
class Entry:
    """One metrics file: `system` is a run's or an ensemble's name, `metrics` None where the file does not exist yet.

    `benchmark` is what the test set is declared to be, see `evaluation.published`.
    """

    testset: str
    system: str
    ensemble: bool
    metrics: dict[str, Any] | None
    benchmark: str | None = None


@dataclass
class Line:
    """The numbers of one system in one block; `kind`: published, run, ensemble, control or chance.

    `values` are one for each column (None: unknown); `bounds` their intervals, none or as many.
    """

    system: str
    kind: str
    values: list[float | None]
    bounds: list[Sequence[float]] = field(default_factory=list)
    source: str = ""


@dataclass
class Block:
    """One protocol's results on one test set. `name` is a key of `LAYOUTS`."""

    testset: str
    name: str
    title: str
    lines: list[Line]

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.name]

    @property
    def systems(self) -> list[Line]:
        """The lines without controls and chance."""
        return [line for line in self.lines if line.kind not in ("control", "chance")]


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
    for testset, settings in (config.get("testsets") or {}).items():
        for system, ensemble in systems:
            path = Path((layout.ensemble_metrics if ensemble else layout.metrics)(results, system, testset))
            metrics = _read(path) if path.is_file() else None
            entries.append(Entry(testset, system, ensemble, metrics, (settings or {}).get("benchmark")))
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


def _line(system: str, kind: str, columns: Layout, scores: dict[str, Any]) -> Line:
    """A block's numbers from the part of a metrics file that holds them."""

    def of(numbers: dict[str, Any]) -> list[Any]:
        found = [numbers[direction][metric] for direction, metric in columns.places]
        return [*found, numbers["rsum"]] if columns.rsum else found

    intervals = scores.get("intervals")
    return Line(system, kind, of(scores), of(intervals) if intervals else [])


def _parts(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The blocks that a metrics file has numbers for."""
    parts = {"recall": metrics}
    if metrics.get("folds"):
        parts["folds"] = metrics["folds"]
    protocols = metrics.get("protocols") or {}
    if "cxc" in protocols:
        parts["cxc"] = protocols["cxc"]
        if {"i2i", "t2t"} <= protocols["cxc"].keys():
            parts["cxc_intra"] = protocols["cxc"]
    if "eccv" in protocols:
        parts["eccv"] = protocols["eccv"]
    return parts


def _title(name: str, testset: str, benchmark: str | None, metrics: dict[str, Any]) -> str:
    place = f"{BENCHMARKS[benchmark]} ({testset})" if benchmark else testset
    if name == "folds":
        folds = metrics["folds"]
        return f"{place}: mean of {folds['count']} folds of {folds['images_per_fold']} images"
    protocol = LAYOUTS[name].protocol
    size = f"{metrics['images']} images, {metrics['captions']} captions"
    return f"{place}: {protocol + ', ' if protocol else ''}{size}"


def _published(name: str, benchmark: str | None, metrics: dict[str, Any]) -> list[Line]:
    """Published lines of a block, if ours are comparable: as many images, and for the folds five of 1,000."""
    folds = metrics.get("folds") or {}
    same = metrics["images"] == IMAGES.get(benchmark)
    if name == "folds":
        same = same and (folds["count"], folds["images_per_fold"]) == (5, 1000)
    rows = [row for row in PUBLISHED if same and (row.benchmark, row.block) == (benchmark, name)]
    return [Line(row.system, "published", _placed(row.values, LAYOUTS[name]), source=row.source) for row in rows]


def _placed(values: Sequence[float | None], columns: Layout) -> list[float | None]:
    """Published values under the columns of ours, None where a source does not print one."""
    each = len(PRINTED)
    ways = [dict(zip(PRINTED, values[start : start + each], strict=True)) for start in (0, each)]
    unknown = [None] * len(columns.ranks)
    placed = [value for way in ways for value in [*(way.get(k) for k in CUTOFFS), *unknown]]
    return placed + list(values[2 * each :])


def blocks_of(entries: Sequence[Entry]) -> list[Block]:
    """All blocks, test set by test set: published results, ours, and for the whole test set the controls and chance."""
    blocks = []
    for testset in dict.fromkeys(entry.testset for entry in entries):
        group = [entry for entry in entries if entry.testset == testset and entry.metrics]
        for name, columns in LAYOUTS.items():
            having = [(entry, _parts(entry.metrics)[name]) for entry in group if name in _parts(entry.metrics)]
            if not having:
                continue
            first = having[0][0]
            lines = _published(name, first.benchmark, first.metrics)
            for entry, scores in having:
                lines.append(_line(entry.system, "ensemble" if entry.ensemble else "run", columns, scores))
            if name == "recall":
                for entry, _ in having:
                    if control := entry.metrics.get("control"):
                        lines.append(_line(entry.system, "control", columns, control))
                if chance := first.metrics.get("chance"):
                    lines.append(_line("chance", "chance", columns, chance))
            blocks.append(Block(testset, name, _title(name, testset, first.benchmark, first.metrics), lines))
    return blocks


def cells(values: Sequence[float | None], missing: str) -> list[str]:
    """Values as all tables but the CSV show them."""
    return [missing if value is None else f"{value:.1f}" for value in values]


def interval_cells(line: Line) -> list[str]:
    """A line's intervals, one for each column."""
    shown = [f"[{low:.1f}, {high:.1f}]" for low, high in line.bounds]
    return shown + [""] * (len(line.values) - len(shown))


class Sources:
    """The sources of published lines, numbered in the order of their first appearance."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def label(self, line: Line) -> str:
        """What a line is called in a table with footnotes."""
        if line.kind != "published":
            return line.system + (" (ensemble)" if line.kind == "ensemble" else "")
        if line.source not in self.names:
            self.names.append(line.source)
        return f"{line.system} (published [{self.names.index(line.source) + 1}])"
