"""A `python` whose `-m MODULE` is a fork of a process that has imported torch: the import is most of what a small job costs.

A job is a process as any other, in its folder and environment, with its own streams and exit status; only that some libraries are
imported, none of ours among them. Whatever is asked of this `python` beside `-m` is done by the real one. Jobs that are to be killed
are started by the real one altogether (`Workflow.start`).
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PRELOADED = ("torch", "torch.nn.functional", "numpy", "pyarrow.parquet", "safetensors.torch", "PIL.Image")

# Without `site`: it is started for every job.
_CLIENT = """\
import json, os, socket, sys
real, address, *arguments = sys.argv[1:]
if arguments[:1] != ["-m"] or arguments[1] == "snakemake":
    os.execv(real, [real, *arguments])
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(address)
    socket.send_fds(connection, [b"."], [0, 1, 2])
    request = {"arguments": arguments[1:], "cwd": os.getcwd(), "env": dict(os.environ)}
    connection.sendall(json.dumps(request).encode() + b"\\n")
    answer = connection.makefile().readline()
sys.exit(int(answer or 1))
"""


class Jobs:
    """The process that jobs are forks of. `python`: what starts them, the only program in its folder."""

    def __init__(self, preloaded: Sequence[str] = PRELOADED) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="jobs."))
        self.python = self._folder / "python"
        client, address = self._folder / "client.py", self._folder / "socket"
        client.write_text(_CLIENT)
        self.python.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -IS "{client}" "{sys.executable}" "{address}" "$@"\n'
        )
        self.python.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(address))
        listener.listen(64)
        with listener:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listener.fileno()), *preloaded],
                stdin=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """Ends the process and the jobs that are left."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder)


def serve(listener: socket.socket, preloaded: Sequence[str]) -> None:
    """Fork for each connection, until whoever started this is gone. Returns in a process that is to be the job."""
    parent, own = os.getppid(), list(sys.path)
    listener.settimeout(1.0)
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        for name in preloaded:  # at the first one's expense: many tests start no job
            importlib.import_module(name)
        while _reaped():
            pass
        if os.fork() == 0:
            listener.close()
            connection.setblocking(True)
            return _accompany(connection, own)
        connection.close()
    sys.exit()


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def become(request: dict, streams: Sequence[int]) -> None:
    """What a new process finds: its three streams, its folder, its variables."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])


def _accompany(connection: socket.socket, path: list[str]) -> None:
    """Start the job in a process of its own, and say how it ended."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
        os._exit(0)
    connection.close()
    become(request, streams)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    # As `python -m` finds them at its start.
    here = [] if os.environ.get("PYTHONSAFEPATH") else [request["cwd"]]
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [*here, *given, *path]
    sys.argv = request["arguments"]


if __name__ == "__main__":
    number, *names = sys.argv[1:]
    serve(socket.socket(fileno=int(number)), names)
    # A job from here on, which ends as programs do.
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
