"""configs/kinds.yaml: 3SHNet, VSE-infinity and SCAN side by side, and checkpoints of theirs out and in again."""

import json

import pytest

from model.checkpoint import main
from settings import load_settings

from .test_datasets import configuration, merged

pytestmark = pytest.mark.workflow

SMALLER = {
    "datasets": {"scenes": {"splits": {"train": 24, "val": 12, "test": 12}}},
    "testsets": {"scenes_test": {"folds": 2}},
}


def read(workflow, place):
    return json.loads((workflow.results / place / "scenes_test/metrics.json").read_text())


def test_kinds_train_are_scored_and_come_in_as_checkpoints(repository, make_workflow):
    config = configuration(repository, "kinds", SMALLER | {"results": "results"})
    for run in config["runs"].values():
        run["training"] = run["training"] | {"epochs": 2, "batch_size": 24, "lr_decay_epochs": [1]}
    workflow = make_workflow(config)
    result = workflow.run()
    assert result.returncode == 0, result.stdout + result.stderr
    scored = {run: read(workflow, f"evaluation/{run}") for run in config["runs"]}
    for place in ("ensembles/scan", "ensembles/all", "ensembles/vse_region_grid"):
        scored[place] = read(workflow, place)
    assert all(metrics["captions"] == 60 for metrics in scored.values())
    folders = {path.parent.parent.name for path in workflow.results.glob("evaluation/*/*/scores.zarr")}
    assert folders == {"t2i", "i2t"}

    # Out in their authors' formats, and in again: by the workflow, and by hand.
    for run in ("vse", "t2i"):
        main(["export", str(workflow.results / "runs" / run), str(workflow.folder / f"{run}.pth")])
    vocabulary = str(workflow.folder / "t2i_precomp_vocab.json")
    main(["import", str(workflow.folder / "t2i.pth"), str(workflow.results / "runs/kept"), "--vocabulary", vocabulary])
    weights = (workflow.results / "runs/kept/model.safetensors").read_bytes()
    run = {"dataset": "scenes", "visual": "regions"}
    vse = {"model": {"kind": "vse_infinity"}, "checkpoint": "vse.pth", "vocabulary": "vse_precomp_vocab.json"}
    workflow.config = merged(
        {key: value for key, value in config.items() if key not in ("runs", "ensembles")},
        {
            "runs": {"paper": run | vse, "kept": run | {"model": {"kind": "scan"}}},
            "ensembles": {"two": {"runs": ["paper", "kept"]}},
        },
    )
    result = workflow.run("evaluate")
    assert result.returncode == 0, result.stdout + result.stderr
    assert read(workflow, "evaluation/paper")["rsum"] == pytest.approx(scored["vse"]["rsum"])
    assert read(workflow, "evaluation/kept")["rsum"] == pytest.approx(scored["t2i"]["rsum"])
    assert read(workflow, "ensembles/two")["runs"] == ["paper", "kept"]
    assert (workflow.results / "runs/kept/model.safetensors").read_bytes() == weights


def test_the_configuration_for_coco_is_whole(repository):
    settings = load_settings(configuration(repository, "coco_kinds"), check_files=False)
    scan = settings.runs["scan_i2t"]
    assert (scan.model.cross_attn, scan.training.optimizer, scan.training.epochs) == ("i2t", "adam", 20)
    assert (
        settings.runs["vse_words"].training.weight_decay == 0.01 and settings.runs["region"].training.batch_size == 256
    )
    assert settings.runs["vse_grid"].training.token_drop_varies and settings.runs["vse_grid"].val_images == 1000
