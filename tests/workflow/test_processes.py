"""How many processes a run trains in is said where the workflow runs, not in its configuration."""

import pytest

from .conftest import TINY

pytestmark = pytest.mark.workflow


def test_processes_come_from_resources(make_workflow):
    """One process a run unless something else is said: tests/workflow/test_plan.py."""
    options = ("--set-resources", "train_model:processes=3")
    result = make_workflow(TINY).run("--dry-run", "--printshellcmds", "train", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("--processes 3 ") == 2  # one for each run
