"""The processes that train as one: which device each has, how they find each other, how they start and end.

torchrun, `srun` (by `core.machine.join_slurm_step`) and `accelerate launch` say in the same variables which process this
is: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.console import UserError
from core.devices import pick_device

if TYPE_CHECKING:
    import torch
    from torch import nn


def launched() -> bool:
    """Whether this is one of the processes that a launcher started."""
    return "LOCAL_RANK" in os.environ


def processes_here() -> int:
    """How many processes on this machine train together."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def connect(device: str, *, batch_size: int) -> torch.device:
    """This process's device; connected with the others, if there are any.

    Args:
        device: "auto" (a CUDA device if there is one), "cpu" or "cuda". batch_size: pairs that the processes share.

    Raises:
        UserError: there is no such device for it, or no pair of a batch.
    """
    import torch
    import torch.distributed as dist

    from model.parallel import processes

    if batch_size < 2:
        raise UserError(f"training.batch_size is {batch_size}; batch statistics and negatives need at least 2")
    place, local = torch.device(pick_device(device)[0]), processes_here()
    if place.type == "cuda":
        if local > torch.cuda.device_count():
            raise UserError(
                f"started as {local} processes, but torch finds {torch.cuda.device_count()} CUDA devices on this machine; "
                "start one process per device (and let each see all of them), or use --device cpu"
            )
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    if batch_size < processes():
        raise UserError(
            f"training.batch_size is {batch_size}, but there are {processes()} processes and each needs a pair; "
            f"start at most {batch_size}"
        )
    return place


def disconnect() -> None:
    """Part from the other processes."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def across_processes(network: nn.Module) -> nn.Module:
    """The network, its gradients averaged over the processes; all start from the weights of process 0."""
    from torch.nn.parallel import DistributedDataParallel

    from model.parallel import processes

    if processes() == 1:
        return network
    # Running statistics are the same in every process, so nothing has to pass them on.
    with warnings.catch_warnings():
        # Newer versions of torch want another name for `broadcast_buffers`, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def launch(module: str, arguments: Sequence[str], processes: int, threads: int) -> None:
    """Become the launcher of so many processes of `python -m module`; does not return."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads // processes)))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "--"]
    os.execv(sys.executable, [sys.executable, *launcher, module, *arguments])


def one_of_several(main: Callable[[], None]) -> None:
    """`main` in a launched process. It ends at once on any error, lest the others wait for it, and with its launcher."""

    def end_with(launcher: int) -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        main()
    except UserError as error:
        print(f"error: process {os.environ['RANK']}: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    else:
        return
    sys.stderr.flush()
    # Not sys.exit: that would wait for threads, and for connections to processes that wait for this one.
    os._exit(1)
