"""What the workflow finds out about the machine it runs on, without importing torch."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SNAKEMAKE_COMMAND = "THREESHNET_SNAKEMAKE_COMMAND"

_NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")


def gpu_present() -> bool:
    """Whether an NVIDIA driver on this machine lists a GPU."""
    return any(_NVIDIA_DEVICES.glob("*"))


def use_this_interpreter(repository: str) -> None:
    """Make `python -m package.command` in jobs mean this interpreter and this repository's packages.

    So the workflow runs from any folder and without an activated environment. A conda environment that Snakemake activates
    for a job puts itself in front again.
    """
    _prepend("PATH", str(Path(sys.executable).parent))
    _prepend("PYTHONPATH", repository)


def remember_configfiles(paths: Sequence[object]) -> None:
    """Let jobs' messages quote a Snakemake command that works: with the configuration files this one was given."""
    options = [shlex.join(["--configfile", *(str(p) for p in paths)])] if paths else []
    os.environ[SNAKEMAKE_COMMAND] = " ".join(["snakemake --cores all", *options])


def snakemake_command() -> str:
    """The Snakemake command a message should suggest, without targets."""
    return os.environ.get(SNAKEMAKE_COMMAND, "snakemake --cores all")


def _prepend(variable: str, entry: str) -> None:
    entries = [e for e in os.environ.get(variable, "").split(os.pathsep) if e and e != entry]
    os.environ[variable] = os.pathsep.join([entry, *entries])
