"""Generalised pooling (GPO): the mean of each feature's sorted values, weighted by learnt weights of the rank.

Source: "Learning the best pooling strategy for visual semantic embedding" (VSE-infinity), `lib/modules/aggr/gpo.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.kernels import ranks
from model.layers import at_least_single

TEMPERATURE = 0.1


class GeneralizedPooling(nn.Module):
    """Pools a set of n vectors x_1 .. x_n into one, feature by feature.

        theta  = softmax(w . GRU(positions 1..n) / 0.1)     the GRU's state is the mean of its two directions
        pooled = sum_r theta_r x_(r)                        x_(1) >= x_(2) >= ... are the sorted values

    `position_size` is even: the width of the sinusoidal encodings of the positions fed to the GRU.
    """

    def __init__(self, position_size: int = 32, hidden_size: int = 32) -> None:
        super().__init__()
        self.position_size = position_size
        self.gru = nn.GRU(position_size, hidden_size, batch_first=True, bidirectional=True)
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def weights(self, lengths: Tensor) -> Tensor:
        """Theta: (B,) lengths >= 1, best in host memory -> (B, max(lengths)), zero beyond the length."""
        return ranks.weights(lengths, self.gru, self.score, temperature=TEMPERATURE)

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
            return ranks.weighted_sum(inputs, valid, self.weights(lengths))

    def shares(self, inputs: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        """What each vector puts into the pooled one, arguments as `forward`: (B, L, E), which sums to it over L."""
        with torch.autocast(inputs.device.type, enabled=False):
            return ranks.shares(at_least_single(inputs), valid, self.weights(lengths))
