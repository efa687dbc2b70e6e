"""Jobs end with the workflow that started them: neither an interrupted nor a killed Snakemake leaves them running."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType

LEADER = "THREESHNET_LEADER"  # the process of Snakemake, as `_name` says it


def lead_jobs() -> None:
    """In Snakemake's process: let jobs know who leads them, and end them when the user interrupts it.

    A terminal's Ctrl-C reaches jobs by itself, an interrupt of Snakemake's process alone (`kill -INT`) does not: Snakemake
    would wait for them.
    """
    os.environ[LEADER] = _name(os.getpid())
    end_jobs_on(signal.SIGINT)


def end_jobs_on(number: int) -> None:
    """Let a signal to this process ask its jobs to end (SIGTERM) before it does what it did."""
    before = signal.getsignal(number)

    def end_jobs(number: int, frame: FrameType | None) -> None:
        import psutil

        for job in psutil.Process().children(recursive=True):
            try:
                job.terminate()
            except psutil.NoSuchProcess:
                continue
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    # Ignored it stays: a shell's background commands are not to be interrupted.
    if before not in (None, signal.SIG_IGN) and threading.current_thread() is threading.main_thread():
        signal.signal(number, end_jobs)


def follow_leader(seconds: float = 1.0) -> None:
    """In a job: be asked to end (SIGTERM) once the Snakemake that started it is gone; looked at so often.

    A command that is started by hand, or on another machine, has no leader.
    """
    leader = os.environ.get(LEADER, "")
    pid, _, rest = leader.partition(" ")
    if pid.isdigit() and rest.endswith(_place()):
        threading.Thread(target=_follow, args=(leader, int(pid), seconds), name="follow leader", daemon=True).start()


def _follow(leader: str, pid: int, seconds: float) -> None:
    while _name(pid) == leader:
        time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGTERM)


def _name(pid: int) -> str:
    """A process that runs, so that no other is taken for it: neither a later one of this number nor one elsewhere."""
    return f"{pid} {_start(pid)} {_place()}"


def _start(pid: int) -> str:
    """When a process started, in the machine's ticks; "ended" if it has, "" where this cannot be known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "ended"
    except PermissionError:
        pass  # it runs, as somebody else
    try:
        # Behind the command's name, which may hold anything: the state, and the start as 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""  # not Linux
    return "ended" if fields[0] == "Z" else fields[19]


def _place() -> str:
    """Where numbers of processes mean what they mean here: the machine, and the container in it."""
    try:
        return f"{os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    except OSError:
        return socket.gethostname()
