"""How far the running jobs of a workflow are: `python -m core.progress --results results`, in another terminal.

Jobs write their progress to their logs, on whatever machine they run; this reads the logs and needs no Snakemake.
"""

from __future__ import annotations

import datetime
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core import layout
from core.console import UserError, run_cli
from core.flags import add_results, command
from core.notes import note_lines, spoken

_TAIL = 8192  # bytes of a log's end that are looked at: many progress lines
_BAR = re.compile(
    r"^(?:(?P<desc>.+): )? *\d+%\|[^|]*\| (?P<done>\d+)/(?P<total>\d+) \[[^<\]]*<(?P<left>[^,\]]+), *(?P<rate>[^,\]]+)"
)

_EPOCH = re.compile(r"epoch (?P<epoch>\d+)/(?P<last>\d+)$")
_RATE = re.compile(r" *(?P<number>\d+\.\d+)(?:(?P<seconds>s/\w+)|\w+/s)")  # slower than one a second it is turned


@dataclass(frozen=True)
class Job:
    """A job that is at work, as its log tells."""

    name: str  # rule and wildcards: the log's path
    step: str  # what it counts now: an epoch, say
    done: int
    total: int
    rate: str  # as tqdm writes it, "1.20s/image"
    left: str  # of this step, "05:13"; "?" if unknown
    age: float  # seconds since it last said anything

    def __str__(self) -> str:
        step = f" {self.step}" if self.step else ""
        silent = f", silent for {self.age:.0f} s" if self.age > 30 else ""
        return f"{self.name}:{step} {self.done}/{self.total}, {self.rate}, {self.left} left{self._in_all()}{silent}"

    def _in_all(self) -> str:
        """What is left of a training, of whose epochs the bar counts one; validations are not in it."""
        epoch, rate = _EPOCH.search(self.step), _RATE.fullmatch(self.rate)
        if not epoch or not rate or not float(rate["number"]):
            return ""
        number = float(rate["number"])
        steps = self.total - self.done + (int(epoch["last"]) - int(epoch["epoch"])) * self.total
        seconds = steps * number if rate["seconds"] else steps / number
        return f" of this epoch, {datetime.timedelta(seconds=round(seconds))} of steps in all"


def running_jobs(work: Path, *, silent: float, now: float | None = None) -> list[Job]:
    """The jobs whose last word is that they are at work, by name.

    Args:
        work: folder of logs and benchmarks, see `core.layout`.
        silent: seconds after which a job that says nothing more is taken for killed. now: Unix time.

    Raises:
        UserError: there is no folder of logs.
    """
    logs = Path(layout.log(work, "any")).parent
    if not logs.is_dir():
        raise UserError(f"--results: {logs} does not exist; name the folder `results` of the configuration that runs")
    now = time.time() if now is None else now
    found = []
    for path in sorted(logs.rglob("*.log")):
        name = path.relative_to(logs).with_suffix("").as_posix()
        try:
            written = path.stat().st_mtime
            if now - written > silent or _finished(Path(layout.benchmark(work, name)), written):
                continue
            bar = _last_bar(path)
        except FileNotFoundError:  # a job that starts again removes its log first
            continue
        if bar and not (bar["done"] == bar["total"] and now - written > 30):  # ended: not every job has a benchmark
            step, done, total = bar["desc"] or "", int(bar["done"]), int(bar["total"])
            found.append(Job(name, step, done, total, bar["rate"], bar["left"], now - written))
    return found


def _finished(benchmark: Path, written: float) -> bool:
    """Snakemake writes a job's benchmark when it has ended."""
    return benchmark.exists() and benchmark.stat().st_mtime >= written


def _last_bar(path: Path) -> re.Match[str] | None:
    """The last progress line, unless an error stands below it."""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in reversed(lines):
        if line.startswith(("error:", "Traceback")):
            return None
        if bar := _BAR.match(line):
            return bar
    return None


def follow(*, results: str, every: float | None = None, silent: float = 600.0, once: bool = False) -> None:
    """Print a line per running job, and what jobs note, again and again until interrupted; on a terminal in place.

    Args:
        results: see `running_jobs`. every: seconds between looks; None: 2 on a terminal, 60 elsewhere.
        silent: see `running_jobs`. once: look only once.
    """
    live = sys.stdout.isatty() and not once
    if every is None:
        every = 2.0 if live else 60.0
    for flag, value in (("--every", every), ("--silent", silent)):
        if not value > 0:
            raise UserError(f"{flag} {value:g}: must be above 0")
    told: set[str] = set()
    try:
        while True:
            lines = [str(job) for job in running_jobs(Path(results), silent=silent)] or ["no job reports progress"]
            # In place all of them stay in sight, elsewhere each is told once.
            noted = note_lines(spoken(results, time.time() - silent))
            lines += [line for line in noted if live or line not in told]
            told.update(noted)
            stamp = time.strftime("%H:%M:%S")
            width = shutil.get_terminal_size().columns
            # Home, each line cleared behind its text, and all below: redrawn without flicker.
            text = "\n".join([f"\033[H{stamp}\033[K", *(f"{line[:width]}\033[K" for line in lines)]) + "\n\033[J"
            sys.stdout.write(text if live else "".join(f"{stamp} {line}\n" for line in lines))
            sys.stdout.flush()
            if once:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        return


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("core.progress", __doc__)
    add_results(parser)
    parser.add_argument("--every", type=float, help="seconds between looks (default: 2 on a terminal, 60 elsewhere)")
    parser.add_argument(
        "--silent",
        type=float,
        default=600.0,
        help="seconds after which a job that says nothing is taken for killed (default: %(default)g)",
    )
    parser.add_argument("--once", action="store_true", help="look once and end")
    follow(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
