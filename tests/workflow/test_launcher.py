"""The launcher of Snakemake, after a wait that was broken off."""

import os
import signal

import pytest

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
