"""The results as tables: as text for the terminal, as Markdown, LaTeX and CSV for papers and spreadsheets.

`python -m evaluation.table --results results` (with `--config` to show exactly what a configuration asks for, with
published results where a test set is declared to be a benchmark), or `python -m evaluation.table PATH/metrics.json ...`.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import layout
from core.console import UserError, run_cli
from core.files import atomic_path
from core.flags import add_mapping, add_results, command
from evaluation.published import IMAGES
from evaluation.tables import latex, markdown, spreadsheet, text
from evaluation.tables.blocks import BENCHMARKS, configured_entries, found_entries

FORMATTERS = {"text": text.render, "markdown": markdown.render, "latex": latex.render, "csv": spreadsheet.render}
FORMATS = {".csv": "csv", ".md": "markdown", ".tex": "latex", ".txt": "text"}


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
