"""A Slurm cluster for the tests of this folder, or a reason to skip them."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

import pytest

from .cluster import Cluster, missing_programs


@pytest.fixture(scope="session")
def cluster():
    """One node with eight CPUs (declared) and one GPU (a file)."""
    if missing := missing_programs():
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurmctld slurmd slurm-client munge")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("no snakemake-executor-plugin-slurm here")
    # Not below pytest's folder: a socket's path may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    try:
        with Cluster(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def no_job_left(cluster):
    """Orphans of one test must not disturb the next."""
    yield
    cluster.cancel_all()
