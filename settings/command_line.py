"""Snakemake's command line, looked at before Snakemake reads it: of a configuration that is not there or broken it shows a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from core.console import UserError
from settings.given import check_readable, values_of


def check_command_line(words: Sequence[str]) -> None:
    """End the program with one line per mistake in what `--configfile` and `--config` are given, if there is any."""
    lines = [*_files(values_of(words, "--configfile", "--configfiles")), *_pairs(values_of(words, "--config", "-C"))]
    if lines:
        print("\n".join(f"error: {line}" for line in lines), file=sys.stderr)
        sys.exit(1)


def _files(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if not os.path.isfile(path):
            pipe = (
                "is a pipe or a device, and is read more than once: write a file"
                if os.path.exists(path)
                else "does not exist"
            )
            what = "is a folder" if os.path.isdir(path) else pipe
            yield f"--configfile: {path!r} {what}; correct the path (a target stands before --configfile, as in `snakemake train --configfile FILE`)"
            continue
        try:
            check_readable(path)
        except UserError as error:
            yield f"--configfile: {error}"


def _pairs(pairs: Sequence[str]) -> Iterator[str]:
    for pair in pairs:
        key, given, value = pair.partition("=")
        if not given:
            yield f"--config: {pair!r} is no KEY=VALUE (a target stands before --config)"
        elif "." in key and all(part.isidentifier() for part in key.replace("-", "_").split(".")):
            first, *inside = key.split(".")
            nested = value
            for part in reversed(inside):
                nested = f"{{{part}: {nested}}}"
            yield f"--config: keys have no dots; write --config '{first}={nested}'"
