"""What jobs inherit from the workflow."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from core import machine


def test_jobs_use_this_interpreter_and_this_repository(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    for _ in range(2):  # nested Snakemakes must not pile the entries up
        machine.use_this_interpreter("/some/repository")
    assert os.environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert os.environ["PYTHONPATH"] == "/some/repository"
    assert os.environ["PYTHONSAFEPATH"] == "1"


def test_messages_quote_a_command_with_the_same_configuration(monkeypatch, tmp_path):
    monkeypatch.delenv(machine.SNAKEMAKE_COMMAND, raising=False)
    assert machine.snakemake_command() == "snakemake --cores all"
    monkeypatch.setenv(machine.SNAKEMAKE_COMMAND, "")
    monkeypatch.chdir(tmp_path)
    snakefile = tmp_path / "Snakefile"
    snakefile.touch()
    machine.remember_command([Path("my configs/a.yaml")], snakefile)
    assert machine.snakemake_command() == "snakemake --cores all --configfile 'my configs/a.yaml'"
    machine.remember_command([], snakefile)
    assert machine.snakemake_command() == "snakemake --cores all"
    machine.remember_command([], "/else where/Snakefile", ["runs={a: {seed: 3}}"])
    words = ["snakemake", "--cores", "all", "--snakefile", "/else where/Snakefile", "--config", "runs={a: {seed: 3}}"]
    assert shlex.split(machine.snakemake_command()) == words


STEP = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[03-04,7]-ib",
    "SLURM_JOB_ID": "20000",
    "SLURM_STEP_ID": "1",
}
TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def step(monkeypatch):
    """Sets the variables of one task of a step; the test's own are back afterwards."""
    for name in TORCH:
        monkeypatch.setenv(name, "")  # so that it is restored, whoever sets it
        monkeypatch.delenv(name)

    def task(**variables: str) -> None:
        for name, value in (STEP | variables).items():
            monkeypatch.setenv(name, value)

    return task


def test_a_task_of_a_slurm_step_is_one_of_torchs_processes(step):
    step(SLURM_PROCID="4", SLURM_LOCALID="0", SLURM_NODEID="2")
    machine.join_slurm_step()
    found = {name: os.environ[name] for name in TORCH}
    port = int(found.pop("MASTER_PORT"))
    assert found == {
        "RANK": "4",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "gpu03-ib",
    }
    assert 15_000 <= port < 30_000


@pytest.mark.parametrize(
    ("nodelist", "nodes", "first"),
    [("a1,a2", "2", "a1"), ("host-[1-3]", "3", "host-1"), ("n[007]", "2", "n007"), ("alone", "1", "127.0.0.1")],
)
def test_the_first_node_is_where_they_meet(step, nodelist, nodes, first):
    step(
        SLURM_PROCID="1",
        SLURM_LOCALID="1",
        SLURM_NODEID="0",
        SLURM_STEP_NODELIST=nodelist,
        SLURM_STEP_NUM_NODES=nodes,
    )
    machine.join_slurm_step()
    assert os.environ["MASTER_ADDR"] == first
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"


def test_a_process_alone_and_what_torchrun_started_stay_as_they_are(step, monkeypatch):
    step(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0", SLURM_STEP_NUM_TASKS="1")
    machine.join_slurm_step()
    assert "RANK" not in os.environ
    step(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    machine.join_slurm_step()
    assert os.environ["LOCAL_RANK"] == "3" and "RANK" not in os.environ


@pytest.mark.parametrize(
    ("words", "reuse"),
    [
        (["--cores", "2", "--configfile", "c.yaml"], True),
        (["-n", "train"], True),
        (["-R", "train_model"], False),
        (["-F"], False),
        (["-nf", "train"], False),
        (["--forcerun", "train_model"], False),
        (["--forceall"], False),
    ],
)
def test_what_is_forced_is_made_again(monkeypatch, words, reuse):
    monkeypatch.delenv(machine.REUSE, raising=False)
    assert not machine.may_reuse()
    monkeypatch.setenv(machine.REUSE, "")
    machine.remember_force(["snakemake", *words])
    assert machine.may_reuse() is reuse
