"""A process that has imported Snakemake once and forks for each start of it: the imports are two thirds of a dry run.

A start is a process as any other, in its folder and its environment; only that its imports are done. It is the program that
`Launcher` starts and talks to; a start that is to be killed, or be the very command of a user, needs none of this. The jobs that it
starts are forks as well (`jobs.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .jobs import Jobs


class Launcher:
    """Snakemake in processes that need not import it. jobs: what starts its jobs; None: this interpreter."""

    def __init__(self, jobs: Jobs | None = None) -> None:
        self._jobs = jobs
        self._process: subprocess.Popen | None = None

    def run(self, arguments: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
        """`python -m snakemake ARGUMENTS`, waited for. `cpu_seconds` is what it used itself."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        with tempfile.TemporaryDirectory(prefix="launcher.") as folder:
            outputs = [str(Path(folder) / name) for name in ("stdout", "stderr")]
            request = {"arguments": arguments, "cwd": str(cwd), "env": env, "outputs": outputs}
            request["python"] = str(self._jobs.python if self._jobs else sys.executable)
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                answer = self._process.stdout.readline()
                assert answer, "the launcher died"
            except BaseException:
                # A test that ran out of time, say: the answer that is still to come must not be taken for the next one's.
                self._kill()
                raise
            code, cpu_seconds = json.loads(answer)
            stdout, stderr = (Path(path).read_text(errors="replace") for path in outputs)
        result = subprocess.CompletedProcess(arguments, code, stdout, stderr)
        result.cpu_seconds = cpu_seconds
        return result

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(60)
            self._process.stdout.close()

    def _kill(self) -> None:
        """The launcher and whatever it has started; the next run starts another."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process = None


def serve() -> None:
    """One request a line, one answer a line."""
    from jobs import become  # beside this program
    from snakemake.cli import get_argument_parser, main

    get_argument_parser()  # which imports the plugins
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        pid = os.fork()
        if pid == 0:
            request = json.loads(line)
            streams = [os.open(os.devnull, os.O_RDONLY)]
            streams += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in request["outputs"]]
            become(request, streams)
            # As `python -m` finds them at its start.
            sys.argv, sys.path[0] = ["snakemake", *request["arguments"]], request["cwd"]
            sys.executable = request["python"]  # which the workflow takes for its jobs
            main()  # which exits
        _, status = os.waitpid(pid, 0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        print(json.dumps([os.waitstatus_to_exitcode(status), seconds]), flush=True)


if __name__ == "__main__":
    serve()
