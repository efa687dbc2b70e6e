"""A job takes a GPU that no other job has."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from core import devices
from core.console import UserError


def test_a_gpu_is_what_the_driver_lists(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "_NVIDIA_DEVICES", tmp_path)
    assert not devices.gpu_present()
    (tmp_path / "0000:01:00.0").mkdir()
    assert devices.gpu_present()


CLAIM = "import os, sys, core.devices; core.devices.claim_gpu(); print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"


def test_jobs_side_by_side_take_different_gpus(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def job():
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", CLAIM], cwd=repository, stdin=pipe, stdout=pipe, text=True)

    jobs = [job()]
    seen = [jobs[0].stdout.readline().strip()]
    jobs.append(job())
    seen.append(jobs[1].stdout.readline().strip())
    assert seen == ["2", "5"]
    jobs[0].kill()  # however it ends, its GPU is free again
    jobs[0].wait()
    jobs.append(job())
    assert jobs[2].stdout.readline().strip() == "2"
    for process in jobs:
        process.communicate()


def test_a_cluster_s_choice_of_gpus_stands(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    devices.claim_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5"


def test_device_names(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick_device("auto") == devices.pick_device("cpu") == ("cpu", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    assert devices.pick_device("auto") == ("cuda", "GPU cuda")
    assert devices.pick_device("cuda:1") == ("cuda:1", "GPU cuda:1")
    with pytest.raises(UserError, match="--device cuda:2: this machine has 2"):
        devices.pick_device("cuda:2")


def test_a_device_is_opened_with_its_threads(monkeypatch):
    claimed, threads = [], torch.get_num_threads()
    monkeypatch.setattr(devices, "claim_gpu", lambda: claimed.append(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        assert devices.open_device("cpu", threads=0) == ("cpu", "cpu") and torch.get_num_threads() == 1
        assert devices.open_device("auto", threads=None) == ("cpu", "cpu") and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert claimed == [True], "not where the user has chosen"


FREED = """
import resource, threading
from core.devices import keep_freed_memory

keep_freed_memory()

def large_blocks():
    for _ in range(10):
        one, other = b"x" * (20 << 20), b"y" * (30 << 20)

large_blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=large_blocks)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_freed_memory_is_there_for_the_next_block_of_any_thread(repository):
    done = subprocess.run([sys.executable, "-c", FREED], cwd=repository, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000, "pages that the system had to zero; without it, 77,000"
