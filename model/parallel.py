"""Several processes that train as one: each works on a part of every batch, and what belongs to the whole batch (its
statistics, its embeddings) is put together across them. A process alone passes through unchanged.

The processes are `torch.distributed`'s (torchrun, `accelerate launch`); each must make the same calls in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """The number of this one, from 0; process 0 writes the files."""
    return dist.get_rank() if processes() > 1 else 0


def share(total: int, process: int, processes: int) -> slice:
    """Which of `total` consecutive items are a process's; the numbers of items differ by at most one."""
    return slice(total * process // processes, total * (process + 1) // processes)


def summed(values: Tensor) -> Tensor:
    """The elementwise sum over the processes, in place; `values` has one shape in all of them. Without gradient."""
    if processes() > 1:
        dist.all_reduce(values)
    return values


def everyones(value: Any) -> list[Any]:
    """What each process passes, in their order; anything that can be pickled."""
    found = [value] * processes()
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found


def whole_mean(mean: Tensor, count: int) -> tuple[Tensor, Tensor | int]:
    """The mean over the rows of all processes, and their number, from the mean over this one's `count` rows.

    Without gradient.
    """
    if processes() == 1:
        return mean, count
    sums = summed(torch.cat((mean.flatten() * count, mean.new_tensor([count]))))
    return (sums[:-1] / sums[-1]).view_as(mean), sums[-1]


def gather_batch(rows: Tensor, total: int) -> Tensor:
    """Put the rows (n_r, ...) that the processes hold of a batch together: (total, ...), in order, equal in all.

    Rows of sets (n_r, L_r, E) are padded with zeros to the longest of all processes.

    Each process computes one and the same loss from the result. Going back, its rows' gradient is scaled by the number
    of processes, because parameter gradients are then averaged over them (DistributedDataParallel).
    """
    if processes() == 1:
        return rows
    if rows.dim() == 3:
        longest = torch.tensor(rows.shape[1], device=rows.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        rows = nn.functional.pad(rows, (0, 0, 0, int(longest) - rows.shape[1]))
    return _GatherBatch.apply(rows, total)


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, total: int) -> Tensor:
        ctx.own = share(total, process(), processes())
        # Sums with zeros are exact, and unlike all_gather they allow for parts of unequal size.
        whole = rows.new_zeros(total, *rows.shape[1:])
        whole[ctx.own] = rows
        return summed(whole)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.own] * processes(), None


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm1d over (N, C) rows whose batch statistics, in training mode, run over the rows of all processes.

    Unlike torch.nn.SyncBatchNorm it works on CPUs too, and with a single row in a process.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        if not self.training or processes() == 1:
            return super().forward(rows)
        normal, mean, variance, count = _SharedNorm.apply(rows, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return normal


class _SharedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        own = rows.to(torch.promote_types(rows.dtype, weight.dtype))
        own_variance, own_mean = torch.var_mean(own, dim=0, correction=0)
        mean, count = whole_mean(own_mean, len(own))
        variance, _ = whole_mean(own_variance + (own_mean - mean).square(), len(own))
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(rows, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.addcmul(bias, own - mean, scale * weight).to(rows.dtype), mean, variance, count

    @staticmethod
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, mean, scale, count = ctx.saved_tensors
        gradient, normal = gradient.to(scale.dtype), (rows.to(scale.dtype) - mean) * scale
        # What the statistics pass on is of all rows; the gradients of weight and bias are this process's part.
        own = torch.stack((gradient.sum(0), (gradient * normal).sum(0)))
        by_mean, by_scale = summed(own.clone()) / count
        for_rows = weight * scale * (gradient - by_mean - normal * by_scale)
        return for_rows.to(rows.dtype), own[1], own[0], None
