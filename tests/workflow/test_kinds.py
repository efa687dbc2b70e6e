"""configs/kinds.yaml: 3SHNet, VSE-infinity and SCAN side by side, and checkpoints of theirs out and in again."""

import argparse
import json

import pytest
import torch

from core.files import digest_file
from extractors.networks import build
from model.checkpoint import export_checkpoint, main
from search.__main__ import main as ask_search
from settings import load_settings
from stores import open_store
from tests.unit.extractors.networks.test_vse_grid import published

from .test_datasets import configuration, merged

pytestmark = pytest.mark.workflow

SMALLER = {
    "datasets": {"scenes": {"splits": {"train": 24, "val": 12, "test": 12}}},
    "testsets": {"scenes_test": {"folds": 2}},
}


def read(workflow, place):
    return json.loads((workflow.results / place / "scenes_test/metrics.json").read_text())


def ask(workflow, capsys, sentence, *, run):
    """What `python -m search ask` prints of all images, by one run or by all of them."""
    capsys.readouterr()
    chosen = [] if run is None else ["--run", run]
    asked = ["ask", sentence, "--dataset", "mine", "--results", str(workflow.results), "--top", "99", "--json"]
    ask_search([*asked, *chosen])
    return json.loads(capsys.readouterr().out)


def write_grid_checkpoint(path, other):
    """A grid checkpoint as VSE-infinity's authors publish it: a seeded CNN on 64 x 64 pixels, a head, and the text side of `other`."""
    torch.manual_seed(0)
    cnn, (image, text) = build("vse_grid_detector"), torch.load(other, weights_only=False)["model"]
    for key, value in cnn.state_dict().items():
        if key.endswith("conv3.norm.weight"):
            value.fill_(0.2)  # residuals must not pile up
    head = {f"image_encoder.{key}": value for key, value in image.items() if key.startswith("gpool.")}
    head |= {"image_encoder.fc.weight": torch.randn(64, 2048) / 45, "image_encoder.fc.bias": torch.randn(64)}
    options = argparse.Namespace(precomp_enc_type="backbone", backbone_source="detector", input_scale_factor=0.25)
    content = {"epoch": 1, "model": [published(cnn) | head, text], "best_rsum": 0.0, "opt": options, "Eiters": 1}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def test_kinds_train_are_scored_and_come_in_as_checkpoints(repository, make_workflow, capsys):
    config = configuration(repository, "kinds", SMALLER | {"results": "results"})
    for run in config["runs"].values():
        run["training"] = run["training"] | {"epochs": 2, "batch_size": 24, "lr_decay_epochs": [1]}
    # As its authors number classes, and a text encoder of 32 features is read.
    config["runs"]["region"] = merged(
        config["runs"]["region"], {"model": {"class_order": "upsnet"}, "text": {"heads": 1}}
    )
    workflow = make_workflow(config)
    result = workflow.run("evaluate")
    assert result.returncode == 0, result.stdout + result.stderr
    scored = {run: read(workflow, f"evaluation/{run}") for run in config["runs"]}
    for place in ("ensembles/scan", "ensembles/all", "ensembles/vse_region_grid"):
        scored[place] = read(workflow, place)
    assert all(metrics["captions"] == 60 for metrics in scored.values())
    folders = {path.parent.parent.name for path in workflow.results.glob("evaluation/*/*/scores.zarr")}
    assert folders == {"t2i", "i2t"}

    # Out in their authors' formats, and in again: by the workflow, and by hand. Theirs is never as small as this 3SHNet.
    for run in ("region", "vse", "t2i"):
        export_checkpoint(workflow.results / "runs" / run, workflow.folder / f"{run}.pth", check=run != "region")
    vocabulary = str(workflow.folder / "vse_precomp_vocab.json")
    main(["import", str(workflow.folder / "vse.pth"), str(workflow.results / "runs/kept"), "--vocabulary", vocabulary])
    weights = (workflow.results / "runs/kept/model.safetensors").read_bytes()
    # A grid checkpoint is an extractor and a head.
    write_grid_checkpoint(workflow.folder / "grid.pth", workflow.folder / "vse.pth")
    cells = {"architecture": "vse_grid_detector", "weights": "grid.pth", "grid": "native"}
    run = {"dataset": "scenes", "visual": "regions"}
    vse = run | {"model": {"kind": "vse_infinity"}}
    as_trained = {"folder": "results/runs/t2i", "visual": "regions"}
    workflow.config = merged(
        {key: value for key, value in config.items() if key not in ("runs", "ensembles")},
        {
            "runs": {
                "paper": run | {"checkpoint": "region.pth", "vocabulary": "results/runs/region/vocab.txt"},
                "scan": run
                | {"model": {"kind": "scan"}, "checkpoint": "t2i.pth", "vocabulary": "t2i_precomp_vocab.json"},
                "kept": vse,
                "cells": vse | {"visual": "grids", "checkpoint": "grid.pth", "vocabulary": "vse_precomp_vocab.json"},
            },
            "features": {"grids": cells},
            "ensembles": {"all": {"runs": ["paper", "scan", "kept"]}},
            "search": {"mine": {"dataset": "scenes", "runs": ["paper", "scan"], "imported": {"trained": as_trained}}},
        },
    )
    result = workflow.run("report", "search")
    assert result.returncode == 0, result.stdout + result.stderr
    for run, trained in (("paper", "region"), ("scan", "t2i"), ("kept", "vse")):
        assert read(workflow, f"evaluation/{run}")["rsum"] == pytest.approx(scored[trained]["rsum"])
    assert read(workflow, "ensembles/all")["rsum"] == pytest.approx(scored["ensembles/all"]["rsum"])
    assert (workflow.results / "runs/kept/model.safetensors").read_bytes() == weights
    page = (workflow.results / "report/index.html").read_text()
    assert all(f">{run}<" in page for run in workflow.config["runs"])
    assert read(workflow, "evaluation/cells")["captions"] == 60
    trained = json.loads((workflow.results / "runs/cells/config.json").read_text())["features"]["visual"]
    grids = open_store(workflow.results / "scenes/features/grids.zarr")
    assert grids.rows("grid_shapes", [0, 47]).tolist() == [[2, 2], [2, 2]]
    assert grids.attributes["weights_digest"] == trained["weights_digest"] == digest_file(workflow.folder / "grid.pth")

    # Asked: two checkpoints that were imported, 3SHNet's and SCAN's, and the SCAN run as it was trained.
    answers = {
        run: ask(workflow, capsys, "two dogs on the grass", run=run) for run in (None, "paper", "scan", "trained")
    }
    assert answers[None]["runs"] == ["paper", "scan", "trained"]
    scores = {run: {hit["image_id"]: hit["score"] for hit in answer["images"]} for run, answer in answers.items()}
    assert all(len(found) == 48 for found in scores.values()) and scores["paper"] != scores["scan"]
    assert scores["scan"] == pytest.approx(scores["trained"], abs=1e-5)
    for image, score in scores[None].items():
        assert score == pytest.approx((scores["paper"][image] + 2 * scores["scan"][image]) / 3, abs=1e-5)


def test_the_configuration_for_coco_is_whole(repository):
    settings = load_settings(configuration(repository, "coco_kinds"), check_files=False)
    scan = settings.runs["scan_i2t"]
    assert (scan.model.cross_attn, scan.training.optimizer, scan.training.epochs) == ("i2t", "adam", 20)
    assert (
        settings.runs["vse_words"].training.weight_decay == 0.01 and settings.runs["region"].training.batch_size == 256
    )
    assert settings.runs["vse_grid"].training.token_drop_varies and settings.runs["vse_grid"].val_images == 1000
