"""What jobs inherit from the workflow."""

import os
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
