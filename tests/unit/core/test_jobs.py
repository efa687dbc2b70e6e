"""Jobs and the process that leads them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core import jobs

ROOT = Path(__file__).parents[3]
JOB = "import time; from core.console import run_cli; run_cli(lambda: (print('at work', flush=True), time.sleep(60)))"
# Starts a job, as Snakemake does, and waits for it.
LEADER = f"""
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background command has it ignored
from core.jobs import end_jobs_on, lead_jobs
lead_jobs()
end_jobs_on(signal.SIGTERM)
job = subprocess.Popen([sys.executable, "-c", {JOB!r}])
print(job.pid, flush=True)
job.wait()
"""


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends in time; one that nobody has waited for has ended too."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_job_ends_with_its_leader(number):
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    job = int(leader.stdout.readline())
    try:
        assert leader.stdout.readline() == "at work\n"
        leader.send_signal(number)
        assert leader.wait(20) != 0
        assert gone(job)
    finally:
        leader.kill()
        if not gone(job, 0.1):
            os.kill(job, signal.SIGKILL)
        leader.stdout.close()


@pytest.mark.parametrize("leader", ["", "nonsense", "1 123 another machine", f"x {jobs._place()}"])
def test_a_command_without_a_leader_here_follows_none(monkeypatch, leader):
    monkeypatch.setenv(jobs.LEADER, leader)
    started = []
    monkeypatch.setattr(jobs.threading, "Thread", lambda **options: started.append(options))
    jobs.follow_leader()
    assert not started


def test_a_job_that_outlives_its_leader_before_it_looks_ends_too():
    leader = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    environment = os.environ | {jobs.LEADER: f"{leader.stdout.strip()} 123 {jobs._place()}"}
    job = subprocess.run([sys.executable, "-c", JOB], cwd=ROOT, env=environment, capture_output=True, timeout=30)
    assert job.returncode == -signal.SIGTERM
