"""How many processes a run trains in is said where the workflow runs, not in its configuration."""

import pytest

from .conftest import TINY

pytestmark = pytest.mark.workflow


@pytest.mark.parametrize(("options", "count"), [((), 1), (("--set-resources", "train_model:processes=3"), 3)])
def test_processes_come_from_resources(make_workflow, options, count):
    result = make_workflow(TINY).run("--dry-run", "--printshellcmds", "train", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(f"--processes {count} ") == 2  # one for each run
