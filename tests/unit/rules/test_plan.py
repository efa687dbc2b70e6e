"""What each rule needs, without starting Snakemake: what is used, what a job reads, and what makes one run again."""

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace as W

import pytest
import yaml
from PIL import Image

from core.features import FEATURES
from rules.checkpoints import alternatives
from rules.plan import Plan, read_recipe
from settings import load_settings

SCENES = {"source": "scenes", "splits": {"train": 4, "val": 2, "test": 2}}
OWN_TEXT = {"text": {"pretrained": None}}


pytestmark = pytest.mark.usefixtures("working_folder")


def plan(config: dict, **options) -> Plan:
    return Plan(load_settings(config), **options)


@pytest.fixture
def default(repository):
    return yaml.safe_load((repository / "config.yaml").read_text())


def photos(folder: str, *names: str) -> None:
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)


# --- targets


def test_targets_are_files_of_the_results(default):
    asked = plan(default)
    index = [f"results/{d}/index/{t}.parquet" for d in ("scenes", "scenes_dusk") for t in ("images", "captions")]
    assert asked.all_indexes() == index
    grids = [f"results/{d}/features/grids.zarr/zarr.json" for d in ("scenes", "scenes_dusk")]
    assert asked.all_stores("grids") == grids
    assert asked.all_models() == [f"results/runs/{run}/model.safetensors" for run in ("region", "grid")]
    assert len(asked.used_stores()) == 6 and set(asked.all_stores(*FEATURES)) == set(asked.used_stores())
    systems = ("evaluation/region", "evaluation/grid", "ensembles/region_grid")
    tests = ("scenes_test", "dusk_test")
    assert asked.all_metrics() == [f"results/{s}/{t}/metrics.json" for s in systems for t in tests]
    ranks = [f"results/{s}/{t}/ranks.safetensors" for s in systems for t in tests]
    assert set(ranks) <= set(asked.report_inputs(W()))
    assert asked.all_tables() == [f"results/tables/results.{suffix}" for suffix in ("csv", "md", "tex")]
    exported = [f"results/{d}/export/{f}" for d in ("scenes", "scenes_dusk") for f in ("regions", "grids")]
    assert asked.all_exports() == exported
    assert asked.all_verified()[0] == "results/verified/scenes/regions.json" and len(asked.all_verified()) == 6


def test_nothing_to_score_makes_no_tables():
    asked = plan({"datasets": {"first": SCENES}})
    assert asked.all_metrics() == asked.all_tables() == asked.all_models() == []


def test_only_what_is_used_is_extracted():
    config = {
        "results": "my results",
        "datasets": {name: dict(SCENES) for name in ("first", "second", "tested", "unused")},
        "runs": {
            "region": {"dataset": "first", "visual": "regions"} | OWN_TEXT,
            "grid": {"dataset": "second", "visual": "grids"} | OWN_TEXT,
        },
        "testsets": {"test": {"dataset": "tested"}},
    }
    used = {
        "first": ["regions", "panoptic"],
        "second": ["grids", "panoptic"],
        "tested": ["regions", "grids", "panoptic"],
        "unused": ["regions", "grids", "panoptic"],
    }
    asked = plan(config)
    assert asked.used_stores() == [
        f"my results/{dataset}/features/{feature}.zarr/zarr.json"
        for dataset, names in used.items()
        for feature in names
    ]
    reported = asked.report_inputs(W())
    assert [path for path in reported if path.endswith("zarr.json")] == asked.used_stores()
    assert [f for f in FEATURES if f"my results/first/features/{f}.receipts/0.json" in reported] == used["first"]


def test_a_run_reads_what_its_model_needs(default, repository):
    """A model that needs no panoptic segmentation gets none, and none is extracted for it."""
    asked, run, test = plan(default), W(run="grid"), W(run="grid", testset="dusk_test")
    names = {"images", "captions", "visual", "panoptic"}
    assert asked.run_inputs(run).keys() == names | {"pretrained"}
    assert asked.encode_inputs(test).keys() == names | {"model", "config", "vocabulary"}
    stores = ["--visual", "results/scenes/features/grids.zarr", "--panoptic", "results/scenes/features/panoptic.zarr"]
    assert asked.run_stores(run) == stores
    assert asked.encode_stores(test) == [text.replace("scenes", "scenes_dusk") for text in stores]

    toy = str(repository / "tests/fixtures/toy_network.py")
    for settings in default["runs"].values():
        settings["model"] = {"kind": toy, "embed_size": 16}
    asked = plan(default)
    for inputs in (asked.run_inputs(run), asked.encode_inputs(test)):
        assert "panoptic" not in inputs and inputs["network"] == toy
    assert asked.run_stores(run) == stores[:2]
    assert asked.needed_features("scenes") == ["regions", "grids"]


# --- indexes


def test_images_need_no_more_than_their_folder(repository):
    config = yaml.safe_load((repository / "configs/folder.yaml").read_text())
    photos("images", "one.png")
    config["datasets"]["mine"]["images"] = "images"
    asked, mine = plan(config), W(dataset="mine", feature="regions")
    assert asked.index_sources(mine) == asked.index_flags(mine) == []
    assert asked.all_stores("regions") == ["results/mine/mine/features/regions.zarr/zarr.json"]
    assert asked.receipts(mine) == ["results/mine/mine/features/regions.receipts/0.json"]


def test_an_index_knows_which_splits_are_read(default, any_checkpoint):
    Path("theirs.pth").write_bytes(b"x")
    default["runs"]["region"] = {"dataset": "scenes", "visual": "regions", "checkpoint": "theirs.pth"}
    default["runs"]["grid"] |= {"train_split": "learn", "val_split": None}
    default["datasets"]["scenes"]["splits"]["learn"] = 100
    asked = plan(default)
    assert asked.index_needed(W(dataset="scenes"), None) == ["--needed", "learn", "test"]
    assert asked.index_needed(W(dataset="scenes_dusk"), None) == ["--needed", "test"]
    default |= {"runs": {}, "testsets": {}, "ensembles": {}, "search": {}}
    assert plan(default).index_needed(W(dataset="scenes"), None) == []


@pytest.fixture
def mine():
    """Two photographs, one of them in a subfolder."""
    photos("my photos", "one.png", "sub/two.png")
    return plan({"datasets": {"mine": {"source": "folder", "images": "my photos"}}})


@pytest.mark.parametrize("change", ["added", "added below", "replaced", "removed"])
def test_changed_images_are_noticed(mine, change):
    before = mine.ask("datasets.{dataset}.state")(W(dataset="mine"))
    if change == "added":
        photos("my photos", "three.png")
    elif change == "added below":
        photos("my photos", "sub/three.png")
    elif change == "replaced":
        Image.new("RGB", (40, 30), (1, 2, 3)).save("my photos/one.png")
    else:
        Path("my photos/sub/two.png").unlink()
    assert mine.ask("datasets.{dataset}.state")(W(dataset="mine")) != before


def test_files_that_are_no_images_change_nothing(mine):
    before = mine.ask("datasets.{dataset}.state")(W(dataset="mine"))
    for name in ("notes.txt", "._one.png"):
        Path("my photos", name).write_text("x")
    assert mine.ask("datasets.{dataset}.state")(W(dataset="mine")) == before


def test_an_index_names_what_it_is_made_from():
    photos("photos", "one.png")
    for name in ("captions.csv", "train.txt", "photos.zip", "karpathy.json"):
        Path(name).write_text("x")
    for name in ("train_caps.txt", "train_ids.txt", "train_ims.npy"):
        Path("photos", name).touch()
    datasets = {
        "drawn": SCENES,
        "zip": {"source": "folder", "images": "photos.zip", "captions": "captions.csv"},
        "lists": {"source": "folder", "images": "photos", "split_files": {"train": "train.txt"}},
        "coco": {"source": "karpathy", "annotations": "karpathy.json", "images": "photos"},
        "files": {"source": "precomputed", "folder": "photos", "splits": {"train": "train"}, "features": ["regions"]},
    }
    asked = plan({"datasets": datasets})
    sources = {name: asked.index_sources(W(dataset=name)) for name in datasets}
    assert sources == {
        "drawn": ["results/drawn/scenes"],
        "zip": ["captions.csv", "results/zip/images"],
        "lists": ["train.txt"],
        "coco": ["karpathy.json"],
        "files": ["photos/train_caps.txt", "photos/train_ids.txt", "photos/train_ims.npy"],
    }
    flags = {name: asked.index_flags(W(dataset=name)) for name in datasets}
    assert flags.pop("drawn") == ["--annotations", "results/drawn/scenes"]
    assert flags.pop("zip") == ["--unpacked", "results/zip/images"]
    assert not any(flags.values())
    assert asked.packed == "zip" and asked.ask("datasets.{dataset}.archive")(W(dataset="zip")) == "photos.zip"


# --- stores


def test_other_engines_name_their_files():
    """A checkpoint folder's files and a local configuration are inputs; names in a hub or a zoo are not."""
    files = ("mine.yaml", "mine.pkl", "mask2former/config.json", "mask2former/model.safetensors")
    files = (*files, "mask2former/preprocessor_config.json")
    Path("mask2former").mkdir()
    for name in files:
        weights = (2).to_bytes(8, "little") + b"{}"
        Path(name).write_bytes({".json": b"{}", ".safetensors": weights}.get(Path(name).suffix, b"x"))
    asked = plan(
        {
            "datasets": {"tiny": SCENES},
            "features": {
                "regions": {"engine": "detectron2", "config": "mine.yaml", "weights": "mine.pkl"},
                "grids": {"engine": "detectron2", "config": "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml"},
                "panoptic": {"engine": "transformers", "weights": "mask2former"},
            },
        }
    )
    inputs = {feature: asked.ask("features.{feature}.files")(W(feature=feature)) for feature in FEATURES}
    assert inputs == {"regions": ["mine.pkl", "mine.yaml"], "grids": [], "panoptic": list(files[2:])}
    environments = {feature: asked.feature_environment(W(feature=feature)) for feature in FEATURES}
    folder = "../envs/{}.yaml".format
    assert list(environments.values()) == [folder("detectron2"), folder("detectron2"), folder("transformers")]


def test_environments_are_there(default, repository):
    for feature in FEATURES:
        assert (repository / "rules" / plan(default).feature_environment(W(feature=feature))).is_file()


def test_the_recipe_in_the_rules_is_the_commands_own(default):
    asked = plan(default)
    for feature in FEATURES:
        module = importlib.import_module(f"extractors.{feature}")
        assert asked.feature_recipe(W(feature=feature)) == module.RECIPE
    assert asked.import_recipe == importlib.import_module("exchange.importing").RECIPE
    assert read_recipe("exchange", "importing.py") == asked.import_recipe


def test_imported_features_beside_extracted_ones():
    """Of one dataset the regions are read from files and the rest is extracted; a job is one or the other."""
    photos("photos", "one.png")
    Path("bua").mkdir()
    folder = {"source": "folder", "images": "photos"}
    imports = {"regions": {"format": "npz", "path": "bua", "num_regions": 10}}
    asked = plan({"datasets": {"mine": folder | {"imports": imports}, "mine2": folder}})

    def datasets(pattern: str, feature: str) -> list[str]:
        paths = [f"{name}/features/{feature}.receipts/0.json" for name in ("mine", "mine2")]
        return [path.split("/")[0] for path in paths if re.match(f"(?:{pattern})/features/", path)]

    assert datasets(asked.imported, "regions") == ["mine"] and datasets(asked.extracted, "regions") == ["mine2"]
    for feature in ("grids", "panoptic"):
        assert datasets(asked.imported, feature) == [] and datasets(asked.extracted, feature) == ["mine", "mine2"]
    regions = W(dataset="mine", feature="regions")
    assert asked.import_files(regions) == ["bua"]
    assert json.loads(asked.import_source(regions)) == imports["regions"] | {"provenance": "unknown"}


def test_other_words_for_the_origin_of_features_make_other_stores_and_no_other_index():
    Path("pre").mkdir()
    dataset = {"source": "precomputed", "folder": "pre", "splits": {"train": "train"}}
    before, after = (plan({"datasets": {"coco": dataset | extra}}) for extra in ({}, {"provenance": "another"}))
    regions = W(dataset="coco", feature="regions")
    assert before.import_source(regions) != after.import_source(regions)
    settings = "datasets.{dataset}.index_settings"
    assert before.ask(settings)(regions) == after.ask(settings)(regions)
    assert before.import_files(W(dataset="coco", feature="panoptic")) == [
        f"pre/train_{name}.npy" for name in ("seg_maps", "cat_onehots", "segmentations")
    ]


def test_how_many_jobs_a_feature_is_changes_no_index(default):
    before = plan(default)
    default["datasets"]["scenes"]["shards"] = 7
    after, scenes = plan(default), W(dataset="scenes", feature="grids")
    for place in ("datasets.{dataset}.index_settings", "datasets.{dataset}.render_settings"):
        assert before.ask(place)(scenes) == after.ask(place)(scenes)
    assert after.ask("datasets.{dataset}.shards")(scenes) == len(after.receipts(scenes)) == 7


def test_an_export_takes_panoptic_along_where_it_is_wanted(default):
    grids = W(dataset="scenes", feature="grids")
    assert plan(default).export_inputs(grids).keys() == {"images", "captions", "visual", "panoptic"}
    default["export"] = {"features": ["grids"], "names": {"val": "dev"}, "repeat_images": True}
    asked = plan(default)
    assert asked.export_stores(grids) == ["--visual", "results/scenes/features/grids.zarr"]
    assert "panoptic" not in asked.export_inputs(grids)
    assert [path.split("/")[-1] for path in asked.all_exports()] == ["grids", "grids"]
    assert asked.export_flags()[:2] == ["--names", '{"val": "dev"}'] and "--repeat-images" in asked.export_flags()


# --- runs, test sets, scores


def test_a_run_takes_the_seed_of_the_configuration_unless_it_has_one(default):
    default["seed"] = 5
    default["runs"]["grid"] = default["runs"]["grid"] | {"seed": 0}
    asked = plan(default)
    seeds = [json.loads(asked.run_settings(W(run=run)))["seed"] for run in ("region", "grid")]
    assert seeds == [5, 0]


def test_a_recipe_says_nothing_of_data(default):
    """A dataset and its stores are inputs: only their contents decide whether a run is trained again."""
    recipe = json.loads(plan(default).run_settings(W(run="grid")))
    assert {"model", "text", "training", "train_split", "val_split", "seed"} == recipe.keys()


def test_a_published_text_encoder_is_an_input_file_by_file():
    run = {"dataset": "tiny", "visual": "grids", "text": {"pretrained": "published:bert-base-uncased"}}
    config = {"datasets": {"tiny": SCENES}, "runs": {"run": run}}
    files = plan(config).run_inputs(W(run="run"))["pretrained"]
    assert {Path(file).parent.as_posix() for file in files} == {"published_weights/bert-base-uncased"}
    assert len(files) == 3 and all(re.fullmatch(plan(config).published, "/".join(Path(f).parts[1:])) for f in files)
    Path("bert").mkdir()
    own = config | {"published": {"files": {"bert-base-uncased": "bert"}}}
    assert plan(own).run_inputs(W(run="run"))["pretrained"] == []


def test_protocols_of_a_test_set_reach_its_metrics_alone(default):
    positives = Path("cxc data")
    positives.mkdir()
    for name in ("sits", "sis", "sts"):
        (positives / f"{name}_test.csv").touch()
    default["testsets"]["scenes_test"] |= {"protocols": ["cxc"], "positives": str(positives)}
    asked, scenes, dusk = plan(default), W(testset="scenes_test"), W(testset="dusk_test")
    assert asked.protocol_flags(scenes) == ["--protocols", "cxc", "--positives", "cxc data"]
    assert asked.protocol_flags(dusk) == asked.protocol_files(dusk) == []
    assert "cxc data/sits_test.csv" in asked.protocol_files(scenes), "a changed file must be noticed"


def test_an_ensemble_reads_the_embeddings_of_its_runs(default):
    files = plan(default).ensemble_inputs(W(ensemble="region_grid", testset="dusk_test"))
    assert files == [f"results/evaluation/{run}/dusk_test/embeddings.zarr" for run in ("region", "grid")]


def test_tables_and_report_keep_the_order_of_the_configuration(default):
    default["runs"] = {name: default["runs"]["region"] for name in ("z", "a")}
    default["ensembles"], default["search"] = {"e": {"runs": ["z", "a"]}}, {}
    shown = json.loads(plan(default).table_settings(W()))
    assert list(shown["runs"]) == ["z", "a"] and list(shown["ensembles"]) == ["e"]
    assert shown["testsets"] == {name: {"benchmark": None} for name in ("scenes_test", "dusk_test")}
    assert list(json.loads(plan(default).report_settings(W()))["runs"]) == ["z", "a"]


# --- machines


def test_threads_share_the_cores(default):
    jobs = 2 * 3  # shards and features
    for cores, training, extraction in ((1, 1, 1), (8, 4, 1), (4 * jobs, 2 * jobs, 4), (1000, 500, 4)):
        asked = plan(default, cores=cores)
        assert (asked.training_threads(W()), asked.extraction_threads(W())) == (training, extraction)


def test_results_in_a_bucket(default, monkeypatch):
    """Files of the workflow are wrapped, data that commands find in place is not; what must be at hand stays here."""
    default["results"] = "s3://lab/x"
    monkeypatch.setattr("rules.checkpoints.imported_by_hand", lambda folder: folder == "s3://lab/x/runs/region")
    asked = plan(default, kept="<{}>".format, ancient="old:{}".format)
    assert asked.work == "results/lab/x"
    scenes = W(dataset="scenes", feature="grids", run="grid")
    assert asked.index_sources(scenes) == ["old:results/lab/x/scenes/scenes"]
    assert asked.run_stores(scenes)[1] == "s3://lab/x/scenes/features/grids.zarr"
    assert asked.run_inputs(scenes)["visual"] == "<s3://lab/x/scenes/features/grids.zarr/zarr.json>"
    assert asked.all_verified()[0] == "results/lab/x/verified/scenes/regions.json"
    assert asked.all_searches() == ["<s3://lab/x/search/scenes/search.json>"]
    search = W(search="scenes")
    assert asked.search_place(search) == "s3://lab/x/search/scenes"
    assert json.loads(asked.search_runs(search))["grid"]["folder"] == "s3://lab/x/runs/grid"
    assert asked.trained == "grid", "a checkpoint that somebody put into a bucket is not trained over"
    assert asked.receipts(scenes)[0] == "<s3://lab/x/scenes/features/grids.receipts/0.json>"


def test_a_constraint_matches_its_names_only():
    assert re.fullmatch(alternatives(["a.b", "c"]), "a.b") and not re.fullmatch(alternatives(["a.b"]), "axb")
    assert not re.search(alternatives([]), "") and not re.search(alternatives([]), "x")


@pytest.mark.parametrize(("source", "flags"), [("scenes", []), ("folder", ["--photographs"])])
def test_a_search_of_other_pictures_than_drawings_is_told_so(working_folder, source, flags):
    photos(working_folder / "photos", "a.jpg", "b.jpg")
    own = {"source": "folder", "images": "photos"}
    runs = {"run": {"dataset": "drawn", "visual": "grids", **OWN_TEXT}}
    config = {"datasets": {"drawn": SCENES, "mine": SCENES if source == "scenes" else own}, "runs": runs}
    asked = plan(config | {"search": {"mine": {"dataset": "mine", "runs": ["run"]}}})
    assert asked.search_flags(W(search="mine")) == flags
