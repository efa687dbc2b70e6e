"""What the user reads when jobs have failed: where each job's log lies, and its last lines."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

LINES = 30  # of each log: a traceback's end or all of a `UserError`
_MENTION = re.compile(r"^\s*log: (.+) \(check log file\(s\) for error details\)$", re.MULTILINE)


def failed_logs(snakemake_log: Path) -> list[Path]:
    """The logs of the jobs that failed, once each, in the order of their failures, out of Snakemake's own log."""
    text = snakemake_log.read_text(encoding="utf-8", errors="replace")
    return [Path(path) for path in dict.fromkeys(p for paths in _MENTION.findall(text) for p in paths.split(", "))]


def show_failures(snakemake_logs: Sequence[str]) -> None:
    """Print the end of each failed job's log under its path, on stderr.

    Args:
        snakemake_logs: those that Snakemake wrote of itself.
    """
    found = [path for log in snakemake_logs if Path(log).is_file() for path in failed_logs(Path(log))]
    for path in dict.fromkeys(found):
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            cut = "" if len(lines) <= LINES else f", the last {LINES} of {len(lines)} lines"
            print(f"\n{path}{cut}:", *(f"    {line}" for line in lines[-LINES:]), sep="\n", file=sys.stderr)
