from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from model.kernels import class_map
from tests.unit.model.kernels.together import assert_together, computed

WIDTH = 8
PADDED = [6, 2, 0, 1]
WAYS = ("_by_image", "_all_at_once")


def layers(*, training: bool, kernel: int = 3):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(1 + WIDTH, 5, kernel, padding=kernel // 2), nn.BatchNorm2d(5)
    with torch.no_grad():
        conv.weight[:, :1] /= 50  # as trained weights do with class numbers
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.uniform_(0.5, 1.5)
    return conv.train(training), norm.train(training)


def inputs(lengths, *, longest=None, height=6, width=8):
    generator = torch.Generator().manual_seed(1)
    longest = max(lengths) if longest is None else longest
    queries = torch.randn(len(lengths), longest, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    valid = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return queries, valid, torch.randint(0, 134, (len(lengths), height, width), generator=generator).double()


reference, attend = (functools.partial(way, scale=0.7) for way in (class_map.reference, class_map.attend))


@pytest.fixture(params=WAYS)
def each_way(request, monkeypatch):
    """CPUs take the first way, GPUs the second."""
    for name in WAYS:
        monkeypatch.setattr(class_map, name, getattr(class_map, request.param))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        (PADDED, {}),
        (PADDED, {"longest": 7}),
        ([1], {}),
        ([3, 3], {"height": 1, "width": 5}),
        ([2, 1], {"height": 9, "width": 3}),
    ],
    ids=["padded", "padding in every row", "one token", "one row of pixels", "high"],
)
def test_fast_ways_equal_the_formula(lengths, options, training, each_way):
    void = ["gradient of layer 0, bias"] if training else []  # the norm takes it back
    given = layers(training=training)
    assert_together(reference, attend, inputs(lengths, **options), given, without_effect=void)


@pytest.mark.parametrize("kernel", [1, 5])
def test_any_odd_kernel(kernel):
    given = layers(training=True, kernel=kernel)
    assert_together(reference, attend, inputs(PADDED), given, without_effect=["gradient of layer 0, bias"])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_statistics_are_noted_in_training_alone(training, each_way):
    given = layers(training=training)
    found = computed(attend, inputs(PADDED), given, torch.float32)
    assert found["state of layer 1, num_batches_tracked"] == training
    assert torch.equal(found["state of layer 1, running_var"], given[1].running_var) == (not training)


@torch.no_grad()
def test_padding_is_never_read(each_way):
    queries, valid, numbers = inputs(PADDED)
    given = [layer.double() for layer in layers(training=False)]
    found = attend(queries, valid, numbers, *given)
    assert torch.equal(attend(queries.masked_fill(~valid[:, :, None], 1e3), valid, numbers, *given), found)
    assert (found[~valid] == 0).all()


@pytest.mark.parametrize("longest", [0, 3])
@torch.no_grad()
def test_no_token_at_all(longest, each_way):
    context = attend(*inputs([0, 0], longest=longest), *(layer.double() for layer in layers(training=True)))
    assert context.shape == (2, longest, 5) and (context == 0).all()


@torch.no_grad()
def test_rounded_queries_keep_their_type_and_round_no_statistics():
    """Under autocast the tokens arrive in bfloat16."""
    queries, valid, numbers = inputs(PADDED)
    expected = computed(reference, (queries, valid, numbers), layers(training=True), torch.float32)
    conv, norm = layers(training=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = attend(queries.bfloat16(), valid, numbers.float(), conv, norm)
    assert context.dtype == torch.bfloat16
    assert 0 < (context - expected["result"]).abs().max() < 0.05 * expected["result"].abs().max()
    torch.testing.assert_close(norm.running_var, expected["state of layer 1, running_var"])
