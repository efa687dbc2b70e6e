"""What is shown of jobs when they have ended."""

import os

import pytest

from core import layout
from rules.failed import LINES, show_failures, show_notes


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("rules.failed.PATIENCE", 0.2)


def log(work, job, text, age=0.0):
    path = layout.log(work, job)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.utime(path, (1000 - age,) * 2)
    return path


def test_the_end_of_each_failed_log_is_shown_once(tmp_path, capsys):
    long = log(tmp_path, "long", "".join(f"line {n}\n" for n in range(100)))
    short = log(tmp_path, "short", "error: the disk is full\n")
    mention = "    log: {} (check log file(s) for error details)\n"
    snakemake = tmp_path / "snakemake.log"
    snakemake.write_text(
        f"rule a:\n    log: {tmp_path}/fine.log\n" + mention.format(long) + mention.format(f"{long}, {short}") + "end\n"
    )
    (tmp_path / "fine.log").write_text("all is well\n")
    show_failures([str(snakemake)], tmp_path, 0)
    shown = capsys.readouterr().err
    assert shown.count("line 99\n") == 1 and f"line {99 - LINES}\n" not in shown
    assert f"{long}, the last {LINES} of 100 lines:\n" in shown
    assert f"{short}:\n    error: the disk is full\n" in shown and "all is well" not in shown


def test_what_a_job_says_when_it_was_asked_to_end_is_waited_for(tmp_path, capsys, monkeypatch):
    path = log(tmp_path, "train_model/r", "epoch 1\n")
    (tmp_path / "snakemake.log").write_text(f"    log: {path} (check log file(s) for error details)\n")

    def sleep(seconds):
        with open(path, "a") as file:
            file.write("error: run r: ended on request; its state is saved\n")

    monkeypatch.setattr("rules.failed.time.sleep", sleep)
    show_failures([str(tmp_path / "snakemake.log")], tmp_path, 0)
    assert capsys.readouterr().err.endswith("    epoch 1\n    error: run r: ended on request; its state is saved\n")


@pytest.mark.parametrize("how", ["returned non-zero exit status 1", "died with <Signals.SIGKILL: 9>"])
@pytest.mark.parametrize("quoted", ["{}", "'{}'"])
def test_with_quiet_rules_the_command_names_the_log(tmp_path, capsys, quoted, how):
    path = log(tmp_path, "index_dataset/a b", "no captions\n")
    command = f"Command 'set -euo pipefail; python -m x > {quoted.format(path)} 2>&1' {how}.\n"
    (tmp_path / "snakemake.log").write_text(command)
    show_failures([str(tmp_path / "snakemake.log")], tmp_path, 0)
    assert ("no captions" in capsys.readouterr().err) is ("'" in quoted)  # a name with a blank is quoted


def test_without_a_word_of_snakemakes_the_logs_that_end_with_an_error_are_shown(tmp_path, capsys):
    show_failures([str(tmp_path / "missing.log")], tmp_path, 0)
    assert capsys.readouterr().err == ""
    log(tmp_path, "seal_store/now", "error: not sealed\n")
    log(tmp_path, "seal_store/before", "error: long ago\n", age=500)
    log(tmp_path, "seal_store/fine", "sealed\n")
    show_failures([], tmp_path, 900)
    shown = capsys.readouterr().err
    assert "error: not sealed" in shown and "long ago" not in shown and "fine" not in shown


def test_what_jobs_noted_is_told_once(tmp_path, capsys):
    show_notes(tmp_path, 0)
    assert capsys.readouterr().err == ""
    log(tmp_path, "index_dataset/p", "note: 6 captions left out\np: 2 images\nnote: 6 captions left out\n")
    for run in ("a", "b"):
        log(tmp_path, f"score/{run}", "warning: nothing is known\n")
    log(tmp_path, "index_dataset/old", "note: of another run\n", age=500)
    show_notes(tmp_path, 900)
    assert capsys.readouterr().err.split("\n") == [
        "",
        "noted by the jobs:",
        "  index_dataset/p: note: 6 captions left out",
        "  score/a and 1 more: warning: nothing is known",
        "",
    ]
