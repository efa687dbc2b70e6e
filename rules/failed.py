"""What the user reads when the jobs have ended: of those that failed where each log lies and its last lines, and what jobs noted."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core.notes import note_lines, spoken, tells_of_a_fault

LINES = 30  # of each log: a traceback's end or all of a `UserError`
PATIENCE = 3.0  # seconds for all logs: what was killed says nothing
_MENTION = re.compile(r"^\s*log: (.+) \(check log file\(s\) for error details\)$", re.MULTILINE)
# With `--quiet rules` Snakemake leaves the mention out and quotes the command alone.
_COMMAND = re.compile(
    r"> (\S.*\.log'?) 2>&1' (?:returned non-zero exit|died with <Signals\.(?!SIGTERM|SIGINT))", re.MULTILINE
)


def failed_logs(snakemake_log: Path) -> list[Path]:
    """The logs of the jobs that failed, once each, in the order of their failures, out of Snakemake's own log."""
    text = snakemake_log.read_text(encoding="utf-8", errors="replace")
    found = [path for paths in _MENTION.findall(text) for path in paths.split(", ")]
    found += [path for quoted in _COMMAND.findall(text) for path in shlex.split(quoted)]
    return [Path(path) for path in dict.fromkeys(found)]


def show_failures(snakemake_logs: Sequence[str], work: str | Path, since: float) -> None:
    """Print the end of each failed job's log under its path, on stderr.

    Args:
        snakemake_logs: those that Snakemake wrote of itself. work, since: where jobs' logs lie, and when the workflow started: if
            Snakemake tells of none, those that end with an error are meant.
    """
    found = [path for log in snakemake_logs if Path(log).is_file() for path in failed_logs(Path(log))]
    found = found or [one.log for one in spoken(work, since) if one.failed]
    deadline = time.monotonic() + PATIENCE
    for path in dict.fromkeys(found):
        if path.is_file():
            lines = _last_words(path, deadline).splitlines()
            cut = "" if len(lines) <= LINES else f", the last {LINES} of {len(lines)} lines"
            print(f"\n{path}{cut}:", *(f"    {line}" for line in lines[-LINES:]), sep="\n", file=sys.stderr)


def _last_words(path: Path, deadline: float) -> str:
    """A log's text, once it tells of a fault: a job that was asked to end saves its state first, and then says so."""
    while True:
        text = path.read_text(encoding="utf-8", errors="replace")
        if tells_of_a_fault(text) or time.monotonic() > deadline:
            return text
        time.sleep(0.1)


def show_notes(work: str | Path, since: float) -> None:
    """Print what the jobs of this workflow noted: images left out, captions not used. On stderr."""
    if lines := note_lines(spoken(work, since)):
        print("\nnoted by the jobs:", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)
