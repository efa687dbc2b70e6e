"""The configuration: defaults load, and every mistake is reported at once with its key, value and fix."""

import copy
import json

import pytest

from core.console import UserError
from core.section import canonical
from settings import load_settings


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
    assert "datasets.other.source: 'foldr' is not a source here; did you mean 'folder'?" in lines
    assert any(line.startswith("runs.region.training.epochs: 'ten' - ") for line in lines)
    for place in ("ensembles.region_grid", "search.scenes"):
        assert f"{place}.runs: 'grid' is not under runs; add it there" in lines
    assert len(lines) == 9


def test_names_become_folders_and_are_checked(config):
    for name in ("../up", "a b", "", "x" * 65):
        broken = copy.deepcopy(config)
        broken["datasets"][name] = config["datasets"]["scenes"]
        assert any(line.startswith("datasets.") for line in mistakes(broken))


@pytest.mark.parametrize("results", ["gs://bucket/x", "s3://bucket", "s3:///x"])
def test_results_lie_in_folders_or_in_folders_of_buckets(config, results):
    (line,) = mistakes(config | {"results": results})
    assert line.startswith(f"results: {results!r}") and "s3://BUCKET/FOLDER" in line


def test_references_are_checked(config):
    config["runs"]["region"]["dataset"] = "scene"
    config["testsets"]["one"] = {"dataset": "scenes", "split": "tset"}
    config["ensembles"]["two"] = {"runs": ["region", "gird"]}
    config["ensembles"]["three"] = {"runs": ["grid", "grid"]}
    config["ensembles"]["grid"] = {"runs": ["region", "grid"]}
    lines = mistakes(config)
    assert "runs.region.dataset: 'scene' is not under datasets; did you mean 'scenes'?" in lines
    assert any(
        line.startswith("testsets.one.split: dataset 'scenes' has no split 'tset' (it has test, train, val)")
        for line in lines
    )
    assert "ensembles.two.runs: 'gird' is not under runs; did you mean 'grid'?" in lines
    assert "ensembles.three.runs: ['grid', 'grid'] names a run twice; remove the repeat" in lines
    assert "ensembles.grid: there is a run of the same name; rename one of them" in lines


def test_a_test_set_without_its_split(config):
    config["datasets"]["scenes_dusk"]["splits"] = {"train": 5}
    assert any("has no split 'test'" in line and "scenes_dusk" in line for line in mistakes(config))


def test_files_that_do_not_exist(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config["datasets"]["mine"] = {"source": "folder", "images": "photos", "captions": "captions.csv"}
    config["features"]["regions"]["weights"] = "weights/mine.safetensors"
    config["features"]["grids"]["weights"] = str(tmp_path)
    config["features"]["panoptic"]["weights"] = "x" * 300
    with pytest.raises(UserError) as error:
        load_settings(config)
    message = str(error.value)
    assert f"features.grids.weights: file '{tmp_path}' is a folder; name the file itself" in message
    assert "xxx' does not exist" in message
    assert "datasets.mine.images: folder 'photos' does not exist" in message
    assert "datasets.mine.captions: file 'captions.csv' does not exist" in message
    assert "features.regions.weights: file 'weights/mine.safetensors' does not exist" in message


def test_paths_from_any_folder(config, tmp_path, monkeypatch, repository):
    """`~` is the user's home; the repository's own weights are found where they are."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    (home / "photos").mkdir(parents=True)
    (home / "a.txt").write_text("x")
    config["datasets"]["mine"] = {"source": "folder", "images": "~/photos", "split_files": {"a": "~/a.txt"}}
    settings = load_settings(config)
    assert settings.datasets["mine"].images == "home/photos"
    assert settings.datasets["mine"].split_files == {"a": "home/a.txt"}
    assert settings.features.regions.weights == str(repository / "weights/scenes_regions.safetensors")
    (tmp_path / "weights").symlink_to(repository / "weights")
    assert load_settings(config).features.regions.weights == "weights/scenes_regions.safetensors"


def test_a_run_needs_captions(config):
    config["datasets"]["mine"] = {"source": "folder", "images": "photos"}
    config["runs"]["region"]["dataset"] = "mine"
    config["testsets"]["mine_test"] = {"dataset": "mine"}
    lines = mistakes(config)
    assert any(line.startswith("runs.region.dataset: 'mine' has no captions") for line in lines)
    assert any(line.startswith("testsets.mine_test.dataset: 'mine' has no captions") for line in lines)


def test_wrong_values_do_not_hide_wrong_references(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config["seedd"] = 1
    config["datasets"]["mine"] = {"source": "folder", "images": "photos", "shards": 0}
    config["features"]["grids"]["weights"] = "no.safetensors"
    config["runs"]["region"]["dataset"] = "scenez"
    config["runs"]["region"]["training"] = {"epochs": 0}
    config["ensembles"]["region_grid"]["runs"] = ["region", "gird"]
    with pytest.raises(UserError) as error:
        load_settings(config)
    message = str(error.value)
    for line in (
        "seedd: unknown key; did you mean 'seed'?",
        "datasets.mine.shards: 0 - should be greater than or equal to 1",
        "datasets.mine.images: folder 'photos' does not exist; correct the path or create it",
        "features.grids.weights: file 'no.safetensors' does not exist; correct the path",
        "runs.region.dataset: 'scenez' is not under datasets; did you mean 'scenes'?",
        "runs.region.training.epochs: 0 - should be greater than or equal to 1",
        "ensembles.region_grid.runs: 'gird' is not under runs; did you mean 'grid'?",
    ):
        assert f"  {line}\n" in message + "\n", line


def test_what_a_mistake_leaves_behind_is_no_mistake(config):
    """Nothing is said of references to a wrong entry, nor of the defaults that stand in for its wrong values."""
    config["datasets"]["scenes"]["splits"] = {"train": "many", "val": 10, "test": 10}
    config["datasets"]["scenes_dusk"] = {"source": "foldr"}
    config["datasets"]["small"] = {"source": "scenes", "splits": {"val": 5}}
    config["runs"]["region"]["visual"] = "region"
    config["runs"]["grid"]["text"] = {"pretrained": None, "hidden_size": 127, "heads": "one"}
    config["testsets"]["small"] = {"dataset": "small", "splitt": "val"}
    assert sorted(line.split(":")[0] for line in mistakes(config)) == [
        "datasets.scenes.splits.train",
        "datasets.scenes_dusk.source",
        "runs.grid.text.heads",
        "runs.region.visual",
        "testsets.small.splitt",
    ]


def test_a_list_with_a_wrong_item_hides_nothing(config):
    config["ensembles"]["region_grid"]["runs"] = ["region", 3]
    config["testsets"]["scenes_test"]["dataset"] = "scenez"
    assert [line.split(":")[0] for line in mistakes(config)] == [
        "ensembles.region_grid.runs.1",
        "testsets.scenes_test.dataset",
    ]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"runs": None}, "runs: None - is empty; fill it in or remove the key"),
        ({"features": {"grids": {"grid": "nativ"}}}, "features.grids.grid: 'nativ' - should be a valid integer or 'native'"),
        ({"datasets": {"a": {"images": "x"}}}, "datasets.a.source: missing; choose one of scenes, folder, karpathy, precomputed"),
        ({"datasets": {7: {"source": "scenes", "splits": {"test": 1}}}}, "datasets.7: 7 - is a name that is no text; put it in quotes"),
        ({"datasets": {"runs": {"source": "scenes", "splits": {"test": 1}}}}, "datasets.runs: the workflow has a folder of this name; rename the dataset"),
        ({"results": "out/{x}"}, "results: 'out/{x}' - must be free of braces and control characters: it becomes part of file patterns"),
        ({"testsets": {"t": {"dataset": "s", "folds": 9}}}, "testsets.t.folds: 9 folds of 2 images cannot be made; lower it to 2 or less"),
        (
            {"runs": {"r": {"dataset": "s", "visual": "grids", "val_split": None, "text": {"pretrained": None, "heads": 3}}}},
            "runs.r.text.hidden_size: 128 is not a multiple of heads (3); change one of them",
        ),
        (
            {"runs": {"r": {"dataset": "s", "visual": "grids", "val_split": None, "training": {"lr_decay_epochs": [6, 3, 3]}}}},
            "runs.r.training.lr_decay_epochs: [6, 3, 3] must ascend without repeats; write [3, 6]",
        ),
        (
            {"runs": {"r": {"dataset": "s", "visual": "grids", "val_split": None, "training": {"epochs": "3"}}}},
            "runs.r.training.epochs: '3' - is text; write the number as 3, without quotes",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_messages_name_key_value_and_fix(section, expected):
    config = {"datasets": {"s": {"source": "scenes", "splits": {"train": 4, "test": 2}}}} | section
    assert mistakes(config) == [expected]


def test_precomputed_datasets_have_what_their_files_have():
    config = {
        "datasets": {
            "pre": {
                "source": "precomputed",
                "folder": "precomp",
                "features": ["regions"],
                "splits": {"test": "testall"},
            },
            "coco": {"source": "karpathy", "annotations": "a.json", "images": "i", "splits": ["train", "val"]},
            "mine": {"source": "folder", "images": "i", "splits": {"a": 1.0}, "split_files": {"a": "a.txt"}},
        },
        "runs": {"grid": {"dataset": "coco", "visual": "grids"}, "pre": {"dataset": "pre", "visual": "regions"}},
        "testsets": {"coco": {"dataset": "coco"}, "pre": {"dataset": "pre"}},
    }
    assert mistakes(config) == [
        "datasets.mine: splits (fractions) and split_files (lists) exclude each other; remove one of them",
        "runs.pre.train_split: dataset 'pre' has no split 'train' (it has test); choose one of them or add it to datasets.pre.splits",
        "runs.pre.val_split: dataset 'pre' has no split 'val' (it has test); choose one of them or add it to datasets.pre.splits",
        "runs.pre.dataset: dataset 'pre' has no panoptic features (it has regions); add the files and the name to datasets.pre.features",
        "testsets.coco.dataset: 'coco' cannot be read by run 'pre': it is trained on regions of dataset 'pre' (files), and this has regions "
        "of dataset 'coco' (architecture scenes_regions), imported, provenance 'unknown' and extracted; give both datasets features of one origin",
        "testsets.coco.split: dataset 'coco' has no split 'test' (it has train, val); choose one of them or add it to datasets.coco.splits",
        "testsets.pre.dataset: dataset 'pre' has no grids and no panoptic features (it has regions); add the files and the name to datasets.pre.features",
        "testsets.pre.dataset: dataset 'pre' has no panoptic features (it has regions); add the files and the name to datasets.pre.features",
    ]
    config["datasets"]["pre"]["features"] = ["regions", "grids"]
    config["datasets"]["pre"]["splits"] = {"test": "../testall"}
    lines = mistakes(config)
    assert "datasets.pre.features: ['regions', 'grids'] - must hold regions or grids, not both: a folder has one {split}_ims.npy" in lines  # fmt: skip
    assert any(line.startswith("datasets.pre.splits.test: '../testall' - ") for line in lines)


def test_files_of_other_sources_that_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imports = {"regions": {"format": "npz", "path": "bua"}, "grids": {"format": "pth", "path": "grids"}}
    config = {
        "datasets": {
            "pre": {"source": "precomputed", "folder": "precomp"},
            "coco": {"source": "karpathy", "annotations": "a.json", "images": "i", "imports": imports},
            "mine": {"source": "folder", "images": "i", "split_files": {"a": "a.txt"}},
        }
    }
    with pytest.raises(UserError) as error:
        load_settings(config)
    for line in (
        "datasets.pre.folder: folder 'precomp' does not exist; correct the path or create it",
        "datasets.coco.images: folder 'i' does not exist; correct the path or create it",
        "datasets.coco.annotations: file 'a.json' does not exist; correct the path",
        "datasets.coco.imports.regions.path: 'bua' does not exist; correct the path",
        "datasets.coco.imports.grids.path: 'grids' does not exist; correct the path",
        "datasets.mine.split_files.a: file 'a.txt' does not exist; correct the path",
        "features.panoptic.weights: file 'weights/scenes_panoptic.safetensors' does not exist; correct the path",
    ):
        assert f"  {line}\n" in str(error.value) + "\n", line
    # Nobody extracts anything: no weights are needed.
    (tmp_path / "precomp").mkdir()
    load_settings({"datasets": {"pre": config["datasets"]["pre"]}})


@pytest.mark.parametrize(
    ("feature", "section", "expected"),
    [
        ("regions", {"engine": "detectron"}, ["engine: 'detectron' is not an engine here; did you mean 'detectron2'?"]),
        ("regions", {"engine": "transformers"}, ["engine: 'transformers' is not an engine here; choose one of native, detectron2"]),
        ("panoptic", {"engine": None}, ["engine: None is not an engine here; choose one of native, detectron2, transformers"]),
        ("regions", {"engine": "detectron2", "confg": "x"}, ["config: missing; add it", "confg: unknown key; did you mean 'config'?"]),
        ("regions", {"confg": "x"}, ["confg: unknown key; remove it"]),
        ("panoptic", {"engine": "transformers", "weights": "a/b", "treshold": 1}, ["treshold: unknown key; did you mean 'threshold'?"]),
        ("grids", {"engine": "detectron2", "config": "x", "max_cells": 0}, ["max_cells: 0 - should be greater than or equal to 1"]),
    ],
    ids=str,
)  # fmt: skip
def test_an_engine_has_its_own_keys(config, feature, section, expected):
    config["features"][feature] = section
    config["features"]["on_bad_image"] = "ignore"
    wanted = [f"features.{feature}.{line}" for line in expected]
    found = mistakes(config)
    assert [line for line in found if not line.startswith("features.on_bad_image")] == wanted
    assert len(found) == len(wanted) + 1


def test_a_source_of_segments_that_the_network_lacks(config):
    line = "features.panoptic.source: only the semantic branch of architecture upsnet_r50 and upsnet_r101_dcn tells things apart; "
    for section in (
        {"source": "semantic"},
        {"engine": "transformers", "weights": "facebook/mask2former-swin-tiny-coco-panoptic", "source": "semantic"},
    ):
        config["features"]["panoptic"] = section
        assert mistakes(config) == [line + "choose one of them, or leave source out"]
    weights = "published:upsnet_resnet_50_coco_90000"
    config["features"]["panoptic"] = {"architecture": "upsnet_r50", "weights": weights, "source": "semantic"}
    load_settings(config, check_files=False)


@pytest.mark.parametrize(
    ("feature", "section", "expected"),
    [
        ("regions", {"architecture": "vg_r101_c4_cafe"}, "architecture: 'vg_r101_c4_cafe' is no architecture here; did you mean 'vg_r101_c4_caffe'?"),
        ("grids", {"architecture": "panoptic_fpn_r50"}, "architecture: 'panoptic_fpn_r50' makes panoptic, no grids; choose one of "),
        ("panoptic", {"architecture": "grid_x101"}, "architecture: 'grid_x101' makes regions and grids, no panoptic; choose one of "),
        ("panoptic", {"engine": "detectron2", "config": "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"}, "config: 'COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml' is a detector's; "),
    ],
    ids=str,
)  # fmt: skip
def test_a_network_that_does_not_make_the_feature(config, feature, section, expected):
    config["features"][feature] = section
    (line,) = mistakes(config)
    assert line.startswith(f"features.{feature}.{expected}")


def test_files_of_other_engines(config, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(repository / "weights")
    for name in ("mine.yaml", "mine.pkl"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "mask2former" / "cache").mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "mask2former" / name).write_text("{}")
    (tmp_path / "mask2former/model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "mask2former/README.md").touch()
    zoo = {"engine": "detectron2", "config": "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml"}

    def files(feature, section):
        config["features"][feature] = section
        return load_settings(config).features[feature].files()

    assert files("regions", zoo) == []
    assert files("regions", {"engine": "detectron2", "config": "mine.yaml", "weights": "mine.pkl"}) == [
        "mine.pkl",
        "mine.yaml",
    ]
    assert files("panoptic", {"engine": "transformers", "weights": "facebook/mask2former"}) == []
    assert files("panoptic", {"engine": "transformers", "weights": "mask2former"}) == [
        f"mask2former/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")
    ]
    assert files("grids", config["features"]["grids"]) == ["weights/scenes_grids.safetensors"]
    with pytest.raises(UserError, match="features.grids.weights: file 'nowhere.pkl' does not exist"):
        files("grids", zoo | {"weights": "nowhere.pkl"})
    with pytest.raises(UserError, match="features.grids.weights: missing; only configurations of detectron2's zoo"):
        files("grids", {"engine": "detectron2", "config": "mine.yaml"})


def test_an_empty_configuration():
    assert mistakes({}) == ["datasets: missing; add it"]


def test_protocols_and_their_positives(config, tmp_path):
    testset = config["testsets"]["scenes_test"]
    testset |= {"protocols": ["cxc", "ecv"], "benchmark": "coco5k", "positives": str(tmp_path)}
    lines = mistakes(config)
    assert any(line.startswith("testsets.scenes_test.protocols.1: 'ecv' - ") and "'eccv'" in line for line in lines)
    assert any(line.startswith("testsets.scenes_test.benchmark: 'coco5k' - ") for line in lines)
    assert len(lines) == 2
    testset |= {"protocols": [], "benchmark": "coco"}
    assert mistakes(config) == [
        f"testsets.scenes_test.positives: {str(tmp_path)!r} is of no use without protocols; add them or leave it out"
    ]


def test_missing_positives_are_found_before_any_work(config, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(repository)
    monkeypatch.setattr("evaluation.positives.PACKAGE", "eccv_caption_is_not_installed")
    config["testsets"]["scenes_test"] |= {"protocols": ["cxc"], "positives": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match="positives: folder .*nowhere' does not exist"):
        load_settings(config)
    config["testsets"]["scenes_test"]["positives"] = str(tmp_path)
    with pytest.raises(UserError, match="testsets.scenes_test.protocols: no positives for the protocol 'cxc'"):
        load_settings(config)
    for name in ("sits", "sis", "sts"):
        (tmp_path / f"{name}_test.csv").touch()
    assert load_settings(config).testsets["scenes_test"].protocols == ["cxc"]


def test_exponents_are_numbers(config):
    """YAML 1.1 takes `5e-4`, without a dot, for text."""
    config["runs"]["region"]["training"] = {**config["runs"]["region"]["training"], "learning_rate": "5e-4"}
    assert load_settings(config, check_files=False).runs["region"].training.learning_rate == 0.0005


def test_keys_that_stand_twice_in_a_file(config, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "datasets:\n  a: {source: scenes, splits: {test: 5, test: 6}}\nruns:\n  region: &run {dataset: a}\n"
        "  grid: {<<: *run, dataset: a}\n  region: {dataset: a}\n"
    )
    with pytest.raises(UserError) as error:
        load_settings(config, check_files=False, files=[path])
    assert str(error.value).splitlines() == [
        "2 mistakes in the configuration:",
        f"  datasets.a.splits.test: stands twice in {path}, line 2; keep one, or rename it",
        f"  runs.region: stands twice in {path}, lines 4 and 6; keep one, or rename it",
    ]


def test_sections_on_the_command_line_have_their_types(config):
    """Snakemake gives `--config 'runs={region: {training: {epochs: 3}}}'` as text all the way down."""
    given = {"seed": 7, "runs": {"region": {"val_split": "null", "training": {"epochs": "3", "learning_rate": "5e-4"}}}}
    given["runs"]["region"]["training"] |= {"lr_decay_epochs": ["2"], "mask_same_image": "true", "gradient_clip": "1.5"}
    config["seed"] = 7
    for key in ("val_split",):
        config["runs"]["region"][key] = given["runs"]["region"][key]
    config["runs"]["region"]["training"] = {
        **config["runs"]["region"]["training"],
        **given["runs"]["region"]["training"],
    }
    run = load_settings(config, check_files=False, given=given).runs["region"]
    assert (run.val_split, run.training.epochs, run.training.learning_rate) == (None, 3, 0.0005)
    assert (run.training.lr_decay_epochs, run.training.mask_same_image, run.training.gradient_clip) == ([2], True, 1.5)
    assert run.training.batch_size == config["runs"]["region"]["training"]["batch_size"]


def test_mistakes_between_keys_hide_no_other(config):
    """Two kinds of splits, and the rest of both the dataset and those that use it."""
    config["datasets"]["mine"] = {
        "source": "folder",
        "images": "i",
        "splits": {"a": 1.0},
        "split_files": {"a": "a.txt"},
    }
    config["datasets"]["mine"]["shards"] = 0
    config["testsets"]["scenes_test"] |= {"split": "tset", "positives": "x"}
    config["testsets"]["scenes_test"]["folds"] = -1
    config["runs"]["region"] = {**config["runs"]["region"], "train_split": "trian", "seed": -1}
    assert [line.split(": ")[0] for line in mistakes(config)] == [
        "datasets.mine.shards",
        "runs.region.seed",
        "testsets.scenes_test.folds",
        "datasets.mine",
        "runs.region.train_split",
        "testsets.scenes_test.split",
        "testsets.scenes_test.positives",
    ]


def test_what_is_given_twice_on_the_command_line(config):
    words = ["snakemake", "--config", "seed=1", "results=a=b", "seed=2", "runs={a: {b: 1, b: 2}}", "--cores", "seed=3"]
    with pytest.raises(UserError) as error:
        load_settings(config, check_files=False, words=words)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines == [
        "seed: stands twice in --config; keep one",
        "runs.a.b: stands twice in --config, line 1; keep one, or rename it",
    ]
    load_settings(config, check_files=False, words=words[:4])


def test_a_batch_of_more_captions_than_there_are_is_known_before_any_job(tmp_path):
    (tmp_path / "c.csv").write_text("image,caption,split\na.jpg,x,train\na.jpg,y,train\nb.jpg,x,val\n")
    dataset = {"source": "folder", "images": str(tmp_path), "captions": str(tmp_path / "c.csv")}
    run = {"dataset": "mine", "visual": "regions", "training": {"batch_size": 2}}
    load_settings({"datasets": {"mine": dataset}, "runs": {"r": run}})
    run["training"] = {"batch_size": 3}
    with pytest.raises(
        UserError,
        match="runs.r.training.batch_size: 3, but split 'train' of dataset 'mine' has only 2 captions; lower it",
    ):
        load_settings({"datasets": {"mine": dataset}, "runs": {"r": run}})
