"""The devices of this machine, found without importing torch."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

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
