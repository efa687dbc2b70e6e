"""Write the report: one HTML file that needs nothing beside it and no network; its charts beside it, for papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.console import UserError, run_cli
from core.files import atomic_path
from core.flags import add_mapping, add_results, command

MAX_QUERIES = 24


def write_report(
    *, results: str, stores: str | None, config: dict[str, Any], output: str, seed: int | None, queries: int
) -> None:
    """Write the report of what lies in `results`."""
    if not 0 <= queries <= MAX_QUERIES:
        raise UserError(f"--queries must be 0 to {MAX_QUERIES}, not {queries}")
    if not Path(results).is_dir():
        raise UserError(f"--results: {results} is not a folder")
    seed = seed if seed is not None else int(config.get("seed") or 0)

    from reporting.artefacts import Artefacts
    from reporting.report import build, render

    values = build(Artefacts(Path(results), config, stores or results), queries=queries, seed=seed)
    page = render(values)
    write_charts(values["training"], Path(output).parent / "figures")
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    for warning in values["seen"]:
        print(f"warning: {warning}")
    print(f"report: {output} ({len(page.encode()) / 1e6:.1f} MB)")


def write_charts(training: dict[str, Any], folder: Path) -> None:
    """Each chart of the training section as an SVG file."""
    from reporting.charts import standalone

    for chart in training["charts"]:
        with atomic_path(folder / chart_file(chart["title"])) as temporary:
            temporary.write_text(standalone(chart["svg"], training["legend"]), encoding="utf-8")


def chart_file(title: str) -> str:
    """Of a chart, in the folder of figures."""
    return "-".join(title.lower().split()) + ".svg"


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("reporting.run", __doc__)
    add_results(parser)
    parser.add_argument(
        "--stores",
        help="where {dataset}/features/{feature}.zarr lie: a folder or s3:// address (default: the results folder)",
    )
    add_mapping(parser, "--config", "the whole configuration", required=True)
    parser.add_argument("--output", required=True, help="HTML file to write")
    parser.add_argument("--seed", type=int, help="of the examples that are shown (default: the configuration's)")
    parser.add_argument("--queries", type=int, default=6, help="gallery queries per direction and test set")
    write_report(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
