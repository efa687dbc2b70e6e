"""Shared by all tests: where the repository is, and no network."""

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Nothing in the tests may reach for a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Several tests run side by side: threads of one small product would only wait for those of another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, where tests run side by side."""
    items.sort(key=lambda item: (item.get_closest_marker("workflow") is None, item.get_closest_marker("slurm") is None))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes lend a test no name: an archive's hold the time it was made, and workers that run side by side refuse
    tests that one of them names differently."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """The variables that lead to an S3 server of its own on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture
def make_bucket(s3_server, monkeypatch) -> Callable[[], str]:
    """`make_bucket()`: `s3://` address of a new bucket, which this process and its children reach."""
    import boto3

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)

    def make() -> str:
        name = f"b{uuid.uuid4().hex}"
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}"

    return make


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
