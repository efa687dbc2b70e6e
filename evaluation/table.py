"""The results as tables: as text for the terminal, as Markdown, LaTeX and CSV for papers and spreadsheets.

`python -m evaluation.table --results results` (with `--config` to show exactly what a configuration asks for, with
published results where a test set is declared to be a benchmark), or `python -m evaluation.table PATH/metrics.json ...`.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import layout
from core.console import UserError, run_cli
from core.files import atomic_path
from core.flags import add_mapping, add_results, command
from core.scores import CUTOFFS, RECALLS
from evaluation.published import IMAGES, PRINTED, PUBLISHED

COLUMNS = tuple(f"R@{k}" for k in CUTOFFS)
ECCV_COLUMNS = ("mAP@R", "R-P", "R@1")
#: Where a block's numbers are in a metrics file: two directions, the metrics of each, and whether rSum follows.
LAYOUTS = {
    "recall": (("i2t", "t2i"), RECALLS, True),
    "folds": (("i2t", "t2i"), RECALLS, True),
    "cxc": (("i2t", "t2i"), RECALLS, True),
    "cxc_intra": (("i2i", "t2t"), RECALLS, False),
    "eccv": (("i2t", "t2i"), ("map_at_r", "r_precision", "r1"), False),
}
DIRECTIONS = {
    "i2t": "image -> text",
    "t2i": "text -> image",
    "i2i": "image -> image",
    "t2t": "text -> text",
}
BENCHMARKS = {"coco": "MS-COCO", "flickr30k": "Flickr30K"}
FORMATS = {".csv": "csv", ".md": "markdown", ".tex": "latex", ".txt": "text"}


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

    `values` are six metrics and, in some blocks, rSum (None: unknown); `bounds` their intervals, none or as many.
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


def metrics_path(results: str | os.PathLike[str], system: str, testset: str, ensemble: bool) -> Path:
    """Where the workflow puts the metrics of a run or an ensemble on a test set."""
    return Path((layout.ensemble_metrics if ensemble else layout.metrics)(results, system, testset))


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
            path = metrics_path(results, system, testset, ensemble)
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


def _line(system: str, kind: str, name: str, scores: dict[str, Any]) -> Line:
    """A block's numbers from the part of a metrics file that holds them."""
    directions, metrics, with_sum = LAYOUTS[name]
    intervals = scores.get("intervals") or {}
    places = [(direction, metric) for direction in directions for metric in metrics]
    line = Line(
        system,
        kind,
        [scores[direction][metric] for direction, metric in places],
        [intervals[direction][metric] for direction, metric in places] if intervals else [],
    )
    if with_sum:
        line.values.append(scores["rsum"])
        if intervals:
            line.bounds.append(intervals["rsum"])
    return line


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
    size = f"{metrics['images']} images, {metrics['captions']} captions"
    if name == "folds":
        folds = metrics["folds"]
        return f"{place}: mean of {folds['count']} folds of {folds['images_per_fold']} images"
    protocols = {
        "recall": "",
        "cxc": "Crisscrossed Captions, ",
        "cxc_intra": "Crisscrossed Captions, ",
        "eccv": "ECCV Caption, ",
    }
    return f"{place}: {protocols[name]}{size}"


def _published(name: str, benchmark: str | None, metrics: dict[str, Any]) -> list[Line]:
    """Published lines of a block, if ours are comparable: as many images, and for the folds five of 1,000."""
    folds = metrics.get("folds") or {}
    same = metrics["images"] == IMAGES.get(benchmark)
    if name == "folds":
        same = same and (folds["count"], folds["images_per_fold"]) == (5, 1000)
    rows = [row for row in PUBLISHED if same and (row.benchmark, row.block) == (benchmark, name)]
    return [Line(row.system, "published", _placed(row.values), source=row.source) for row in rows]


def _placed(values: Sequence[float | None]) -> list[float | None]:
    """Published values under the columns of ours, None where a source does not print one."""
    each = len(PRINTED)
    ways = [dict(zip(PRINTED, values[start : start + each], strict=True)) for start in (0, each)]
    return [way.get(k) for way in ways for k in CUTOFFS] + list(values[2 * each :])


def blocks_of(entries: Sequence[Entry]) -> list[Block]:
    """All blocks, test set by test set: published results, ours, and for the whole test set the controls and chance."""
    blocks = []
    for testset in dict.fromkeys(entry.testset for entry in entries):
        group = [entry for entry in entries if entry.testset == testset and entry.metrics]
        for name in LAYOUTS:
            having = [(entry, _parts(entry.metrics)[name]) for entry in group if name in _parts(entry.metrics)]
            if not having:
                continue
            first = having[0][0]
            lines = _published(name, first.benchmark, first.metrics)
            for entry, scores in having:
                lines.append(_line(entry.system, "ensemble" if entry.ensemble else "run", name, scores))
            if name == "recall":
                for entry, _ in having:
                    if control := entry.metrics.get("control"):
                        lines.append(_line(entry.system, "control", name, control))
                if chance := first.metrics.get("chance"):
                    lines.append(_line("chance", "chance", name, chance))
            blocks.append(Block(testset, name, _title(name, testset, first.benchmark, first.metrics), lines))
    return blocks


def _cells(values: Sequence[float | None], missing: str = "-") -> list[str]:
    return [missing if value is None else f"{value:.1f}" for value in values]


def format_table(entries: Sequence[Entry]) -> str:
    """The table as text: per test set its systems with their folds and protocols, then the controls and chance.

    The interval at the end of a line is that of rSum.
    """
    blocks = {(block.testset, block.name): block for block in blocks_of(entries)}
    lines: list[tuple[str, list[str], str] | str] = []
    for testset in dict.fromkeys(entry.testset for entry in entries):
        own = [blocks[testset, name] for name in LAYOUTS if (testset, name) in blocks]
        lines.append(own[0].title if own else testset)
        systems = [(line.system, "published") for block in own for line in block.lines if line.kind == "published"]
        systems += [
            (entry.system, "ensemble" if entry.ensemble else "run") for entry in entries if entry.testset == testset
        ]
        systems += (
            [(line.system, line.kind) for line in own[0].lines if line.kind in ("control", "chance")] if own else []
        )
        for system, kind in dict.fromkeys(systems):
            label = {
                "run": system,
                "chance": system,
                "control": f"control: {system}, images shuffled",
            }.get(kind, f"{system} ({kind})")
            found = {b.name: line for b in own for line in b.lines if (line.system, line.kind) == (system, kind)}
            if "recall" not in found:
                lines.append((f"  {label}", [] if found else ["not computed"], ""))
            for block in own:
                if line := found.get(block.name):
                    below = {
                        "recall": f"  {label}",
                        "folds": f"    {block.title.split(': ')[-1]}",
                        "cxc": "    CxC",
                        "cxc_intra": "    CxC: image -> image, text -> text",
                        "eccv": f"    ECCV Caption: {', '.join(ECCV_COLUMNS)}",
                    }[block.name]
                    bounds = line.bounds[-1] if LAYOUTS[block.name][2] and line.bounds else None
                    lines.append(
                        (below, _cells(line.values), f"  [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")
                    )
    width = max([len(line[0]) for line in lines if not isinstance(line, str)] + [10]) + 2
    intervals = any(line[2] for line in lines if not isinstance(line, str))
    header = [
        " " * width + f"{'  image -> text':<{7 * len(COLUMNS)}} text -> image",
        " " * width
        + "".join(f"{name:>7}" for name in (*COLUMNS, *COLUMNS))
        + f"{'rSum':>8}"
        + ("  95 % interval" if intervals else ""),
    ]
    body = []
    for line in lines:
        if isinstance(line, str):
            body += ["", line]
            continue
        label, numbers, bounds = line
        if len(numbers) < 2:
            body.append(f"{label:<{width}}  {''.join(numbers)}".rstrip())
        else:
            metrics, total = numbers[: 2 * (len(numbers) // 2)], numbers[2 * (len(numbers) // 2) :]
            shown = "".join(f"{value:>7}" for value in metrics) + "".join(f"{value:>8}" for value in total)
            body.append(f"{label:<{width}}" + shown + bounds)
    return "\n".join(header + body) + "\n"


def _column_names(name: str) -> list[str]:
    return [*(ECCV_COLUMNS if name == "eccv" else COLUMNS)] * 2 + (["rSum"] if LAYOUTS[name][2] else [])


def _shown(block: Block) -> list[Line]:
    return [line for line in block.lines if line.kind not in ("control", "chance")]


def _label(line: Line, sources: list[str]) -> str:
    if line.kind != "published":
        return line.system + (" (ensemble)" if line.kind == "ensemble" else "")
    if line.source not in sources:
        sources.append(line.source)
    return f"{line.system} (published [{sources.index(line.source) + 1}])"


def _interval_cells(line: Line) -> list[str]:
    cells = [f"[{low:.1f}, {high:.1f}]" for low, high in line.bounds]
    return cells + [""] * (len(line.values) - len(cells))


def format_markdown(entries: Sequence[Entry]) -> str:
    """One Markdown table per block in the field's layout, intervals in a line of their own below each system."""
    text, sources = [], []
    for block in blocks_of(entries):
        heads = [DIRECTIONS[direction].replace("->", "→") for direction in LAYOUTS[block.name][0]]
        names = _column_names(block.name)
        each = len(LAYOUTS[block.name][1])
        full = [f"{heads[k // each]} {name}" if k < 2 * each else name for k, name in enumerate(names)]
        text += [f"### {block.title}", "", "| | " + " | ".join(full) + " |", "|---|" + "---:|" * len(names)]
        for line in _shown(block):
            text.append(f"| {_label(line, sources)} | " + " | ".join(_cells(line.values, "")) + " |")
            if line.bounds:
                text.append("| 95 % interval | " + " | ".join(_interval_cells(line)) + " |")
        text.append("")
    text += [f"[{number}] {source}  " for number, source in enumerate(sources, 1)]
    return "\n".join(text).rstrip() + "\n"


def _tex(text: str) -> str:
    escapes = {"\\": r"\textbackslash{}", "∞": r"$\infty$", "%": r"\%", "->": r"$\to$", "→": r"$\to$"}
    escapes |= {character: "\\" + character for character in "_&#${}"}
    pieces, place = [], 0
    while place < len(text):
        key = next((key for key in escapes if text.startswith(key, place)), text[place])
        pieces.append(escapes.get(key, key))
        place += len(key)
    return "".join(pieces)


def format_latex(entries: Sequence[Entry]) -> str:
    """One LaTeX `tabular` per block (package booktabs) in the field's layout, intervals small below each system."""
    text, sources = ["% needs \\usepackage{booktabs}"], []
    for block in blocks_of(entries):
        names, each = _column_names(block.name), len(LAYOUTS[block.name][1])
        heads = " & ".join(rf"\multicolumn{{{each}}}{{c}}{{{_tex(DIRECTIONS[d])}}}" for d in LAYOUTS[block.name][0])
        text += [
            "",
            rf"\begin{{tabular}}{{l*{{{len(names)}}}{{r}}}}",
            r"\toprule",
            rf"\multicolumn{{{len(names) + 1}}}{{l}}{{{_tex(block.title)}}} \\",
            " & " + heads + (" & " if LAYOUTS[block.name][2] else "") + r" \\",
            rf"\cmidrule(lr){{2-{each + 1}}} \cmidrule(lr){{{each + 2}-{2 * each + 1}}}",
            " & " + " & ".join(map(_tex, names)) + r" \\",
            r"\midrule",
        ]
        for line in _shown(block):
            text.append(_tex(_label(line, sources)) + " & " + " & ".join(_cells(line.values, "--")) + r" \\")
            if line.bounds:
                cells = [rf"{{\scriptsize {cell}}}" if cell else "" for cell in _interval_cells(line)]
                text.append(r"{\scriptsize 95\,\% interval} & " + " & ".join(cells) + r" \\")
        text += [r"\bottomrule", r"\end{tabular}"]
    text += [""] + [rf"% [{number}] {source}" for number, source in enumerate(sources, 1)]
    return "\n".join(text).rstrip() + "\n"


def format_csv(entries: Sequence[Entry]) -> str:
    """One row per block and system, controls and chance too; every metric with the bounds of its interval."""
    names = [
        f"{direction}_{metric}"
        for name in ("recall", "cxc_intra", "eccv")
        for direction in LAYOUTS[name][0]
        for metric in LAYOUTS[name][1]
    ]
    names = [*dict.fromkeys(names), "rsum"]
    head = ["testset", "protocol", "system", "kind"]
    head += [name + suffix for name in names for suffix in ("", "_low", "_high")] + ["source"]
    rows = []
    for block in blocks_of(entries):
        directions, metrics, with_sum = LAYOUTS[block.name]
        places = [f"{direction}_{metric}" for direction in directions for metric in metrics] + ["rsum"] * with_sum
        for line in block.lines:
            row = {"testset": block.testset, "protocol": block.name, "system": line.system, "kind": line.kind}
            row |= {place: round(v, 4) for place, v in zip(places, line.values, strict=True) if v is not None}
            for place, (low, high) in zip(places, line.bounds, strict=False):
                row |= {f"{place}_low": round(low, 4), f"{place}_high": round(high, 4)}
            rows.append(row | {"source": line.source})
    file = io.StringIO()
    writer = csv.DictWriter(file, [name for name in head if any(name in row for row in rows)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


FORMATTERS = {"text": format_table, "markdown": format_markdown, "latex": format_latex, "csv": format_csv}


def write_tables(
    *,
    metrics: Sequence[str],
    results: str | None,
    config: dict[str, Any] | None,
    format: str | None,
    out: Sequence[str],
) -> None:
    """Write the table of these files, or of all that lie in `results`, to the files `out` or to the terminal."""
    if bool(results) == bool(metrics):
        raise UserError("give either --results DIR or one or more metrics.json files")
    if config is not None and not results:
        raise UserError("--config needs --results DIR")
    formats = {path: format or FORMATS.get(Path(path).suffix) for path in out}
    if unknown := [path for path, name in formats.items() if name is None]:
        raise UserError(f"--out {unknown[0]}: give it one of the suffixes {', '.join(FORMATS)}, or give --format")
    if config is not None:
        entries = configured_entries(results, config)
    elif results:
        root = glob.escape(results)
        patterns = (layout.metrics(root, "*", "*"), layout.ensemble_metrics(root, "*", "*"))
        entries = found_entries([Path(path) for pattern in patterns for path in sorted(glob.glob(pattern))])
    else:
        entries = found_entries(metrics)
    if not entries:
        raise UserError(f"no metrics under {results}: run the evaluation first (snakemake --cores N evaluate)")
    for entry in {entry.testset: entry for entry in entries if entry.benchmark and entry.metrics}.values():
        if entry.metrics["images"] != IMAGES[entry.benchmark]:
            print(
                f"note: no published results are shown for {entry.testset}: it has {entry.metrics['images']} images, "
                f"{BENCHMARKS[entry.benchmark]}'s test set has {IMAGES[entry.benchmark]}",
                file=sys.stderr,
            )
    for path, name in formats.items():
        with atomic_path(path) as temporary:
            temporary.write_text(FORMATTERS[name](entries), encoding="utf-8")
    if not out:
        sys.stdout.write(FORMATTERS[format or "text"](entries))


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("evaluation.table", __doc__)
    parser.add_argument("metrics", nargs="*", help="metrics.json files, if --results is not given")
    add_results(parser, required=False)
    add_mapping(parser, "--config", "show what this configuration asks for")
    parser.add_argument(
        "--format", choices=FORMATTERS, help="default: by the suffix of --out (.csv .md .tex .txt), or text"
    )
    parser.add_argument("--out", nargs="+", default=[], help="files to write instead of the terminal")
    write_tables(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
