"""Running Snakemake as a user would, in a folder and a process of its own."""

import copy
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rules.targets import TARGETS

from .jobs import Jobs
from .launcher import Launcher

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
# A copy all the way down: a test that changes one run must not change the other.
TINY["runs"]["grid"] = copy.deepcopy(TINY["runs"]["region"]) | {"visual": "grids"}


class Workflow:
    """A configuration in a folder of its own, and Snakemake started there.

    Not in the checkout: its locks and its memory of past runs belong to whoever works in it.
    """

    def __init__(self, repository: Path, folder: Path, config: dict, launcher: Launcher) -> None:
        self.launcher = launcher
        self.repository = repository
        self.folder = folder
        self.config = config
        self.results = folder / "results"
        self.configfile = folder / "config.yaml"
        (folder / "weights").symlink_to(repository / "weights")
        # What users keep beside their data under the names of our packages must do no harm, to any job of any test.
        for package in repository.glob("*/__init__.py"):
            own = folder / package.parent.name
            own.mkdir(exist_ok=True)
            (own / "__init__.py").write_text("raise ImportError('a package of the user')")

    def command(self, *arguments: str, config: dict | None = None) -> dict:
        """What `subprocess` needs to start Snakemake."""
        content = {"results": "results"} | (self.config if config is None else config)
        self.configfile.write_text(yaml.safe_dump(content))
        # Targets first: --configfile takes all that follows it for files.
        command = [sys.executable, "-m", "snakemake", *arguments, "--cores", "2"]
        command += ["--snakefile", str(self.repository / "Snakefile"), "--configfile", str(self.configfile)]
        # Without the test's interpreter on PATH: the workflow must find its own.
        environment = os.environ | {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        return {"args": command, "cwd": self.folder, "env": environment}

    def run(self, *arguments: str, config: dict | None = None) -> subprocess.CompletedProcess:
        """Snakemake to its end; the result's `cpu_seconds` are its own, without its imports and its jobs."""
        command = self.command(*arguments, config=config)
        return self.launcher.run(command.pop("args")[3:], **command)

    def start(self, *arguments: str, config: dict | None = None) -> subprocess.Popen:
        """The user's command itself in a process group of its own, its output in `snakemake.log`."""
        with (self.folder / "snakemake.log").open("ab") as log:
            return subprocess.Popen(
                **self.command(*arguments, config=config),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell's background command has it ignored, and its children too.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def planned(self, *arguments: str, config: dict | None = None) -> dict[str, int]:
        """Jobs a dry run would start, by rule, without those that only name a target."""
        return jobs_of(self.run("--dry-run", *arguments, config=config))


def jobs_of(result: subprocess.CompletedProcess) -> dict[str, int]:
    """Jobs of a dry run, by rule, without those that only name a target."""
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    if "Nothing to be done" in output:
        return {}
    table = re.search(r"^Job stats:\n.*?\n-+ +-+\n(.*?)\n\n", output, re.M | re.S).group(1)
    jobs = {name: int(count) for name, count in (line.split() for line in table.splitlines())}
    jobs.pop("total")
    return {name: count for name, count in jobs.items() if name not in TARGETS}


@pytest.fixture(scope="session")
def make_workflow(repository, tmp_path_factory):
    """`make_workflow(config)`: a `Workflow` in a folder of its own."""
    jobs = Jobs()
    launcher = Launcher(jobs)

    def make(config: dict) -> Workflow:
        return Workflow(repository, tmp_path_factory.mktemp("workflow"), config, launcher)

    yield make
    launcher.close()
    jobs.close()


@pytest.fixture(scope="session")
def finished(make_workflow):
    """The tiny workflow, run to its end once."""
    workflow = make_workflow(TINY)
    master = workflow.start()
    assert master.wait(900) == 0, (workflow.folder / "snakemake.log").read_text()
    return workflow
