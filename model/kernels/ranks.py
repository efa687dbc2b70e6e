"""Weights of ranks, and the sum of sorted values that they weigh (generalised pooling).

    weights     = softmax over r = 1..n of (score(mean of both directions of gru(position r)) / temperature)
    pooled[e]   = sum over r of weights[r] * (r-th largest of the set's values in feature e)

for a set of n vectors. `gru` runs over the sinusoidal encodings of the positions 0..n-1.

The weights depend on n alone, so the GRU runs once per distinct length of the batch, and on a CPU it goes back without
autograd, which records every step. Values are sorted along contiguous rows, on a CPU by NumPy.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from model.layers import at_least_single, sinusoidal_positions

# Sorts after every real value. Finite, because it is multiplied with weights of exactly zero.
PADDING_VALUE = 1e30


def reference_weights(lengths: Tensor, gru: nn.GRU, score: nn.Linear, *, temperature: float) -> Tensor:
    """The first formula, as `weights`."""
    rows = []
    for length in lengths.tolist():
        positions = sinusoidal_positions(length, gru.input_size).to(score.weight)
        states = gru(positions)[0].unflatten(1, (2, -1)).mean(dim=1)
        rows.append(torch.softmax(score(states)[:, 0] / temperature, dim=0))
    return pad_sequence(rows, batch_first=True)


def reference_sum(inputs: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """The second formula, as `weighted_sum`."""
    sets = [vectors[own].sort(dim=0, descending=True).values for vectors, own in zip(inputs, valid, strict=True)]
    return torch.stack([row[: len(ranked)] @ ranked for row, ranked in zip(weights, sets, strict=True)])


# The weights.


def weights(lengths: Tensor, gru: nn.GRU, score: nn.Linear, *, temperature: float) -> Tensor:
    """Weight of each rank, summing to 1.

    Args:
        lengths: (B,) integers >= 1; kept in host memory they avoid a device synchronisation.
        gru: of one layer, bidirectional, batch first.
        score: of the GRU's states to one number.
        temperature: of the softmax.

    Returns:
        (B, max(lengths)), zero beyond the length.
    """
    distinct, which = torch.unique(lengths.cpu().long(), return_inverse=True)
    distinct, which = distinct.flip(0), len(distinct) - 1 - which  # longest first, as packing wants
    if int(distinct[-1]) < 1:
        raise ValueError(f"cannot pool a set of {int(distinct[-1])} vectors; every length must be at least 1")
    device, longest = score.weight.device, int(distinct[0])
    positions = sinusoidal_positions(longest, gru.input_size).to(device, score.weight.dtype, non_blocking=True)
    if device.type == "cpu" and torch.is_grad_enabled():
        states = _States.apply(positions, distinct, gru, *gru.parameters())
    else:
        states = _states(positions, distinct, gru)
    scores = score(states.unflatten(2, (2, -1)).mean(dim=2)).squeeze(2)
    beyond = torch.arange(longest) >= distinct[:, None]
    scores = scores.masked_fill(beyond.to(device, non_blocking=True), float("-inf"))
    return torch.softmax(scores / temperature, dim=1)[which.to(device, non_blocking=True)]


def _states(positions: Tensor, lengths: Tensor, gru: nn.GRU) -> Tensor:
    """(L, P) positions, (U,) descending host lengths -> (U, L, 2H): both directions' states, zero beyond the end."""
    packed = pack_padded_sequence(positions.expand(len(lengths), -1, -1), lengths, batch_first=True)
    return pad_packed_sequence(gru(packed)[0], batch_first=True)[0]


class _States(torch.autograd.Function):
    """`_states` with a backward pass of its own.

    All gates follow from the states at once; only the carried gradient is a recurrence, and it is linear in it.
    """

    @staticmethod
    def forward(ctx, positions: Tensor, lengths: Tensor, gru: nn.GRU, *parameters: Tensor) -> Tensor:
        states = _states(positions, lengths, gru)
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


# The sum.


def weighted_sum(inputs: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """Sum of each feature's values from the largest to the smallest, weighted by rank.

    Args:
        inputs: (B, L, E) floats, read as float32 at least.
        valid: (B, L) bool, which of the L vectors belong to the set; in any order, only the set matters.
        weights: (B, R), of rank 1 first; R is at least 1 and at least the size of the largest set.

    Returns:
        (B, E).
    """
    # Sorted ascending with the padding last, rank r of n values (0 = the largest) is at position n - 1 - r.
    rank = valid.sum(1, keepdim=True) - 1 - torch.arange(inputs.shape[1], device=inputs.device)
    weights = weights.gather(1, rank.clamp(0, weights.shape[1] - 1)).masked_fill(rank < 0, 0)
    if inputs.device.type == "cpu" and not torch.is_grad_enabled():
        return _set_by_set(inputs, valid, weights)
    return _SortedSum.apply(at_least_single(inputs).masked_fill(~valid[:, :, None], PADDING_VALUE), weights)


def shares(inputs: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """What each vector puts into `weighted_sum` of the same arguments: (B, L, E), its sum over L; 0 where not valid.

    Equal values share the weights of the ranks that they take up together: equal vectors put in the same.
    """
    length = inputs.shape[1]
    values, order = inputs.masked_fill(~valid[:, :, None], -PADDING_VALUE).sort(dim=1, descending=True)
    weights = F.pad(weights, (0, max(0, length - weights.shape[1])))[:, :length]
    inside = torch.arange(length, device=inputs.device) < valid.sum(1, keepdim=True)
    weights = (weights * inside)[:, :, None].expand_as(values)
    # Runs of equal values: numbered, their weights averaged, and the mean given back to each.
    run = F.pad((values[:, 1:] != values[:, :-1]).cumsum(1), (0, 0, 1, 0))
    total = torch.zeros_like(values).scatter_add_(1, run, weights)
    count = torch.zeros_like(values).scatter_add_(1, run, torch.ones_like(values))
    mean = (total / count.clamp(min=1)).gather(1, run)
    return torch.zeros_like(values).scatter_(1, order, mean * values).masked_fill(~valid[:, :, None], 0)


def _set_by_set(inputs: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """`_SortedSum` without a way back: one set at a time, whose columns stay in a CPU's cache."""
    pooled = weights.new_empty(len(inputs), inputs.shape[2])
    columns = weights.new_empty(inputs.shape[2], inputs.shape[1])
    whole = valid.all(dim=1).tolist()
    for k, vectors in enumerate(inputs):
        columns.copy_(vectors.to(columns.dtype).T)
        if not whole[k]:
            columns.masked_fill_(~valid[k], PADDING_VALUE)
        columns.numpy().sort(axis=1)
        torch.mv(columns, weights[k], out=pooled[k])
    return pooled


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
