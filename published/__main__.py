"""Lists and fetches published weights: `python -m published list`, `python -m published fetch NAME...`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from core.console import UserError, run_cli
from core.files import read_mapping
from published.registry import ENTRIES, Entry, File, entry_at, lookup
from published.settings import Published

_CONFIG = Path(__file__).resolve().parent.parent / "config.yaml"


def selection(names: Iterable[str]) -> list[tuple[Entry, File]]:
    """The files of the entries called so; `NAME/FILE` is one file of an entry. UserError for an unknown name."""
    chosen: list[tuple[Entry, File]] = []
    for name in names:
        name, _, only = name.partition("/")
        entry = lookup(name)
        files = [file for file in entry.files if only in ("", file.name)]
        if not files:
            raise UserError(f"{name} has no file {only!r}; it has {', '.join(file.name for file in entry.files)}")
        chosen += [(entry, file) for file in files]
    return list(dict.fromkeys(chosen))


def table(folder: str) -> str:
    """All entries as text: name, size, licence, what it is, and where it is or would be."""
    header = ("name", "size", "licence", "what", "architecture", "where")
    rows = [header]
    for entry in ENTRIES.values():
        here = all(entry.file_path(file, folder).is_file() for file in entry.files)
        state = "" if here else " (by hand)" if entry.files[0].address is None else " (to fetch)"
        size = "unknown" if entry.size is None else f"{entry.size / 1e6:.0f} MB"
        place = entry.path(folder) + state
        rows.append((entry.name, size, entry.licence, entry.what, entry.architecture or "-", place))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _fetch(args: argparse.Namespace) -> None:
    from published.download import LOCK_FILE, fetch

    config = args.config or _CONFIG
    published, used = _section(args)
    folder, mirror = args.folder or published.folder, args.mirror or published.mirror
    files = selection(ENTRIES if args.all else args.names or used)
    if not files:
        print(f"{config} uses no published weights to fetch; `python -m published list` shows what there is")
    problems = []
    for entry, file in files:
        try:
            path = fetch(
                entry,
                file,
                folder=folder,
                lock=args.lock or config.parent / LOCK_FILE,
                mirror=mirror,
                accept=args.accept,
            )
            print(path)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def _section(args: argparse.Namespace) -> tuple[Published, list[str]]:
    """The section `published` in use, and the names of what the configuration uses."""
    from settings import load_settings, used_weights

    if args.settings:
        return Published.model_validate(read_mapping(args.settings, flag="--settings")), []
    settings = load_settings(read_mapping(str(args.config or _CONFIG), flag="--config"), check_files=False)
    entries = [entry_at(path, settings.published.folder) for path in used_weights(settings)]
    return settings.published, [entry.name for entry in entries if entry is not None]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m published", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="show what there is")
    fetching = commands.add_parser("fetch", help="download and verify")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="as listed (default: what the configuration uses)")
    fetching.add_argument("--all", action="store_true", help="everything in the registry")
    fetching.add_argument(
        "--accept", action="store_true", help="take files that changed, and remember them from now on"
    )
    fetching.add_argument("--mirror", help="base address that replaces the publishers' hosts")
    fetching.add_argument(
        "--lock", type=Path, help="file of digests seen (default: published.lock.json beside the configuration)"
    )
    for command in (listing, fetching):
        command.add_argument("--folder", help="where weights are kept (default: published.folder of the configuration)")
        group = command.add_mutually_exclusive_group()
        group.add_argument("--config", type=Path, help="configuration in use (default: config.yaml of this repository)")
        group.add_argument("--settings", help="the section `published` instead: JSON, or a JSON or YAML file")
    args = parser.parse_args(argv)
    if args.command == "list":
        print(table(args.folder or _section(args)[0].folder))
    else:
        _fetch(args)


if __name__ == "__main__":
    run_cli(main)
