"""Configurations that name published weights: planned, fetched from a mirror on this machine, used, and refused when changed."""

import json
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

pytestmark = pytest.mark.workflow

WEIGHTS = "published_weights/grid-feats-vqa-R-50/R-50.pth"
FETCHED = {"render_scenes": 1, "index_dataset": 1, "fetch_published": 1, "extract_shard": 1, "seal_store": 1}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """A folder that a server shows, and its address."""
    folder = tmp_path_factory.mktemp("mirror")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def workflow(make_workflow, mirror):
    """Grid features of two scenes with "published" weights: a full-size network's, random."""
    from extractors.networks import build

    folder, address = mirror
    torch.manual_seed(0)
    state = {key: value * 0.5 if value.ndim == 4 else value for key, value in build("grid_r50").state_dict().items()}
    (folder / "grid-feats-vqa" / "R-50").mkdir(parents=True)
    torch.save({"model": state}, folder / "grid-feats-vqa" / "R-50" / "R-50.pth")
    return make_workflow(
        {
            "datasets": {"tiny": {"source": "scenes", "seed": 11, "splits": {"test": 2}}},
            "features": {"grids": {"architecture": "grid_r50", "weights": "published:grid-feats-vqa-R-50"}},
            "published": {"mirror": address},
        }
    )


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def extracted(workflow):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        assert workflow.planned("grids") == FETCHED
        result = workflow.run("grids")
    assert result.returncode == 0, result.stdout + result.stderr
    return workflow


def test_weights_are_fetched_locked_and_used(extracted, mirror):
    from stores import open_store

    kept, original = extracted.folder / WEIGHTS, mirror[0] / "grid-feats-vqa/R-50/R-50.pth"
    assert kept.read_bytes() == original.read_bytes()
    locked = json.loads((extracted.folder / "published.lock.json").read_text())["files"]["grid-feats-vqa-R-50/R-50.pth"]
    store = open_store(extracted.results / "tiny" / "features" / "grids.zarr")
    assert store.attributes["weights_digest"] == locked["sha256"]
    assert store.rows("features", [0, 1]).shape == (2, 49, 2048)


def test_what_is_there_is_not_fetched_again(extracted):
    assert extracted.planned("grids") == {}
    elsewhere = extracted.config | {"published": {"mirror": "http://127.0.0.1:1"}}
    assert extracted.planned("grids", config=elsewhere) == {}


def test_a_file_that_is_there_already_is_locked_when_work_starts(extracted):
    lock = extracted.folder / "published.lock.json"
    content = lock.read_text()
    lock.unlink()
    assert extracted.planned("grids") == {} and not lock.exists()
    (extracted.results / "tiny" / "features" / "grids.zarr" / "zarr.json").unlink()
    assert extracted.run("grids").returncode == 0
    assert lock.read_text() == content


def test_a_changed_file_is_refused_before_any_job(extracted):
    kept = extracted.folder / WEIGHTS
    content, times = kept.read_bytes(), (kept.stat().st_atime_ns, kept.stat().st_mtime_ns)
    kept.write_bytes(content[:-1] + b"x")
    try:
        result = extracted.run("--dry-run", "grids")
    finally:
        kept.write_bytes(content)
        os.utime(kept, ns=times)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert f"{WEIGHTS} is not the file that grid-feats-vqa-R-50 is: its sha256 is" in output
    assert "--accept --folder published_weights --lock" in output and "Traceback" not in output
    assert extracted.planned("grids") == {}


def test_a_failed_download_shows_its_one_line(make_workflow, mirror):
    workflow = make_workflow(
        {
            "datasets": {"tiny": {"source": "scenes", "splits": {"test": 2}}},
            "features": {"grids": {"architecture": "grid_x152", "weights": "published:grid-feats-vqa-X-152"}},
            "published": {"mirror": mirror[1], "folder": "my weights"},
        }
    )
    result = workflow.run("my weights/grid-feats-vqa-X-152/X-152.pth")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert f"error: {mirror[1]}/grid-feats-vqa/X-152/X-152.pth: the server answered 404" in output
    assert "Traceback" not in output
