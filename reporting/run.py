"""Write the report: one HTML file without scripts that needs nothing beside it and no network."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.console import UserError, run_cli
from core.files import atomic_path, read_mapping

MAX_QUERIES = 24


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reporting.run", description=__doc__.split("\n")[0])
    parser.add_argument("--results", required=True, help="the results folder")
    parser.add_argument(
        "--stores",
        help="where {dataset}/features/{feature}.zarr lie: a folder or s3:// address (default: the results folder)",
    )
    parser.add_argument("--config", required=True, help="the whole configuration: JSON, or a JSON or YAML file")
    parser.add_argument("--output", required=True, help="HTML file to write")
    parser.add_argument("--seed", type=int, help="of the examples that are shown (default: the configuration's)")
    parser.add_argument("--queries", type=int, default=6, help="gallery queries per direction and test set")
    args = parser.parse_args()
    if not 0 <= args.queries <= MAX_QUERIES:
        raise UserError(f"--queries must be 0 to {MAX_QUERIES}, not {args.queries}")
    results = Path(args.results)
    if not results.is_dir():
        raise UserError(f"--results: {results} is not a folder")
    config = read_mapping(args.config, flag="--config")

    seed = args.seed if args.seed is not None else int(config.get("seed") or 0)

    from reporting.artefacts import Artefacts
    from reporting.report import build, render

    page = render(build(Artefacts(results, config, args.stores or args.results), queries=args.queries, seed=seed))
    with atomic_path(args.output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"report: {args.output} ({len(page.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_cli(main)
