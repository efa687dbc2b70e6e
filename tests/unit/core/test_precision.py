"""Float32 products keep their digits, whichever library a CPU is best served by."""

from __future__ import annotations

import pytest
import torch

from core import devices as precision


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_float32_matmul_precision()
    precision._cpu_precision.cache_clear()
    yield
    precision._cpu_precision.cache_clear()
    torch.set_float32_matmul_precision(before)


def test_products_stay_float32():
    torch.set_float32_matmul_precision("high")
    chosen = precision.matmul_precision("cpu")
    assert torch.get_float32_matmul_precision() == "high"  # asking changes nothing
    torch.set_float32_matmul_precision(chosen)
    for shape in ((7, 300, 5), (64, 2048, 512), (36, 128, 4096)):
        a, b = torch.randn(shape[:2]), torch.randn(shape[1:])
        exact = a.double() @ b.double()
        assert (a @ b - exact).abs().max() < 1e-5 * exact.abs().max()


def test_a_cpu_that_rounds_is_left_alone(monkeypatch):
    """As one with AMX units would do when lower precision is allowed."""

    def product(a, b):
        if a.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            return torch.mm(a.bfloat16(), b.bfloat16()).float()
        return torch.mm(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    assert precision.matmul_precision("cpu") == "highest"


def test_a_gpu_computes_in_float32():
    assert precision.matmul_precision("cuda:0") == "highest"
