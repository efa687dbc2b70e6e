"""What every command line of the pipeline shares: mistakes of users, and progress in terminals and logs."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from core.jobs import follow_leader

T = TypeVar("T")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_SUCH_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip


class UserError(Exception):
    """A mistake in the user's data or settings. The message names the value, the place and the fix; no traceback is shown."""


def first_line(error: Exception) -> str:
    """What another program's error says, without the rest of it."""
    return (str(error).strip().splitlines() or ["no details"])[0]


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError`, a full disk or a path that cannot be read or written ends it with its message on
    stderr and exit status 1; an interrupt (Ctrl-C) with status 130 and no traceback. Who stops reading its output ends it quietly.

    As a job it ends with the workflow that started it.
    """
    follow_leader()
    atexit.register(_leave_objects)
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # as wanted: a traceback would look like a fault
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(1)
        # Of a rename the target is what somebody asked for.
        place = error.filename2 or error.filename
        if error.errno in _NO_SUCH_PLACE and isinstance(place, str | os.PathLike):
            print(f"error: {place} cannot be read or written ({error.strerror}); give another path, or see to its permissions",
                  file=sys.stderr)  # fmt: skip
            sys.exit(1)
        if error.errno not in _FULL:
            raise
        place = f" for {error.filename}" if error.filename else ""
        print(
            f"error: the disk is full{place} ({error.strerror}); make room and start again: finished parts are kept",
            file=sys.stderr,
        )
        sys.exit(1)


def _nobody_reads() -> bool:
    """Whether what reads this command's output has ended, as `head` does; nothing more is then written to it."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if ended := any(event & select.POLLERR for _, event in output.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ended


def _leave_objects() -> None:
    """Spare an interpreter that ends from going through all of torch's objects once more: a quarter of what a start costs."""
    if "triton" not in sys.modules:  # whose bindings would take what is left for leaks, and print them
        gc.freeze()


def progress(iterable: Iterable[T], *, total: int | None = None, desc: str = "", unit: str = "it") -> Iterator[T]:
    """Iterate with a progress bar: live in a terminal, one plain line every ten seconds in a log file."""
    from tqdm import tqdm

    live = sys.stderr.isatty()
    bar = tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        file=sys.stderr if live else _LineWriter(),
        mininterval=0.1 if live else 10.0,
        # Without `miniters` tqdm would adapt it to the first (slow) iterations and then stay silent for long.
        miniters=None if live else 1,
        ascii=not live,
        dynamic_ncols=live,
    )
    yield from bar


class _LineWriter:
    """Turns tqdm's carriage-return redraws into whole lines, so that a log stays readable."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
