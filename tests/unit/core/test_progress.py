"""How far running jobs are, out of their logs."""

import os
import sys
import time

import pytest

from core import layout
from core.console import UserError, progress
from core.progress import Job, main, running_jobs


def log(work, job, text, age=0.0):
    path = layout.log(work, job)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.utime(path, (time.time() - age,) * 2)
    return path


BAR = "run: epoch 2/3:  45%|####5     | 9/20 [00:10<00:12,  1.00s/batch]\n"


def test_what_our_own_progress_writes_is_read(tmp_path, monkeypatch):
    path = log(tmp_path, "extract_shard/coco_regions_0", "")
    with open(path, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        for _ in progress(range(4), total=4, desc="regions: shard 1 of 2", unit="image"):
            pass
    (job,) = running_jobs(tmp_path, silent=60)
    assert (job.name, job.step, job.done, job.total) == ("extract_shard/coco_regions_0", "regions: shard 1 of 2", 4, 4)
    assert job.rate.endswith("image/s")


def test_only_jobs_at_work_are_told(tmp_path):
    log(tmp_path, "train_model/runs", BAR + "a warning\n")
    log(tmp_path, "train_model/failed", BAR + "error: no room\n")
    log(tmp_path, "train_model/killed", BAR, age=100)
    log(tmp_path, "index_dataset/done", BAR.replace("9/20", "20/20"), age=40)
    log(tmp_path, "seal_store/early", "nothing yet\n")
    log(tmp_path, "train_model/ended", BAR, age=5)
    done = layout.benchmark(tmp_path, "train_model/ended")
    os.makedirs(os.path.dirname(done))
    open(done, "w").close()
    assert [str(job) for job in running_jobs(tmp_path, silent=60)] == [
        "train_model/runs: run: epoch 2/3 9/20, 1.00s/batch, 00:12 left of this epoch, 0:00:31 of steps in all"
    ]


@pytest.mark.parametrize(
    ("step", "rate", "left"),
    [
        ("run: epoch 1/101", " 2.00batch/s", "00:05 left of this epoch, 0:16:45 of steps in all"),
        ("run: epoch 3/3", "2.00batch/s", "00:05 left of this epoch, 0:00:05 of steps in all"),
        ("run: epoch 1/101", "?batch/s", "00:05 left"),
        ("run: epoch 1/101", "0.00batch/s", "00:05 left"),
        ("embed", "2.00batch/s", "00:05 left"),
    ],
)
def test_of_a_training_what_is_left_in_all_is_told(step, rate, left):
    assert str(Job("train_model/r", step, 10, 20, rate, "00:05", 0.0)).endswith(left)


def test_the_command(tmp_path, capsys):
    with pytest.raises(UserError, match="logs does not exist"):
        main(["--results", str(tmp_path), "--once"])
    with pytest.raises(UserError, match="--every 0: must be above 0"):
        main(["--results", str(tmp_path), "--once", "--every", "0"])
    log(tmp_path, "train_model/runs", BAR, age=40)
    main(["--results", str(tmp_path), "--once"])
    assert (
        "9/20, 1.00s/batch, 00:12 left of this epoch, 0:00:31 of steps in all, silent for 40 s\n"
        in capsys.readouterr().out
    )


def test_the_command_tells_what_jobs_note(tmp_path, capsys):
    log(tmp_path, "index_dataset/p", "note: 2 images that cannot be read\n")
    main(["--results", str(tmp_path), "--once"])
    assert "index_dataset/p: note: 2 images that cannot be read\n" in capsys.readouterr().out
