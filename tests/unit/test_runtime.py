"""What jobs inherit from the workflow."""

import os
import subprocess
import sys
from pathlib import Path

import runtime


def test_jobs_use_this_interpreter_and_this_repository(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for _ in range(2):  # nested Snakemakes must not pile the entries up
        runtime.use_this_interpreter("/some/repository")
    assert os.environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert os.environ["PYTHONPATH"] == "/some/repository"


def test_a_gpu_is_what_the_driver_lists(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "_NVIDIA_DEVICES", tmp_path)
    assert not runtime.gpu_present()
    (tmp_path / "0000:01:00.0").mkdir()
    assert runtime.gpu_present()


def test_messages_quote_a_command_with_the_same_configuration(monkeypatch):
    monkeypatch.delenv(runtime.SNAKEMAKE_COMMAND, raising=False)
    assert runtime.snakemake_command() == "snakemake --cores all"
    monkeypatch.setenv(runtime.SNAKEMAKE_COMMAND, "")
    runtime.remember_configfiles([Path("my configs/a.yaml")])
    assert runtime.snakemake_command() == "snakemake --cores all --configfile 'my configs/a.yaml'"
    runtime.remember_configfiles([])
    assert runtime.snakemake_command() == "snakemake --cores all"


CLAIM = "import os, sys, runtime; runtime.claim_gpu(); print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"


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
    runtime.claim_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5"
