"""What the workflow finds out about the machine it runs on, without importing torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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


def _prepend(variable: str, entry: str) -> None:
    entries = [e for e in os.environ.get(variable, "").split(os.pathsep) if e and e != entry]
    os.environ[variable] = os.pathsep.join([entry, *entries])
