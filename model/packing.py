"""Packed captions: the tokens of all captions as rows, one behind the other, so that padding costs nothing.

Everything in a text encoder but attention works token by token; only attention needs to know whose token is whose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.kernels import short_attention


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the rows of a batch of B captions of up to T tokens belong.

    Attributes:
        valid: (B, T) bool, which tokens are a caption's own.
        places: (N,) integers, of each row its place among all B * T; None: every token is a caption's own, N = B * T.
    """

    valid: Tensor
    places: Tensor | None

    @classmethod
    def of(cls, lengths: Tensor, longest: int, device: torch.device) -> Packing:
        """lengths: (B,) integers in host memory, so that no device is waited for. longest: T."""
        own = torch.arange(longest) < lengths[:, None]
        places = None
        if int(lengths.min()) < longest:
            places = own.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
        return cls(own.to(device, non_blocking=True), places)

    def pack(self, tokens: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        rows = tokens.flatten(0, 1)
        return rows if self.places is None else rows.index_select(0, self.places)

    def spread(self, rows: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), zeros where no caption has a token."""
        if self.places is not None:
            rows = rows.new_zeros(self.valid.numel(), *rows.shape[1:]).index_copy(0, self.places, rows)
        return rows.view(*self.valid.shape, *rows.shape[1:])

    def positions(self) -> Tensor:
        """(N,): of each row its place in its caption, from 0."""
        batch, longest = self.valid.shape
        if self.places is None:
            return torch.arange(longest, device=self.valid.device).repeat(batch)
        return self.places % longest

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, window: int | None = None, dropout: float = 0.0
    ) -> Tensor:
        """What each token reads from its own caption, (N, heads, D) as the three given.

        Args:
            window: tokens at least so far away are not read.
        """
        seen = self.valid if window is None or self.valid.shape[1] <= window else self._within(window)
        parts = (self.spread(part.flatten(1)).unflatten(2, part.shape[1:]) for part in (query, key, value))
        return self.pack(short_attention.attend(*parts, seen, dropout=dropout))

    def _within(self, window: int) -> Tensor:
        """(B, T, T) bool."""
        steps = torch.arange(self.valid.shape[1], device=self.valid.device)
        seen = self.valid[:, None, :] & ((steps[:, None] - steps).abs() < window)
        return seen | ~self.valid[:, :, None]  # rows of padding, which nobody reads, must attend to something
