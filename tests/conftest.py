"""Shared by all tests: where the repository is, and no network."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Nothing in the tests may reach for a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def _torch_as_found() -> Iterator[None]:
    """Undo what a command run inside a test sets for its whole process: the next test must not round differently."""
    torch = sys.modules.get("torch")
    if torch is None:  # not imported for the sake of tests that need none of it
        yield
        return
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
