"""Ending on request: Ctrl-C, a workflow that ends or a cluster that takes the machine back cost no step of training."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from core.console import UserError
from model.parallel import processes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Requested(BaseException):
    """Not an `Exception`: nothing on the way may take it for a failure of its own."""


class Request:
    """Whether this process was asked to end. Within a step weights and optimiser disagree, so that a step is finished first."""

    def __init__(self) -> None:
        self._asked = self._waits = False

    def note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._waits:
            raise _Requested

    def heed(self) -> None:
        """Between two steps: end here if asked to."""
        if self._asked:
            raise _Requested

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that changes neither weights nor optimiser is left wherever it stands."""
        self.heed()
        self._waits = True
        try:
            yield
        finally:
            self._waits = False


@contextlib.contextmanager
def ended_on_request(save: Callable[[], None], run: str) -> Iterator[Request]:
    """Training inside of the block saves its state when asked to end, by SIGINT or SIGTERM.

    One of several processes ends at once, as the others must: what they lost is in the last saved state.

    Raises:
        UserError: it was asked to.
    """
    request = Request()
    listens = processes() == 1 and threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, request.note) for number in _SIGNALS} if listens else {}
    try:
        yield request
    except _Requested:
        save()
        raise UserError(
            f"run {run}: ended on request; its state is saved, and the same command goes on from there"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
