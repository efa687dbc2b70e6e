"""The configuration: defaults load, and every mistake is reported at once with its key, value and fix."""

import copy
import json

import pytest
import yaml

from console import UserError
from settings import canonical, load_settings


@pytest.fixture
def config(repository):
    return yaml.safe_load((repository / "config.yaml").read_text())


def mistakes(config) -> list[str]:
    with pytest.raises(UserError) as error:
        load_settings(config, check_files=False)
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{len(lines)} mistake")
    return [line.strip() for line in lines]


def test_the_default_is_valid_and_canonical(config):
    settings = load_settings(config, check_files=False)
    assert set(settings.runs) == {"region", "grid"}
    section = canonical(settings.runs["grid"])
    assert section == canonical(load_settings(copy.deepcopy(config), check_files=False).runs["grid"])
    assert json.loads(section)["visual"] == "grids"


def test_all_mistakes_come_at_once(config):
    config["datasts"] = {}
    config["features"]["regions"]["num_region"] = 36
    config["features"]["on_bad_image"] = "ignore"
    config["datasets"]["scenes"]["shards"] = 0
    config["datasets"]["scenes_dusk"]["stile"] = "dusk"
    config["datasets"]["other"] = {"source": "foldr"}
    config["runs"] = {"region": config["runs"]["region"] | {"training": {"epochs": "ten"}}}
    lines = mistakes(config)
    assert "datasts: unknown key; did you mean 'datasets'?" in lines
    assert "features.regions.num_region: unknown key; did you mean 'num_regions'?" in lines
    assert any(line.startswith("features.on_bad_image: 'ignore' - ") and "'drop'" in line for line in lines)
    assert any(line.startswith("datasets.scenes.shards: 0 - ") for line in lines)
    assert "datasets.scenes_dusk.stile: unknown key; did you mean 'style'?" in lines
    assert "datasets.other.source: 'foldr' is not a source; choose 'scenes' or 'folder'" in lines
    assert any(line.startswith("runs.region.training.epochs: 'ten' - ") for line in lines)
    assert len(lines) == 7


def test_names_become_folders_and_are_checked(config):
    for name in ("../up", "a b", "", "x" * 65):
        broken = copy.deepcopy(config)
        broken["datasets"][name] = config["datasets"]["scenes"]
        assert any(line.startswith("datasets.") for line in mistakes(broken))


def test_references_are_checked(config):
    config["runs"]["region"]["dataset"] = "scene"
    config["testsets"]["one"] = {"dataset": "scenes", "split": "tset"}
    config["ensembles"]["two"] = {"runs": ["region", "gird"]}
    config["ensembles"]["three"] = {"runs": ["grid", "grid"]}
    config["ensembles"]["grid"] = {"runs": ["region", "grid"]}
    lines = mistakes(config)
    assert "runs.region.dataset: 'scene' is not under datasets; did you mean 'scenes'?" in lines
    assert any(
        line.startswith("testsets.one: dataset 'scenes' has no split 'tset' (it has test, train, val)")
        for line in lines
    )
    assert "ensembles.two.runs: 'gird' is not under runs; did you mean 'grid'?" in lines
    assert "ensembles.three.runs: ['grid', 'grid'] names a run twice" in lines
    assert "ensembles.grid: there is a run of the same name; rename one of them" in lines


def test_a_test_set_without_its_split(config):
    config["datasets"]["scenes_dusk"]["splits"] = {"train": 5}
    assert any("has no split 'test'" in line and "scenes_dusk" in line for line in mistakes(config))


def test_files_that_do_not_exist(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config["datasets"]["mine"] = {"source": "folder", "images": "photos", "captions": "captions.csv"}
    with pytest.raises(UserError) as error:
        load_settings(config)
    message = str(error.value)
    assert "datasets.mine.images: folder 'photos' does not exist" in message
    assert "datasets.mine.captions: file 'captions.csv' does not exist" in message
    assert "features.regions.weights: file 'weights/scenes_regions.safetensors' does not exist" in message


def test_a_run_needs_captions(config):
    config["datasets"]["mine"] = {"source": "folder", "images": "photos"}
    config["runs"]["region"]["dataset"] = "mine"
    config["testsets"]["mine_test"] = {"dataset": "mine"}
    lines = mistakes(config)
    assert any(line.startswith("runs.region.dataset: 'mine' has no captions") for line in lines)
    assert any(line.startswith("testsets.mine_test.dataset: 'mine' has no captions") for line in lines)


def test_an_empty_configuration():
    assert mistakes({}) == ["datasets: missing; add it"]
