from __future__ import annotations

import pytest
import torch

from model.kernels import short_attention
from tests.unit.model.kernels.together import assert_together

each_way = pytest.mark.parametrize(
    "attend", [short_attention.attend, short_attention._fused], ids=["the chosen way", "fused"]
)


def inputs(lengths, longest):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(len(lengths), longest, 4, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    return *(part.requires_grad_() for part in parts), torch.arange(longest) < torch.tensor(lengths)[:, None]


@each_way
@pytest.mark.parametrize(
    ("lengths", "longest"), [([9, 1, 4], 9), ([3, 2], 5), ([64, 1, 50], 64)], ids=["short", "padded", "long"]
)
def test_fast_ways_equal_the_formula(lengths, longest, attend):
    assert_together(short_attention.reference, attend, inputs(lengths, longest))


@each_way
def test_a_text_of_one_token_reads_itself(attend):
    query, key, value, valid = inputs([1, 1], 1)
    torch.testing.assert_close(attend(query, key, value, valid), value)


@pytest.mark.parametrize("tokens", [40, 64], ids=["short", "long"])
def test_dropout_keeps_the_mean(tokens):
    """A share of the weights is gone and the rest larger."""
    torch.manual_seed(0)
    ones = torch.ones(64, tokens, 2, 8)
    dropped = short_attention.attend(ones, ones, ones, torch.ones(64, tokens, dtype=torch.bool), dropout=0.25)
    assert dropped.mean() == pytest.approx(1.0, abs=0.01) and 0.05 < dropped.std() < 0.15


def test_few_tokens_go_step_by_step(monkeypatch):
    taken = []
    for name in ("reference", "_stepwise", "_fused"):
        monkeypatch.setattr(short_attention, name, lambda *parts, name=name, **options: taken.append(name))
    for tokens in (12, 48, 49):
        short_attention.attend(*inputs([tokens], tokens))
    assert taken == ["reference", "reference", "_fused"]
    with torch.no_grad():
        short_attention.attend(*inputs([12], 12))
        short_attention.attend(*inputs([12], 12), dropout=0.1)
    assert taken[3:] == ["_stepwise", "reference"]
