"""The figures at the top and the tables of results: per test set its systems, their folds, controls and chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.scores import METRICS, RECALLS
from evaluation.bootstrap import RESAMPLES
from evaluation.compare import compare
from evaluation.tables import latex
from evaluation.tables.blocks import PRECISION, RANKS, RECALL, WAYS, configured_entries
from reporting.artefacts import Artefacts, Stage, System
from reporting.left_out import why_fewer
from reporting.sections.features import feature_stages
from reporting.words import counted, duration

TITLE = "Results"
COLUMNS = METRICS  # of each direction
HEADINGS = RECALL | RANKS


def context(artefacts: Artefacts, queries: int, seed: int) -> dict[str, Any]:
    """The tables, the figures at the top of the page, and one sentence on what was trained and scored."""
    tables = results_tables(artefacts)
    return {
        "summary": summary(artefacts, tables),
        "tiles": tiles(tables, feature_stages(artefacts)),
        "tables": tables,
        "headings": [HEADINGS[key] for key in COLUMNS] * 2,
        "groups": [way.capitalize().replace("->", "→") for way in WAYS.values()],
        "columns": len(COLUMNS),
    }


@dataclass
class Row:
    """One line of a results table. `kind`: run, ensemble, folds (or another protocol), control or chance.

    `intervals` are as many texts as `cells`, or none; `rsum_interval` the one of rSum.
    """

    kind: str
    label: str
    note: str
    cells: list[str]
    values: list[float]
    rsum: float
    intervals: list[str] = field(default_factory=list)
    rsum_interval: str = ""
    best: list[bool] = field(default_factory=list)


def _row(kind: str, label: str, note: str, block: Mapping[str, Any]) -> Row:
    values = [float(block[direction].get(key, float("nan"))) for direction in ("i2t", "t2i") for key in COLUMNS]
    cells = [
        f"{value:.0f}" if key == "medr" and value.is_integer() else f"{value:.1f}"
        for value, key in zip(values, COLUMNS * 2, strict=True)
    ]
    row = Row(kind, label, note, cells, values, float(block["rsum"]))
    if bounds := block.get("intervals"):
        row.intervals = [
            "{:.1f} – {:.1f}".format(*bounds[direction][key]) for direction in ("i2t", "t2i") for key in COLUMNS
        ]
        row.rsum_interval = "{:.1f} – {:.1f}".format(*bounds["rsum"])
    return row


def results_tables(artefacts: Artefacts) -> list[dict[str, Any]]:
    """Per test set: its systems with their fold means, then controls and chance."""
    tables = []
    for testset, settings in artefacts.section("testsets").items():
        systems, checks, size, told, chance = [], [], None, "", None
        for system in artefacts.systems():
            metrics = artefacts.metrics(system, testset)
            if metrics is None:
                continue
            if size is None:
                size, told = metrics, _size(artefacts, settings, system, metrics)
            chance = chance or metrics.get("chance")
            trained = [dataset for dataset in system.datasets if dataset]
            notes = [f"mean of {' + '.join(system.members)}"] if system.ensemble else []
            if trained and settings.get("dataset") not in trained:
                notes.append(f"trained on {', '.join(trained)}")
            if metrics["images"] != size["images"]:
                notes.append(_size(artefacts, settings, system, metrics))
            kind = "ensemble" if system.ensemble else "run"
            systems.append(_row(kind, system.name, "; ".join(notes), metrics))
            if folds := metrics.get("folds"):
                label = f"{folds['count']}-fold mean"
                systems.append(_row("folds", label, f"{folds['images_per_fold']} images each", folds))
            if cxc := metrics.get("protocols", {}).get("cxc"):
                systems.append(_row("protocol", "Crisscrossed Captions", "with its further right answers", cxc))
            if control := metrics.get("control"):
                checks.append(_row("control", system.name, "control: images shuffled", control))
        _mark_best([row for row in systems if row.kind in ("run", "ensemble")])
        _mark_best([row for row in systems if row.kind == "folds"])
        if chance:
            checks.append(_row("chance", "chance", "computed", chance))
        tables.append(
            {
                "testset": testset,
                "dataset": settings.get("dataset", ""),
                "split": settings.get("split", ""),
                "size": told,
                "systems": systems,
                "checks": checks,
                "chance": chance,
                "protocols": protocol_tables(artefacts, testset),
                **comparisons(artefacts, testset),
            }
        )
    entries = configured_entries(artefacts.results, artefacts.config)
    for table in tables:
        own = [entry for entry in entries if entry.testset == table["testset"] and entry.metrics]
        table["latex"] = latex.render(own) if own else ""
    return tables


def _size(artefacts: Artefacts, testset: Mapping[str, Any], system: System, metrics: Mapping[str, Any]) -> str:
    """How many images and captions a system was scored on, and why these are not all of the split."""
    visual = str(artefacts.section("runs").get(system.members[0], {}).get("visual"))
    why = why_fewer(artefacts, testset, visual, metrics["images"])
    return f"{metrics['images']:,} images, {metrics['captions']:,} captions" + (f" ({why})" if why else "")


#: Results of protocols whose columns are not the main table's: title, block of a metrics file, retrievals, columns by key.
_PROTOCOL_TABLES = (
    (
        "Crisscrossed Captions, within images and within texts",
        "cxc",
        {"i2i": "Image → image", "t2t": "Text → text"},
        RECALL,
    ),
    (
        "ECCV Caption",
        "eccv",
        {"i2t": "Image → text", "t2i": "Text → image"},
        PRECISION,
    ),
)


def protocol_tables(artefacts: Artefacts, testset: str) -> list[dict[str, Any]]:
    """Tables of the protocols that a test set was scored by beside the standard one; none where there are none."""
    tables = []
    for title, protocol, directions, columns in _PROTOCOL_TABLES:
        rows = []
        for system in artefacts.systems():
            block = ((artefacts.metrics(system, testset) or {}).get("protocols") or {}).get(protocol)
            if not block or not directions.keys() <= block.keys():
                continue
            bounds = block.get("intervals") or {}
            cells = [
                {
                    "text": f"{block[direction][key]:.1f}",
                    "interval": "{:.1f} – {:.1f}".format(*bounds[direction][key]) if direction in bounds else "",
                }
                for direction in directions
                for key in columns
            ]
            rows.append({"label": system.name, "ensemble": system.ensemble, "cells": cells})
        if rows:
            headings = [*columns.values()] * len(directions)
            tables.append({"title": title, "groups": [*directions.values()], "headings": headings, "rows": rows})
    return tables


def comparisons(artefacts: Artefacts, testset: str) -> dict[str, Any]:
    """Which systems are better than which on a test set: `differences`, and the names that could not be `compared`."""
    names = [system for system in artefacts.systems() if artefacts.metrics(system, testset)]
    ranked = {system.name: ranks for system in names if (ranks := artefacts.ranks(system, testset))}
    differences = compare(ranked)
    compared = {name for one in differences for name in (one.better, one.other)}
    left = [system.name for system in names if system.name not in compared] if compared else []
    return {"differences": differences, "resamples": RESAMPLES, "not_compared": left}


def _mark_best(rows: Sequence[Row]) -> None:
    for row in rows:
        row.best = [False] * (len(row.values) + 1)
    if len(rows) < 2:
        return
    for column in range(len(rows[0].values) + 1):
        values = [[*row.values, row.rsum][column] for row in rows]
        lower_is_better = column < len(rows[0].values) and COLUMNS[column % len(COLUMNS)] not in RECALLS
        top = min(values) if lower_is_better else max(values)
        for row, value in zip(rows, values, strict=True):
            row.best[column] = value == top and min(values) != max(values)


def tiles(tables: Sequence[dict[str, Any]], stages: Sequence[Stage]) -> list[dict[str, str]]:
    """The figures at the top of the page: the best system of the first test set that has results."""
    table = next((table for table in tables if table["systems"]), None)
    found = []
    if table:
        best = max((row for row in table["systems"] if row.kind in ("run", "ensemble")), key=lambda row: row.rsum)
        chance = table["chance"]
        for label, value, by_chance in (
            ("rSum", best.rsum, chance and chance["rsum"]),
            ("image → text, R@1", best.values[0], chance and chance["i2t"]["r1"]),
            ("text → image, R@1", best.values[len(COLUMNS)], chance and chance["t2i"]["r1"]),
        ):
            unit = "" if label == "rSum" else " %"
            note = f"{best.label} on {table['testset']}" + (f"; chance {by_chance:.1f}{unit}" if by_chance else "")
            found.append({"label": label, "value": f"{value:.1f}{unit}", "note": note})
    seconds = sum(stage.seconds.get("total", 0.0) for stage in stages)
    working, images = sum(stage.working for stage in stages), sum(stage.extracted for stage in stages)
    if images and working > 0:
        found.append(
            {
                "label": "feature extraction",
                "value": f"{images / working:.1f} images/s",
                "note": f"{images:,} image passes, {duration(seconds)} with start-up",
            }
        )
    return found


def summary(artefacts: Artefacts, tables: Sequence[dict[str, Any]]) -> str:
    """One sentence that says what was trained and scored."""

    parts = [counted(len(artefacts.section("runs")), "run")]
    if artefacts.section("ensembles"):
        parts.append(counted(len(artefacts.section("ensembles")), "ensemble"))
    return f"{' and '.join(parts)} on {counted(len(tables), 'test set')}"
