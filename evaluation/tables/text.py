"""Text for the terminal: per test set its systems with their folds and protocols, then the controls and chance.

The interval at the end of a line is that of rSum.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from evaluation.published import TIES
from evaluation.tables.blocks import LAYOUTS, PRECISION, RECALL, WAYS, WITHIN, Block, Entry, Line, blocks_of, cells


@dataclass
class _Row:
    """A line of the table; without `values` only what stands before them."""

    label: str
    values: list[str] = field(default_factory=list)
    rsum: str = ""
    interval: str = ""
    remark: str = ""

    def text(self, width: int) -> str:
        values = "".join(f"{value:>7}" for value in self.values) or f"  {self.remark}"
        return f"{self.label:<{width}}{values}{self.rsum}{self.interval}".rstrip()


def render(entries: Sequence[Entry]) -> str:
    blocks = blocks_of(entries)
    tables: list[tuple[str, list[_Row]]] = []
    for testset in dict.fromkeys(entry.testset for entry in entries):
        own = [block for block in blocks if block.testset == testset]
        rows = [row for system in _systems(entries, own, testset) for row in _rows(*system, own)]
        tables.append((own[0].title if own else testset, rows))
    every = [row for _, rows in tables for row in rows]
    width = max([len(row.label) for row in every] + [10]) + 2
    columns = [*RECALL.values()]
    names = "".join(f"{name:>7}" for name in columns * len(WAYS)) + f"{'rSum':>8}"
    first, second = WAYS.values()
    lines = [
        " " * width + f"{'  ' + first:<{7 * len(columns)}} {second}",
        " " * width + names + ("  95 % interval" if any(row.interval for row in every) else ""),
    ]
    for title, rows in tables:
        lines += ["", title, *(row.text(width) for row in rows)]
    if any(line.kind == "published" for block in blocks for line in block.lines):
        lines += ["", *textwrap.wrap(TIES, 120)]
    return "\n".join(lines) + "\n"


def _systems(entries: Sequence[Entry], blocks: Sequence[Block], testset: str) -> dict[tuple[str, str], None]:
    """(system, kind) of a test set: published ones, ours (scored or not), controls, chance."""
    scored = [(line.system, line.kind) for block in blocks for line in block.lines]
    ours = [(one.system, "ensemble" if one.ensemble else "run") for one in entries if one.testset == testset]
    published = [system for system in scored if system[1] == "published"]
    return dict.fromkeys(published + ours + [system for system in scored if system[1] in ("control", "chance")])


def _rows(system: str, kind: str, blocks: Sequence[Block]) -> list[_Row]:
    """A system's lines: the whole test set, and below it, deeper, its folds and protocols."""
    labels = {"run": system, "chance": system, "control": f"control: {system}, images shuffled"}
    label = "  " + labels.get(kind, f"{system} ({kind})")
    found = [(block, line) for block in blocks for line in block.lines if (line.system, line.kind) == (system, kind)]
    if not found:
        return [_Row(label, remark="not computed")]
    rows = [] if found[0][0].name == "recall" else [_Row(label)]
    return rows + [
        _row(label if block.name == "recall" else "    " + _below(block), block, line) for block, line in found
    ]


def _below(block: Block) -> str:
    if block.name == "folds":
        return block.title.split(": ")[-1]
    return {
        "cxc": "CxC",
        "cxc_intra": "CxC: " + ", ".join(WITHIN.values()),
        "eccv": f"{LAYOUTS['eccv'].protocol}: {', '.join(PRECISION.values())}",
    }[block.name]


def _row(label: str, block: Block, line: Line) -> _Row:
    shown = [metric in block.layout.metrics for _, metric in block.layout.places]
    values = [cell for cell, wanted in zip(cells(line.values, "-"), shown, strict=False) if wanted]
    if not block.layout.rsum:
        return _Row(label, values)
    interval = "  [{:.1f}, {:.1f}]".format(*line.bounds[-1]) if line.bounds else ""
    (rsum,) = cells(line.values[-1:], "-")
    return _Row(label, values, f"{rsum:>8}", interval)
