"""Which library multiplies float32 matrices on a CPU.

torch asks MKL, which on CPUs of other makers than Intel leaves AVX-512 unused: oneDNN is twice as fast there (AMD EPYC 9005:
210 against 100 GFLOPS a core). torch takes oneDNN if lower precision is allowed ("medium"); it then rounds to bfloat16 on
CPUs with units for that (AMX) and computes in float32 on all others. So it is allowed only where a trial shows float32.
"""

from __future__ import annotations

import functools

import torch

_FLOAT32_ERROR = 1e-5  # of a product of 1,024 terms, relative to the largest; bfloat16 is off by 1e-3


def matmul_precision(device: str) -> str:
    """What `torch.set_float32_matmul_precision` should be given for full float32 at full speed on this device."""
    return _cpu_precision() if torch.device(device).type == "cpu" else "highest"


@functools.cache
def _cpu_precision() -> str:
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1024, 1024, generator=generator) for _ in range(2))
    try:
        torch.set_float32_matmul_precision("medium")
        found = a @ b
    finally:
        torch.set_float32_matmul_precision(before)
    exact = a.double() @ b.double()
    return "medium" if (found - exact).abs().max() < _FLOAT32_ERROR * exact.abs().max() else "highest"
