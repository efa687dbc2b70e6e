"""What every command line of the pipeline shares: mistakes of users, and progress in terminals and logs."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from core.jobs import follow_leader

T = TypeVar("T")


class UserError(Exception):
    """A mistake in the user's data or settings. The message names the value, the place and the fix; no traceback is shown."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` or a full disk ends it with its message on stderr and exit status 1;
    an interrupt (Ctrl-C) with status 130 and no traceback.

    As a job it ends with the workflow that started it.
    """
    follow_leader()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # as wanted: a traceback would look like a fault
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" for {error.filename}" if error.filename else ""
        print(
            f"error: the disk is full{place} ({error.strerror}); make room and start again: finished parts are kept",
            file=sys.stderr,
        )
        sys.exit(1)


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
