"""How this machine starts jobs: which Python they use, what Snakemake was called with, which task of a Slurm step they are."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SNAKEMAKE_COMMAND = "THREESHNET_SNAKEMAKE_COMMAND"
REUSE = "THREESHNET_REUSE"
IMAGES_ALONE = "THREESHNET_IMAGES_ALONE"


def join_slurm_step() -> None:
    """Where `srun` started this process as one of several, say so in the variables that torch.distributed reads.

    What is set already (by torchrun in the step, or by hand: MASTER_ADDR, MASTER_PORT) stays.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks < 2 or "LOCAL_RANK" in os.environ or "SLURM_PROCID" not in os.environ:
        return
    one_node = os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1"
    # A port that the job's other steps and other jobs on the node do not take, below those the system gives away.
    port = 15_000 + (int(os.environ["SLURM_JOB_ID"]) * 8 + int(os.environ["SLURM_STEP_ID"])) % 15_000
    found = {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(slurm_tasks_here()),
        "MASTER_ADDR": "127.0.0.1" if one_node else _first_host(os.environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(port),
    }
    for name, value in found.items():
        os.environ.setdefault(name, value)


def slurm_tasks_here() -> int:
    """How many tasks of this process's Slurm step run on this machine; 1 outside of Slurm."""
    # Slurm's short form: `2(x3),1` is [2, 2, 2, 1].
    pairs = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    tasks = [int(tasks) for tasks, nodes in pairs for _ in range(int(nodes or 1))]
    return tasks[int(os.environ.get("SLURM_NODEID", "0"))]


def _first_host(nodelist: str) -> str:
    """The first of `gpu[03-05,7]-ib,login1` is `gpu03-ib`."""
    prefix, number, suffix = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodelist).groups()
    return prefix + (number or "") + suffix


def use_this_interpreter(repository: str) -> None:
    """Make `python -m package.command` in jobs mean this interpreter and this repository's packages.

    So the workflow runs from any folder and without an activated environment. A conda environment that Snakemake activates
    for a job puts itself in front again. On a cluster every job starts Snakemake again, and with it this.
    """
    # `python -m` puts the folder it is started from first: a user's own package `model` or file `settings.py` there would be
    # taken for ours.
    os.environ["PYTHONSAFEPATH"] = "1"
    _prepend("PATH", str(Path(sys.executable).parent))
    _prepend("PYTHONPATH", repository)


def remember_command(configfiles: Sequence[object], snakefile: object, config: Sequence[str] = ()) -> None:
    """Let jobs' messages quote a Snakemake command that works: with what this one was given.

    Args:
        config: `KEY=VALUE` of its command line.
    """
    options = [] if Path("Snakefile").resolve() == Path(str(snakefile)) else ["--snakefile", str(snakefile)]
    options += ["--configfile", *(str(path) for path in configfiles)] if configfiles else []
    options += ["--config", *config] if config else []
    os.environ[SNAKEMAKE_COMMAND] = " ".join(["snakemake --cores all", shlex.join(options)]).rstrip()


def snakemake_command() -> str:
    """The Snakemake command a message should suggest, without targets."""
    return os.environ.get(SNAKEMAKE_COMMAND, "snakemake --cores all")


def remember_force(words: Sequence[str]) -> None:
    """Let jobs know whether Snakemake, called with these words, was told to make something again whatever is there."""
    forced = any(word.startswith("--force") or re.fullmatch(r"-\w*[fFR]\w*", word) for word in words[1:])
    os.environ[REUSE] = "" if forced else "yes"


def may_reuse() -> bool:
    """Whether a job may take what it is to make from where it lies made of the very same: Snakemake starts a job also when its
    inputs were written anew with the content of before. By hand, and when forced, it is made again."""
    return bool(os.environ.get(REUSE))


def remember_images_alone(alone: bool) -> None:
    """Let jobs know whether nothing was asked for that reads captions."""
    os.environ[IMAGES_ALONE] = "yes" if alone else ""


def images_alone() -> bool:
    """Whether nothing was asked for that reads captions: then what is wrong with them stops nothing."""
    return bool(os.environ.get(IMAGES_ALONE))


def snakemake_target(path: object) -> str:
    """How a command names a file of the workflow: one in a bucket by where Snakemake keeps its local copy."""
    return shlex.quote(str(path).replace("s3://", ".snakemake/storage/s3/"))


def _prepend(variable: str, entry: str) -> None:
    entries = [e for e in os.environ.get(variable, "").split(os.pathsep) if e and e != entry]
    os.environ[variable] = os.pathsep.join([entry, *entries])
