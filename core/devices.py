"""The one way to a device: which GPU a job has, threads, and how float32 is multiplied. torch is imported where it is needed."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import tempfile
from pathlib import Path

from core.console import UserError

_NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")
_claimed: list[object] = []
# Of <malloc.h>: M_ARENA_MAX, M_MMAP_THRESHOLD (its largest) and M_TRIM_THRESHOLD.
_KEEPING = {-8: 1, -3: 32 << 20, -1: 1 << 30}
_FLOAT32_ERROR = 1e-5  # of a product of 1,024 terms, relative to the largest; bfloat16 is off by 1e-3


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


def open_device(name: str = "auto", *, threads: int | None = None) -> tuple[str, str]:
    """Make a device ready, before anything else is asked of torch: (torch device, the same in words).

    Args:
        name: "auto" (a GPU if there is one, see `claim_gpu`), "cpu", "cuda" or "cuda:N".
        threads: of torch on the CPU; None: torch's own number.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        claim_gpu()
    import torch

    if threads is not None:
        torch.set_num_threads(max(1, threads))
    return pick_device(name)


def pick_device(name: str) -> tuple[str, str]:
    """`open_device` for who needs no preparation."""
    import torch

    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return "cpu", "cpu"
    if device.type != "cuda" or not available or (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; choose auto or cpu"
        )
    return str(device), torch.cuda.get_device_name(device)


def allow_tf32(allowed: bool) -> None:
    """Let a GPU round the factors of float32 products, or not: torch's own choice is yes for convolutions, no for the rest."""
    import torch

    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def full_float32(device: str) -> None:
    """Multiply float32 matrices in full and at full speed from here on."""
    import torch

    torch.set_float32_matmul_precision(matmul_precision(device))


def keep_freed_memory() -> None:
    """Have the C library keep what a network's activations free for those of the next layer, until this process ends.

    glibc gives large blocks back to the system, which zeroes each page that is asked for again, and gives threads heaps of 64 MiB
    that are too small for them. With one heap that is never cut, captions are embedded in 7 % less CPU time on two threads. Other
    C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, value in _KEEPING.items() if mallopt else ():
        mallopt(option, value)


def matmul_precision(device: str) -> str:
    """What `torch.set_float32_matmul_precision` should be given for full float32 at full speed on this device.

    On a CPU torch asks MKL, which on those of other makers than Intel leaves AVX-512 unused: oneDNN is twice as fast there (AMD EPYC
    9005: 210 against 100 GFLOPS a core). torch takes oneDNN if lower precision is allowed ("medium"); it then rounds to
    bfloat16 on CPUs with units for that (AMX) and computes in float32 on all others. So it is allowed only where a trial shows
    float32.
    """
    import torch

    return _cpu_precision() if torch.device(device).type == "cpu" else "highest"


@functools.cache
def _cpu_precision() -> str:
    import torch

    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1024, 1024, generator=generator) for _ in range(2))
    try:
        torch.set_float32_matmul_precision("medium")
        found = a @ b
    finally:
        torch.set_float32_matmul_precision(before)
    exact = a.double() @ b.double()
    return "medium" if (found - exact).abs().max() < _FLOAT32_ERROR * exact.abs().max() else "highest"
