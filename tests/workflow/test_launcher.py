"""The launcher of Snakemake after a wait that was broken off, and what starts its jobs: a job is as by `python -m`."""

import os
import signal
import subprocess
import sys

import pytest

from .jobs import Jobs
from .launcher import Launcher

pytestmark = pytest.mark.workflow


def test_a_broken_wait_leaves_no_answer_for_the_next(tmp_path):
    launcher = Launcher()

    def interrupt(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # the first start imports Snakemake: it takes longer
        with pytest.raises(TimeoutError):
            launcher.run(["--no-such-option"], tmp_path, dict(os.environ))
        version = launcher.run(["--version"], tmp_path, dict(os.environ))
        assert version.returncode == 0 and version.stdout.strip()[0].isdigit()
        assert launcher.run(["--no-such-option"], tmp_path, dict(os.environ)).returncode == 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        launcher.close()


JOB = """
import atexit, os, signal, sys, tabnanny
print(sys.argv[1:], os.getcwd(), sorted(os.environ), __name__, "colorsys" in sys.modules, tabnanny.__doc__ is None)
print(sys.stdin.read(), file=sys.stderr)
atexit.register(print, "the end")
{"stop": lambda: sys.exit(3), "kill": lambda: os.kill(os.getpid(), 9), "fail": lambda: 1 / 0, "": str}[sys.argv[1]]()
"""


def test_a_job_is_what_python_would_have_started(tmp_path):
    """Arguments, folder, environment, streams, status, what is imported from where; and nothing of one job reaches the next."""
    for folder in ("here", "given"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own_job.py").write_text(JOB)
    (tmp_path / "here" / "tabnanny.py").touch()  # a file of the user's, called like one of the library's
    jobs = Jobs(["colorsys"])

    def run(python, *arguments, **variables):
        here = str(tmp_path / "here")
        env = {"PATH": "/usr/bin:/bin", "LC_CTYPE": "C.UTF-8", "PWD": here} | variables
        options = {"cwd": here, "env": env, "input": "asked", "capture_output": True, "text": True}
        return subprocess.run([python, *arguments], **options)

    try:
        for word in ("", "stop", "kill", "fail"):
            for variables in ({"PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path / "given")}, {"A": "b"}):
                one, other = (run(p, "-m", "own_job", word, **variables) for p in (sys.executable, str(jobs.python)))
                assert other.returncode == (one.returncode if word != "kill" else 128 + 9)
                # The list of names ends with whether the library of the test was there at the start.
                assert other.stdout == one.stdout.replace("False", "True", 1)
                assert other.stderr.splitlines()[-1:] == one.stderr.splitlines()[-1:]
        assert run(str(jobs.python), "-c", "print(7)").stdout == "7\n"
        assert "No module named no_job" in run(str(jobs.python), "-m", "no_job").stderr
    finally:
        jobs.close()
