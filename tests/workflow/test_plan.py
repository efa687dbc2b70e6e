"""What a dry run says: the default's jobs, other configurations, and mistakes before any job starts."""

import re

import pytest
import yaml
from PIL import Image

pytestmark = pytest.mark.workflow


def test_the_default_is_about_thirty_jobs(make_workflow, repository):
    workflow = make_workflow(yaml.safe_load((repository / "config.yaml").read_text()))
    assert workflow.planned() == {
        "render_scenes": 2,
        "index_dataset": 2,
        "extract_shard": 9,
        "seal_store": 6,
        "train_model": 2,
        "encode_testset": 4,
        "compute_metrics": 4,
        "compute_ensemble": 2,
        "build_report": 1,
    }


@pytest.mark.parametrize(
    ("target", "rules"),
    [
        ("index", {"render_scenes", "index_dataset"}),
        ("grids", {"render_scenes", "index_dataset", "extract_shard", "seal_store"}),
        ("train", {"render_scenes", "index_dataset", "extract_shard", "seal_store", "train_model"}),
    ],
)
def test_stage_targets(make_workflow, repository, target, rules):
    workflow = make_workflow(yaml.safe_load((repository / "config.yaml").read_text()))
    planned = workflow.planned(target)
    planned.pop(target, None)
    assert set(planned) == rules


def test_the_folder_configuration_needs_images_only(make_workflow, repository):
    config = yaml.safe_load((repository / "configs/folder.yaml").read_text())
    workflow = make_workflow(config)
    images = workflow.folder / "images"
    images.mkdir()
    Image.new("RGB", (40, 30)).save(images / "one.png")
    config["datasets"]["mine"]["images"] = str(images)
    config["results"] = str(workflow.results)
    assert workflow.planned("regions") == {"index_dataset": 1, "extract_shard": 1, "regions": 1, "seal_store": 1}


def test_the_recipe_in_the_rules_is_the_extractors_own(repository):
    import importlib

    for feature in ("regions", "grids", "panoptic"):
        source = (repository / "extractors" / f"{feature}.py").read_text()
        module = importlib.import_module(f"extractors.{feature}")
        assert re.findall(r"^RECIPE = (\d+)$", source, re.M) == [str(module.RECIPE)]


def test_all_mistakes_are_shown_before_any_job_and_without_a_traceback(make_workflow):
    workflow = make_workflow({})
    config = {
        "datasets": {"tiny": {"source": "scenes", "splits": {"train": 2}, "shard": 2}},
        "testsets": {"t": {"dataset": "tiny", "fold": 5}},
    }
    result = workflow.run(config=config)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "datasets.tiny.shard: unknown key; did you mean 'shards'?" in output
    assert "testsets.t.fold: unknown key; did you mean 'folds'?" in output
    assert "2 mistakes in the configuration" in output
    assert "Traceback" not in output
    assert not workflow.results.exists()


def test_missing_folder_and_missing_split(make_workflow):
    workflow = make_workflow({})
    config = {
        "datasets": {
            "mine": {"source": "folder", "images": "no/such/folder"},
            "tiny": {"source": "scenes", "splits": {"train": 2}},
        },
        "testsets": {"t": {"dataset": "tiny", "split": "test"}},
    }
    output = workflow.run(config=config).stderr
    assert "datasets.mine.images: folder 'no/such/folder' does not exist" in output
    assert "dataset 'tiny' has no split 'test' (it has train)" in output
