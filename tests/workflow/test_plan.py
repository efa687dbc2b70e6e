"""What a dry run says: the default's jobs, other configurations, and mistakes before any job starts."""

import re
import shlex

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
        "write_tables": 1,
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
    assert set(workflow.planned(target)) == rules


def test_protocols_of_a_test_set_reach_its_metrics_alone(make_workflow, repository):
    config = yaml.safe_load((repository / "config.yaml").read_text())
    workflow = make_workflow(config)
    positives = workflow.folder / "cxc data"
    positives.mkdir()
    for name in ("sits", "sis", "sts"):
        (positives / f"{name}_test.csv").touch()
    config["testsets"]["scenes_test"] |= {"protocols": ["cxc"], "positives": str(positives)}
    result = workflow.run("evaluate", "--dry-run", "--printshellcmds")
    assert result.returncode == 0, result.stdout + result.stderr
    flags = f"--protocols cxc --positives {shlex.quote(str(positives))}"
    assert result.stdout.count(flags) == 3 and result.stdout.count("python -m evaluation.metrics") == 4
    assert result.stdout.count("sits_test.csv") == 3, "a changed file must be noticed"


def test_the_folder_configuration_needs_images_only(make_workflow, repository):
    config = yaml.safe_load((repository / "configs/folder.yaml").read_text())
    workflow = make_workflow(config)
    images = workflow.folder / "images"
    images.mkdir()
    Image.new("RGB", (40, 30)).save(images / "one.png")
    config["datasets"]["mine"]["images"] = str(images)
    assert workflow.planned("regions") == {"index_dataset": 1, "extract_shard": 1, "seal_store": 1}


def documented_commands(repository) -> list[list[str]]:
    """Every `snakemake ...` line of the documentation and of the configurations, as arguments."""
    pattern = re.compile(r"^#?\s*(snakemake --?[^#`\n]*?)\s*(?:#.*)?$", re.M)
    files = [
        repository / "README.md",
        *(f for pattern in ("docs/*.md", "configs/*.yaml") for f in sorted(repository.glob(pattern))),
    ]
    found = [shlex.split(m)[1:] for f in files for m in pattern.findall(f.read_text())]
    return [[a.replace("N", "2") if a == "N" else a for a in command] for command in found]


def test_documented_commands_mean_what_they_say(repository):
    from snakemake.cli import get_argument_parser

    commands = documented_commands(repository)
    assert len(commands) >= 4 and any("--configfile" in command for command in commands)
    for command in commands:
        arguments = get_argument_parser().parse_args(command)
        # --configfile takes everything after it, targets too, if they are not put first.
        for path in arguments.configfile or []:
            assert (repository / path).is_file(), command


@pytest.fixture
def mine(make_workflow):
    """Two photographs, one of them in a subfolder, indexed."""
    workflow = make_workflow({"datasets": {"mine": {"source": "folder", "images": "my photos"}}})
    photos = workflow.folder / "my photos"
    (photos / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(photos / "one.png")
    Image.new("RGB", (30, 40)).save(photos / "sub" / "two.png")
    result = workflow.run("index")
    assert result.returncode == 0, result.stdout + result.stderr
    assert workflow.planned("index") == {}
    return workflow


@pytest.mark.parametrize("change", ["added", "added below", "replaced", "removed"])
def test_changed_images_are_noticed(mine, change):
    photos = mine.folder / "my photos"
    if change == "added":
        Image.new("RGB", (20, 20)).save(photos / "three.png")
    elif change == "added below":
        Image.new("RGB", (20, 20)).save(photos / "sub" / "three.png")
    elif change == "replaced":
        Image.new("RGB", (40, 30), (1, 2, 3)).save(photos / "one.png")
    else:
        (photos / "sub" / "two.png").unlink()
    assert mine.planned("index") == {"index_dataset": 1}


def test_files_that_are_no_images_change_nothing(mine):
    (mine.folder / "my photos" / "notes.txt").write_text("x")
    (mine.folder / "my photos" / "._one.png").write_text("x")
    assert mine.planned("index") == {}


def test_a_failed_job_shows_its_one_line(make_workflow):
    workflow = make_workflow(
        {"datasets": {"mine": {"source": "folder", "images": "photos", "captions": "captions.csv"}}}
    )
    (workflow.folder / "photos").mkdir()
    Image.new("RGB", (40, 30)).save(workflow.folder / "photos" / "one.png")
    (workflow.folder / "captions.csv").write_bytes(b"image,caption\none.png,caf\xe9\n")
    result = workflow.run("index")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "error: captions.csv, line 2: byte 0xe9 is not UTF-8" in output
    assert "Traceback" not in output


def test_only_what_is_used_is_extracted(make_workflow):
    scenes = {"source": "scenes", "splits": {"train": 4, "val": 2, "test": 2}}
    config = {
        "results": "my results",
        "datasets": {name: dict(scenes) for name in ("first", "second", "tested")},
        "runs": {
            "region": {"dataset": "first", "visual": "regions"},
            "grid": {"dataset": "second", "visual": "grids"},
        },
        "testsets": {"test": {"dataset": "tested"}},
    }
    workflow = make_workflow(config)
    result = workflow.run("--dry-run")
    assert result.returncode == 0, result.stdout + result.stderr
    planned = set(
        re.findall(
            r"^    output: my results/(\w+)/features/(\w+)\.zarr/zarr\.json", result.stdout + result.stderr, re.M
        )
    )
    used = {
        "first": ("panoptic", "regions"),
        "second": ("grids", "panoptic"),
        "tested": ("grids", "panoptic", "regions"),
    }
    assert planned == {(dataset, feature) for dataset, features in used.items() for feature in features}


def test_other_engines_name_their_files(make_workflow):
    """A checkpoint folder's files and a local configuration are inputs; names in a hub or a zoo are not."""
    config = {
        "datasets": {"tiny": {"source": "scenes", "splits": {"test": 2}}},
        "features": {
            "regions": {"engine": "detectron2", "config": "mine.yaml", "weights": "mine.pkl"},
            "grids": {"engine": "detectron2", "config": "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml"},
            "panoptic": {"engine": "transformers", "weights": "mask2former"},
        },
    }
    workflow = make_workflow(config)
    (workflow.folder / "mask2former").mkdir()
    for name in ("mine.yaml", "mine.pkl", "mask2former/config.json", "mask2former/model.safetensors"):
        (workflow.folder / name).touch()
    output = workflow.run("--dry-run", "features").stdout
    inputs = re.findall(r"^rule extract_shard:\n    input: (.*)$", output, re.M)
    index = "results/tiny/index/images.parquet"
    assert sorted(inputs) == sorted(
        [f"{index}, mine.pkl, mine.yaml", index, f"{index}, mask2former/config.json, mask2former/model.safetensors"]
    )


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
