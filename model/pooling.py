"""Generalised pooling (GPO): the mean of each feature's sorted values, weighted by learnt weights of the rank.

Source: "Learning the best pooling strategy for visual semantic embedding" (VSE-infinity), `lib/modules/aggr/gpo.py`.
The reference runs its GRU once per sample; the weights depend on the sample's length alone, so here it runs once per
distinct length of the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model.layers import at_least_single, sinusoidal_positions

TEMPERATURE = 0.1
# Sorts after every real value. Finite, because it is multiplied with weights of exactly zero.
PADDING_VALUE = 1e30


class GeneralizedPooling(nn.Module):
    """Pools a set of vectors into one. `position_size` is even: the width of the position encoding fed to the GRU."""

    def __init__(self, position_size: int = 32, hidden_size: int = 32) -> None:
        super().__init__()
        self.position_size = position_size
        self.gru = nn.GRU(position_size, hidden_size, batch_first=True, bidirectional=True)
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def weights(self, lengths: Tensor) -> Tensor:
        """(B,) lengths >= 1 -> (B, max(lengths)) floats: each rank's weight, summing to 1, zero beyond the length.

        Lengths kept in host memory avoid a device synchronisation.
        """
        distinct, which = torch.unique(lengths.cpu().long(), return_inverse=True)
        distinct, which = distinct.flip(0), len(distinct) - 1 - which  # longest first, as packing wants
        if int(distinct[-1]) < 1:
            raise ValueError(f"cannot pool a set of {int(distinct[-1])} vectors; every length must be at least 1")
        device, longest = self.score.weight.device, int(distinct[0])
        positions = sinusoidal_positions(longest, self.position_size)
        positions = positions.to(device, self.score.weight.dtype, non_blocking=True)
        if device.type == "cpu" and torch.is_grad_enabled():
            states = _PositionGRU.apply(positions, distinct, self.gru, *self.gru.parameters())
        else:
            states = _run_gru(self.gru, positions, distinct)
        scores = self.score(states.unflatten(2, (2, -1)).mean(dim=2)).squeeze(2)
        beyond = torch.arange(longest) >= distinct[:, None]
        scores = scores.masked_fill(beyond.to(device, non_blocking=True), float("-inf"))
        return torch.softmax(scores / TEMPERATURE, dim=1)[which.to(device, non_blocking=True)]

    def forward(self, inputs: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        """Pool each set.

        Args:
            inputs: (B, L, E) vectors.
            valid: (B, L) bool, which of them belong to the set; in any order, only the set matters.
            lengths: (B,) integers, the row sums of `valid`; best in host memory.

        Returns:
            (B, E) float32 (float64 of float64).
        """
        with torch.autocast(inputs.device.type, enabled=False):
            weights = self.weights(lengths)
            # Sorted ascending with the padding last, rank r of n values (0 = the largest) is at position n - 1 - r.
            last = lengths[:, None].to(weights.device, non_blocking=True) - 1
            rank = last - torch.arange(inputs.shape[1], device=weights.device)
            weights = weights.gather(1, rank.clamp(0, weights.shape[1] - 1)).masked_fill(rank < 0, 0)
            return _SortedSum.apply(at_least_single(inputs).masked_fill(~valid[:, :, None], PADDING_VALUE), weights)


class _SortedSum(torch.autograd.Function):
    """pooled[b, e] = sum_j weights[b, j] * (j-th smallest of inputs[b, :, e])."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weights: Tensor) -> Tensor:
        columns = inputs.transpose(1, 2).contiguous()
        if columns.device.type == "cpu":
            # NumPy's vectorised sort is about ten times faster than torch's on a CPU.
            order = torch.from_numpy(np.argsort(columns.numpy(), axis=2)) if ctx.needs_input_grad[0] else None
            columns.numpy().sort(axis=2)
        else:
            columns, order = columns.sort(dim=2)
        ctx.save_for_backward(columns, order, weights)
        return torch.einsum("bej,bj->be", columns, weights)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        columns, order, weights = ctx.saved_tensors
        for_inputs = for_weights = None
        if ctx.needs_input_grad[0]:
            spread = gradient[:, :, None] * weights[:, None, :]
            for_inputs = torch.empty_like(spread).scatter_(2, order, spread).transpose(1, 2)
        if ctx.needs_input_grad[1]:
            for_weights = torch.einsum("bej,be->bj", columns, gradient)
        return for_inputs, for_weights


def _run_gru(gru: nn.GRU, positions: Tensor, lengths: Tensor) -> Tensor:
    """(L, P) positions, (U,) descending host lengths -> (U, L, 2H): both directions' states, zero beyond the end."""
    packed = pack_padded_sequence(positions.expand(len(lengths), -1, -1), lengths, batch_first=True)
    return pad_packed_sequence(gru(packed)[0], batch_first=True)[0]


class _PositionGRU(torch.autograd.Function):
    """`_run_gru` with a backward pass of its own for CPUs, where autograd records every step of the GRU and is slow.

    All gates follow from the states at once; only the carried gradient is a recurrence, and it is linear in it.
    """

    @staticmethod
    def forward(ctx, positions: Tensor, lengths: Tensor, gru: nn.GRU, *parameters: Tensor) -> Tensor:
        states = _run_gru(gru, positions, lengths)
        ctx.save_for_backward(positions, lengths, states, *parameters)
        return states

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        positions, lengths, states, *parameters = ctx.saved_tensors
        hidden = states.shape[2] // 2
        gradients = []
        for direction in (0, 1):
            w_ih, w_hh, b_ih, b_hh = parameters[4 * direction : 4 * direction + 4]
            here = slice(direction * hidden, (direction + 1) * hidden)
            after = states[:, :, here]
            before = torch.zeros_like(after)  # the state each step started from
            if direction == 0:
                before[:, 1:] = after[:, :-1]
            else:
                before[:, :-1] = after[:, 1:]  # zero at and beyond each end, where the backward direction starts
            given = positions @ w_ih.T + b_ih
            carried = before @ w_hh.T + b_hh
            reset = torch.sigmoid(given[:, :hidden] + carried[..., :hidden])
            update = torch.sigmoid(given[:, hidden : 2 * hidden] + carried[..., hidden : 2 * hidden])
            candidate = torch.tanh(given[:, 2 * hidden :] + reset * carried[..., 2 * hidden :])
            # Derivatives of the new state by the three gates' inputs; steps beyond the end carry nothing.
            running = (torch.arange(after.shape[1]) < lengths[:, None])[:, :, None]
            by_candidate = (1 - update) * (1 - candidate**2) * running
            by_update = (before - candidate) * update * (1 - update) * running
            by_reset = by_candidate * carried[..., 2 * hidden :] * reset * (1 - reset)
            slopes = torch.stack((by_reset, by_update, by_candidate * reset), dim=2).numpy()  # (U, L, 3, H)
            keep, incoming, recurrent = (update * running).numpy(), gradient[:, :, here].numpy(), w_hh.numpy()
            total = np.empty_like(incoming)  # gradient of each state
            carry = np.zeros_like(incoming[:, 0])
            steps = range(after.shape[1])
            for step in reversed(steps) if direction == 0 else steps:
                state = np.add(incoming[:, step], carry, out=total[:, step])
                carry = state * keep[:, step]
                carry += (state[:, None] * slopes[:, step]).reshape(len(state), -1) @ recurrent
            total = torch.from_numpy(total)
            for_carried = (total[:, :, None] * torch.from_numpy(slopes)).flatten(0, 1).flatten(1)  # (U*L, 3H)
            for_given = torch.cat((for_carried[:, : 2 * hidden], (total * by_candidate).flatten(0, 1)), dim=1)
            by_position = for_given.unflatten(0, after.shape[:2]).sum(0)
            gradients += [
                by_position.T @ positions,
                for_carried.T @ before.flatten(0, 1),
                by_position.sum(0),
                for_carried.sum(0),
            ]
        return None, None, None, *gradients
