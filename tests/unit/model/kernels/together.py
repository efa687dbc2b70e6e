"""Holds the reference of a kernel and its fast way together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}  # relative to the largest number of a tensor


def computed(way: Callable[..., Tensor], inputs: Sequence[Tensor], layers: Sequence[nn.Module], dtype: torch.dtype):
    """What `way(*inputs, *layers)` gives in `dtype`, by name: result, gradients of all floats, states of the layers.

    The arguments stay as they are. Inputs need a gradient where they ask for one.
    """
    inputs = [
        part.detach().to(dtype).requires_grad_(part.requires_grad) if part.is_floating_point() else part
        for part in inputs
    ]
    layers = [copy.deepcopy(layer).to(dtype) for layer in layers]
    result = way(*inputs, *layers)
    arriving = torch.randn(result.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    if result.requires_grad:
        (result * arriving.to(dtype)).sum().backward()
    found = {"result": result.detach()}
    found |= {f"gradient of input {i}": part.grad for i, part in enumerate(inputs) if part.requires_grad}
    for i, layer in enumerate(layers):
        found |= {f"gradient of layer {i}, {name}": value.grad for name, value in layer.named_parameters()}
        found |= {f"state of layer {i}, {name}": value for name, value in layer.named_buffers()}
    return found


def assert_together(
    reference: Callable[..., Tensor],
    fast: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    layers: Sequence[nn.Module] = (),
    *,
    without_effect: Sequence[str] = (),
) -> None:
    """Both ways agree in float64, and the fast one in float32 with the reference in float64, with a way back and without.

    Args:
        without_effect: what has a gradient of zero; all others must not.
    """
    expected = computed(reference, inputs, layers, torch.float64)
    for name, value in expected.items():
        if value is not None and name.startswith("gradient"):
            assert (value.abs().max() < 1e-9) == (name in without_effect), f"{name} is no test"
    for dtype, tolerance in TOLERANCE.items():
        found = computed(fast, inputs, layers, dtype)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            exact = expected[name]
            assert (value is None) == (exact is None), name
            if value is not None:
                assert value.shape == exact.shape and value.dtype in (dtype, torch.int64), name
                error = (value.double() - exact.double()).abs().max() if value.numel() else 0
                assert error <= tolerance * max(1, exact.abs().max()), (name, dtype, float(error))
        with torch.no_grad():
            alone = computed(fast, inputs, layers, dtype)["result"]
        error = (alone.double() - expected["result"].double()).abs().max() if alone.numel() else 0
        assert error <= tolerance * max(1, expected["result"].abs().max()), ("without gradients", dtype, float(error))
