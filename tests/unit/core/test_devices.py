"""A job takes a GPU that no other job has."""

import os
import subprocess
import sys

from core import devices


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
