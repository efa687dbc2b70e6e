"""The simulation of large extractions, and a tiny measurement."""

import json

import pytest

from benchmarks.scaling import Assumptions, main, simulate
from core.console import UserError

NOTHING_FAILS = Assumptions(failures_per_1000_hours=0, queue_seconds=0)
COSTS = {"regions": (0.5, 10.0), "panoptic": (0.25, 20.0)}


def test_one_worker_takes_the_sum_of_all_jobs():
    found = simulate(9600, 1, COSTS, NOTHING_FAILS)
    # Four shards of 20 minutes and two, each with its start.
    assert found["jobs"] == 6 and found["failed"] == 0
    assert found["worker_hours"] == pytest.approx((9600 * 0.75 + 4 * 10 + 2 * 20) / 3600)
    assert found["extraction_hours"] == pytest.approx(found["worker_hours"])
    assert found["efficiency"] == pytest.approx(9600 * 0.75 / (9600 * 0.75 + 80))
    index, seal = 9600 / 5000, 9600 * 0.75 * 36 * 2048 * 2 / 500e6
    assert found["hours"] == pytest.approx(found["extraction_hours"] + (index + seal) / 3600)


def test_workers_share_the_jobs_and_starts_cost_efficiency():
    rows = [simulate(96_000, workers, COSTS, NOTHING_FAILS) for workers in (1, 2, 4, 64, 512)]
    hours = [row["extraction_hours"] for row in rows]
    assert hours == sorted(hours, reverse=True) and hours[0] / hours[2] == pytest.approx(4, rel=0.05)
    # Two shards per worker: more workers mean more starts.
    assert rows[-1]["jobs"] == 2048 and rows[-1]["efficiency"] < rows[0]["efficiency"]
    for row, workers in zip(rows, (1, 2, 4, 64, 512), strict=True):
        assert row["extraction_hours"] * workers >= row["worker_hours"] * 0.999
    slower = simulate(96_000, 64, COSTS, Assumptions(failures_per_1000_hours=0, queue_seconds=60))
    assert slower["worker_hours"] - rows[3]["worker_hours"] == pytest.approx(slower["jobs"] / 60)


def test_failed_jobs_are_started_again():
    found = simulate(96_000, 8, COSTS, Assumptions(failures_per_1000_hours=500, queue_seconds=0))
    calm = simulate(96_000, 8, COSTS, NOTHING_FAILS)
    assert found["failed"] > 0 and found["jobs"] == calm["jobs"] + found["failed"]
    assert found["worker_hours"] > calm["worker_hours"] and found["extraction_hours"] >= calm["extraction_hours"]
    assert simulate(96_000, 8, COSTS, Assumptions(failures_per_1000_hours=500, queue_seconds=0)) == found


def test_it_measures_the_workflows_own_jobs(tmp_path, repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    main(["grids", "--scenes", "--images", "4", "--device", "cpu", "--out", str(tmp_path / "scaling.json")])
    content = json.loads((tmp_path / "scaling.json").read_text())
    one, two = content["measured"]
    assert (one["workers"], two["workers"]) == (1, 2) and one["efficiency"] == 1 and 0 < two["efficiency"]
    assert content["costs"]["grids"] == [one["seconds_per_image"], one["startup_seconds"]]
    assert {row["dataset"] for row in content["simulated"]} == {"COCO", "1 million", "100 million"}
    assert "| COCO | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["faces"], "unknown feature 'faces'"),
        (["--seconds", "regions"], "FEATURE=SECONDS"),
        (["--seconds", "regions=-1"], "FEATURE=SECONDS"),
        (["--images", "1", "--workers", "2"], "too few for 2 workers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)
