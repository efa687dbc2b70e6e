"""What the workflow finds out about the machine it runs on, without importing torch."""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SNAKEMAKE_COMMAND = "THREESHNET_SNAKEMAKE_COMMAND"

_NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")
_claimed: list[object] = []


def gpu_present() -> bool:
    """Whether an NVIDIA driver on this machine lists a GPU."""
    return any(_NVIDIA_DEVICES.glob("*"))


def claim_gpu() -> None:
    """Let this process see one GPU only, one that no other job of this user holds, until it ends.

    Snakemake counts GPUs but does not say which one a job has. Call this before CUDA starts. Nothing happens where a
    cluster has already chosen, where there are fewer than two GPUs, or where all are taken: then CUDA's order decides.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "SLURM_JOB_ID" in os.environ or "KUBERNETES_SERVICE_HOST" in os.environ:
        return
    devices = [str(k) for k in range(len(list(_NVIDIA_DEVICES.glob("*"))))] if visible is None else visible.split(",")
    if len(devices) < 2:
        return
    for device in devices:
        path = Path(tempfile.gettempdir(), f"threeshnet-{os.getuid()}-gpu-{device}.lock")
        handle = path.open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            continue
        # The lock lasts as long as the file is open; the system closes it however the process ends.
        _claimed.append(handle)
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        return


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
