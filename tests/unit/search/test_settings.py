"""The section `search`: what it may name, and what rules make of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace as W

import pytest
import yaml

from core.console import UserError
from rules.plan import Plan
from settings import load_settings

PHOTOS = {"source": "folder", "images": "photos"}


@pytest.fixture
def config(repository):
    return yaml.safe_load((repository / "config.yaml").read_text()) | {
        "search": {"mine": {"dataset": "scenes", "runs": ["region", "grid"]}}
    }


def mistakes(config, **options) -> str:
    with pytest.raises(UserError) as error:
        load_settings(config, **({"check_files": False} | options))
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"dataset": "scnes"}, "search.mine.dataset: 'scnes' is not under datasets; did you mean 'scenes'?"),
        ({"runs": ["regoin"]}, "search.mine.runs: 'regoin' is not under runs; did you mean 'region'?"),
        ({"runs": ["grid", "grid"]}, "search.mine.runs: ['grid', 'grid'] names a run twice; remove the repeat"),
        ({"runs": []}, "search.mine.runs: none; name one or more of the section runs"),
        ({"run": ["grid"]}, "search.mine.run: unknown key; did you mean 'runs'?"),
        (
            {"imported": {"grid": {"folder": "x", "visual": "grids"}}},
            "search.mine.imported.grid: there is a run of the same name; rename one of them",
        ),
    ],
)
def test_mistakes_are_told_with_the_fix(config, change, line):
    config["search"]["mine"] |= change
    assert line in mistakes(config)


def test_an_imported_run_that_is_not_there_is_told(config, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(repository)
    config["search"]["mine"]["imported"] = {"theirs": {"folder": str(tmp_path), "visual": "regions"}}
    assert f"search.mine.imported.theirs.folder: {str(tmp_path)!r} has no config.json" in mistakes(
        config, check_files=True
    )


def test_a_dataset_named_like_the_folder_of_searches_is_refused(config):
    config["datasets"]["search"] = copy.deepcopy(config["datasets"]["scenes"])
    assert "datasets.search: the workflow has a folder of this name" in mistakes(config)


def test_rules_read_what_the_runs_of_a_search_read(config):
    plan = Plan(load_settings(config, check_files=False))
    job = W(search="mine")
    inputs = plan.search_inputs(job)
    assert inputs["stores"] == [f"results/scenes/features/{f}.zarr/zarr.json" for f in ("regions", "grids", "panoptic")]
    assert "results/runs/grid/model.safetensors" in inputs["runs"] and inputs["networks"] == []
    assert json.loads(plan.search_runs(job))["grid"] == {
        "folder": "results/runs/grid",
        "visual": "results/scenes/features/grids.zarr",
        "panoptic": "results/scenes/features/panoptic.zarr",
    }
    assert plan.all_searches() == ["results/search/mine/search.json"]
    config["search"]["mine"] |= {"runs": ["region"], "captions": False}
    plan = Plan(load_settings(config, check_files=False))
    assert len(plan.search_inputs(job)["stores"]) == 2 and plan.search_flags(job) == ["--without-captions"]


def test_photos_without_captions_can_be_searched_by_an_imported_run(config, tmp_path):
    """And of them only what that run reads is extracted."""
    config["datasets"]["photos"] = dict(PHOTOS)
    (tmp_path / "config.json").write_text(json.dumps({"format_version": 2, "kind": "3shnet"}))
    config["search"] = {
        "own": {"dataset": "photos", "imported": {"theirs": {"folder": str(tmp_path), "visual": "grids"}}}
    }
    plan = Plan(load_settings(config, check_files=False))
    assert plan.needed_features("photos") == ["grids", "panoptic"]
    inputs = plan.search_inputs(W(search="own"))
    assert inputs["runs"] == [f"{tmp_path}/{name}" for name in ("model.safetensors", "config.json")]
    assert json.loads(plan.search_runs(W(search="own")))["theirs"]["folder"] == str(tmp_path)
    assert Path(inputs["images"]).name == "images.parquet"


def test_without_the_section_nothing_is_asked_for(config):
    del config["search"]
    assert Plan(load_settings(config, check_files=False)).all_searches() == []
