"""Grids of a vision backbone and a text encoder of the transformers library, from pictures to metrics."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.workflow


def helpers(repository: Path, name: str):
    """A test's file as a module: what writes tiny checkpoints."""
    spec = importlib.util.spec_from_file_location(f"helpers_{Path(name).stem}", repository / "tests/unit" / name)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_backbone_and_an_encoder_by_folder(make_workflow, tmp_path):
    from stores import open_store

    repository = Path(__file__).parents[2]
    images, texts = (
        helpers(repository, "extractors/test_grids_transformers.py"),
        helpers(repository, "model/test_library_encoder.py"),
    )
    for name in ("dino", "roberta"):
        (tmp_path / name).mkdir()
    images.make_checkpoint(tmp_path / "dino", "dinov2_with_registers")
    texts.written(tmp_path / "roberta", *texts.FAMILIES["roberta"][:3])
    workflow = make_workflow(
        {
            "datasets": {"tiny": {"source": "scenes", "seed": 11, "splits": {"train": 6, "test": 4}}},
            "features": {"grids": {"engine": "transformers", "weights": str(tmp_path / "dino"), "grid": 3}},
            "runs": {
                "mine": {
                    "dataset": "tiny",
                    "visual": "grids",
                    "val_split": None,
                    "model": {"kind": "vse_infinity", "embed_size": 16},
                    "text": {"pretrained": str(tmp_path / "roberta"), "max_tokens": 20},
                    "training": {"epochs": 1, "batch_size": 6},
                }
            },
            "testsets": {"tiny_test": {"dataset": "tiny"}},
        }
    )
    done = workflow.run("evaluate")
    assert done.returncode == 0, done.stdout + done.stderr
    store = open_store(workflow.results / "tiny/features/grids.zarr")
    assert store.shape("features")[1:] == (9, 32)
    assert store.attributes["engine"] == "transformers" and store.attributes["model"] == "dinov2_with_registers"
    metrics = json.loads((workflow.results / "evaluation/mine/tiny_test/metrics.json").read_text())
    assert metrics["images"] == 4
    config = json.loads((workflow.results / "runs/mine/config.json").read_text())
    assert config["text"]["packed"] and len(config["pretrained"]["weights"]["model.safetensors"]) == 64
    assert workflow.planned("evaluate") == {}
