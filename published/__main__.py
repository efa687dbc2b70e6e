"""Lists and fetches published weights: `python -m published list`, `python -m published fetch NAME...`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from core.console import UserError, run_cli
from core.files import read_mapping
from core.flags import add_mapping, command
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


def list_weights(*, folder: str | None, config: Path | None, settings: dict[str, Any] | None) -> None:
    """Show what there is."""
    print(table(folder or _section(config, settings)[0].folder))


def fetch_weights(
    *,
    names: Sequence[str],
    all: bool,
    accept: bool,
    mirror: str | None,
    lock: Path | None,
    folder: str | None,
    config: Path | None,
    settings: dict[str, Any] | None,
) -> None:
    """Download and verify."""
    from published.download import LOCK_FILE, fetch

    published, used = _section(config, settings)
    config = config or _CONFIG
    files = selection(ENTRIES if all else names or used)
    if not files:
        print(f"{config} uses no published weights to fetch; `python -m published list` shows what there is")
    place = {"folder": folder or published.folder, "lock": lock or config.parent / LOCK_FILE}
    problems = []
    for entry, file in files:
        try:
            print(fetch(entry, file, **place, mirror=mirror or published.mirror, accept=accept))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def _section(config: Path | None, settings: dict[str, Any] | None) -> tuple[Published, list[str]]:
    """The section `published` in use, and the names of what the configuration uses."""
    from settings import load_settings, used_weights

    if settings is not None:
        return Published.model_validate(settings), []
    whole = load_settings(read_mapping(str(config or _CONFIG), flag="--config"), check_files=False)
    entries = [entry_at(path, whole.published.folder) for path in used_weights(whole)]
    return whole.published, [entry.name for entry in entries if entry is not None]


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("published", __doc__)
    commands = parser.add_subparsers(metavar="command", required=True)
    listing = commands.add_parser("list", help=list_weights.__doc__)
    listing.set_defaults(function=list_weights)
    fetching = commands.add_parser("fetch", help=fetch_weights.__doc__)
    fetching.set_defaults(function=fetch_weights)
    fetching.add_argument("names", nargs="*", metavar="NAME", help="as listed (default: what the configuration uses)")
    fetching.add_argument("--all", action="store_true", help="everything in the registry")
    fetching.add_argument(
        "--accept", action="store_true", help="take files that changed, and remember them from now on"
    )
    fetching.add_argument("--mirror", help="base address that replaces the publishers' hosts")
    fetching.add_argument(
        "--lock", type=Path, help="file of digests seen (default: published.lock.json beside the configuration)"
    )
    for own in (listing, fetching):
        own.add_argument("--folder", help="where weights are kept (default: published.folder of the configuration)")
        group = own.add_mutually_exclusive_group()
        group.add_argument("--config", type=Path, help="configuration in use (default: config.yaml of this repository)")
        add_mapping(group, "--settings", "the section `published` instead")
    options = vars(parser.parse_args(argv))
    options.pop("function")(**options)


if __name__ == "__main__":
    run_cli(main)
