"""CSV: one row per block and system, controls and chance too; every metric with the bounds of its interval."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from evaluation.tables.blocks import LAYOUTS, Entry, blocks_of


def render(entries: Sequence[Entry]) -> str:
    places = dict.fromkeys(place for columns in LAYOUTS.values() for place in columns.places)
    names = [f"{direction}_{metric}" for direction, metric in places] + ["rsum"]
    head = ["testset", "protocol", "system", "kind"]
    head += [name + suffix for name in names for suffix in ("", "_low", "_high")] + ["source"]
    rows = []
    for block in blocks_of(entries):
        names = [f"{direction}_{metric}" for direction, metric in block.layout.places] + ["rsum"] * block.layout.rsum
        for line in block.lines:
            row = {"testset": block.testset, "protocol": block.name, "system": line.system, "kind": line.kind}
            row |= {name: round(v, 4) for name, v in zip(names, line.values, strict=True) if v is not None}
            for name, (low, high) in zip(names, line.bounds, strict=False):
                row |= {f"{name}_low": round(low, 4), f"{name}_high": round(high, 4)}
            rows.append(row | {"source": line.source})
    file = io.StringIO()
    writer = csv.DictWriter(file, [name for name in head if any(name in row for row in rows)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
