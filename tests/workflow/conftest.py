"""Running Snakemake as a user would, in a process of its own."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TINY = {
    "datasets": {
        "tiny": {"source": "scenes", "seed": 11, "splits": {"train": 24, "val": 10, "test": 10}, "shards": 2},
    },
    "runs": {
        "region": {
            "dataset": "tiny",
            "visual": "regions",
            "model": {"embed_size": 32, "spatial_size": 8},
            "text": {"pretrained": None, "layers": 1, "hidden_size": 32, "heads": 2, "vocabulary_size": 300},
            "training": {"epochs": 1, "batch_size": 12, "text_lr_factor": 1.0},
        },
    },
    "testsets": {"tiny_test": {"dataset": "tiny", "folds": 5}},
    "ensembles": {"both": {"runs": ["region", "grid"]}},
}
TINY["runs"]["grid"] = copy.deepcopy(TINY["runs"]["region"]) | {"visual": "grids"}


class Workflow:
    """A configuration in a folder, and Snakemake on it."""

    def __init__(self, repository: Path, folder: Path, config: dict) -> None:
        self.repository = repository
        self.folder = folder
        self.config = config
        self.results = folder / "results"

    def run(self, *arguments: str, config: dict | None = None) -> subprocess.CompletedProcess:
        content = (self.config if config is None else config) | {"results": str(self.results)}
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        # Targets come first: --configfile takes every word that follows it.
        command = [sys.executable, "-m", "snakemake", *arguments, "--cores", "2", "--configfile", str(path)]
        # Without the test's interpreter on PATH: the workflow must find its own.
        environment = os.environ | {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=self.repository, env=environment, capture_output=True, text=True, timeout=900
        )

    def planned(self, *arguments: str, config: dict | None = None) -> dict[str, int]:
        """Jobs a dry run would start, by rule."""
        result = self.run("--dry-run", *arguments, config=config)
        output = result.stdout + result.stderr
        assert result.returncode == 0, output
        if "Nothing to be done" in output:
            return {}
        table = re.search(r"^Job stats:\n.*?\n-+ +-+\n(.*?)\n\n", output, re.M | re.S).group(1)
        jobs = {name: int(count) for name, count in (line.split() for line in table.splitlines())}
        jobs.pop("total")
        return {name: count for name, count in jobs.items() if name not in ("all", "features")}


@pytest.fixture(scope="session")
def make_workflow(repository, tmp_path_factory):
    """`make_workflow(config)`: a `Workflow` in a folder of its own."""

    def make(config: dict) -> Workflow:
        return Workflow(repository, tmp_path_factory.mktemp("workflow"), config)

    yield make
    shutil.rmtree(repository / ".snakemake" / "locks", ignore_errors=True)


@pytest.fixture(scope="session")
def finished(make_workflow):
    """The tiny workflow, run to its end once."""
    workflow = make_workflow(TINY)
    result = workflow.run()
    assert result.returncode == 0, result.stdout + result.stderr
    return workflow
