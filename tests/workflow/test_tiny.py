"""A tiny DAG, really run from rendering to report, and what runs again after a change."""

import copy
import csv
import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest
import zarr

from stores import open_store

from .conftest import TINY

pytestmark = pytest.mark.workflow


def changed(**paths) -> dict:
    """TINY with values set by dotted key."""
    config = copy.deepcopy(TINY)
    for path, value in paths.items():
        *parents, key = path.split(".")
        section = config
        for name in parents:
            section = section.setdefault(name, {})
        section[key] = value
    return config


def test_a_users_own_packages_of_our_names_do_no_harm(finished):
    assert {"catalog", "core", "model", "settings"} <= {
        path.parent.name for path in finished.folder.glob("*/__init__.py")
    }
    assert (finished.results / "report/index.html").is_file()


def test_everything_promised_is_there(finished):
    results = finished.results
    shapes = {
        "regions": {
            "features": (44, 36, 512),
            "boxes": (44, 36, 4),
            "scores": (44, 36),
            "class_ids": (44, 36),
            "counts": (44,),
        },
        "grids": {"features": (44, 49, 512), "counts": (44,), "grid_shapes": (44, 2)},
        "panoptic": {"seg_maps": (44, 64, 64), "category_onehots": (44, 133), "seg_features": (44, 133, 7, 7)},
    }
    dtypes = {"features": "f2", "boxes": "f4", "scores": "f4", "class_ids": "i2", "counts": "i2", "grid_shapes": "i2"}
    dtypes |= {"seg_maps": "u1", "category_onehots": "u1", "seg_features": "f2"}
    ids = None
    for feature, arrays in shapes.items():
        # Any zarr reader opens it: no code of ours here.
        group = zarr.open_group(str(results / "tiny" / "features" / f"{feature}.zarr"), mode="r")
        for name, shape in arrays.items():
            assert group[name].shape == shape and group[name].dtype == np.dtype(dtypes[name]), (feature, name)
        assert ids is None or list(group["image_ids"][:]) == ids
        ids = list(group["image_ids"][:])
        for key in ("schema_version", "extractor", "weights_digest", "index_digest"):
            assert key in group.attrs
    for run in ("region", "grid"):
        for name in ("model.safetensors", "config.json", "history.csv"):
            assert (results / "runs" / run / name).is_file()
    for path in ("evaluation/region", "evaluation/grid", "ensembles/both"):
        metrics = json.loads((results / path / "tiny_test" / "metrics.json").read_text())
        assert set(metrics["i2t"]) >= {"r1", "r5", "r10", "medr", "meanr"}
        assert metrics["images"] == 10 and metrics["captions"] == 50
        total = sum(metrics[d][k] for d in ("i2t", "t2i") for k in ("r1", "r5", "r10"))
        assert metrics["rsum"] == pytest.approx(total)
        low, high = metrics["intervals"]["rsum"]
        assert 0 <= low <= metrics["rsum"] <= high <= 600
    rows = list(csv.DictReader((results / "tables" / "results.csv").open()))
    assert {(row["system"], row["protocol"]) for row in rows if row["kind"] in ("run", "ensemble")} == {
        (system, protocol) for system in ("region", "grid", "both") for protocol in ("recall", "folds")
    }
    assert (results / "tables" / "results.tex").is_file() and (results / "tables" / "results.md").is_file()
    page = (results / "report" / "index.html").read_text()
    assert "tiny_test" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_features_mean_something(finished):
    regions = open_store(finished.results / "tiny" / "features" / "regions.zarr")
    counts = regions.rows("counts", range(44))
    assert counts.min() >= 10
    boxes = regions.rows("boxes", range(44))
    assert (boxes[..., 2] >= boxes[..., 0]).all() and boxes.max() <= 240
    scores = regions.rows("scores", range(44))
    assert (np.diff(scores, axis=1) <= 1e-6).all(), "best first"
    panoptic = open_store(finished.results / "tiny" / "features" / "panoptic.zarr")
    cells = panoptic.rows("seg_features", range(44)).astype(np.float32).sum(1)
    assert cells.max() <= 1.01 and cells.mean() > 0.9
    maps = panoptic.rows("seg_maps", range(44))
    assert ((maps < 133) | (maps == 255)).all()


def test_the_examples_of_the_documentation_run(finished, repository, monkeypatch):
    text = (repository / "docs" / "stores.md").read_text().replace("results/scenes/", "results/tiny/")
    examples = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(examples) == 2
    monkeypatch.chdir(finished.folder)
    for example in examples:
        names: dict = {}
        exec(example, names)
        if "group" in names:
            assert names["group"]["features"].shape == (44, 36, 512)
        else:
            assert len(names["store"]) == 44


def test_verify_reads_every_store_whenever_it_is_asked(finished):
    for _ in range(2):
        assert finished.planned("verify") == {"verify_store": 3}
        result = finished.run("verify")
        assert result.returncode == 0, result.stdout + result.stderr
        logs = [
            (finished.results / f"logs/verify_store/tiny_{f}.log").read_text() for f in ("regions", "grids", "panoptic")
        ]
        assert all(" is whole: " in log for log in logs)


def test_a_second_run_does_nothing(finished):
    assert finished.planned() == {}


def test_a_copy_without_times_does_nothing(finished, make_workflow):
    copy = make_workflow(TINY)
    shutil.copytree(finished.results, copy.results, copy_function=shutil.copyfile)
    for age, path in enumerate(sorted(copy.results.rglob("*"), reverse=True)):
        os.utime(path, (age, age))
    assert copy.planned() == {}
    (copy.results / "tiny/index/images.parquet").write_text("of other content")
    assert copy.planned("regions") == {"extract_shard": 2, "seal_store": 1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"features.on_bad_image": "drop"}, {"build_report": 1}),
        ({"features.compression": "zstd"}, {"build_report": 1}),
        ({"datasets.tiny.shards": 3}, {"build_report": 1}),
        ({"runs.region.training.workers": 1}, {"build_report": 1}),
        ({"features.grids.grid": 5}, {"extract_shard": 2, "seal_store": 1, "train_model": 1, "encode_testset": 1, "compute_metrics": 1, "compute_ensemble": 1, "write_tables": 1, "explain_gallery": 1, "build_report": 1}),
        ({"features.panoptic.seg_features": "soft"}, {"extract_shard": 2, "seal_store": 1, "train_model": 2, "encode_testset": 2, "compute_metrics": 2, "compute_ensemble": 1, "write_tables": 1, "explain_gallery": 1, "build_report": 1}),
        ({"datasets.second": {"source": "scenes", "splits": {"test": 4}}}, {"render_scenes": 1, "index_dataset": 1, "extract_shard": 3, "seal_store": 3, "build_report": 1}),
        ({"runs.region.training.epochs": 2}, {"train_model": 1, "encode_testset": 1, "compute_metrics": 1, "compute_ensemble": 1, "write_tables": 1, "explain_gallery": 1, "build_report": 1}),
        ({"testsets.tiny_test.benchmark": "coco"}, {"write_tables": 1, "build_report": 1}),
        ({"testsets.tiny_test.folds": 2}, {"compute_metrics": 2, "compute_ensemble": 1, "write_tables": 1, "explain_gallery": 1, "build_report": 1}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_a_change_runs_its_stage_and_what_follows(finished, change, expected):
    assert finished.planned(config=changed(**change)) == expected


def test_a_network_of_the_users_own_goes_all_the_way(finished, make_workflow, repository):
    """One file outside of the package: its training, embeddings and metrics, without panoptic features."""
    config = copy.deepcopy(TINY)
    config["runs"]["toy"] = config["runs"]["region"] | {
        "model": {"kind": "toy.py", "embed_size": 16, "options": {"depth": 2}}
    }
    workflow = make_workflow(config)
    shutil.copytree(finished.results, workflow.results)
    shutil.copytree(finished.folder / ".snakemake", workflow.folder / ".snakemake")
    missing = workflow.run("--dry-run", "train").stderr
    assert "runs.toy.model.kind: file 'toy.py' does not exist; correct the path" in missing
    shutil.copy(repository / "tests/fixtures/toy_network.py", workflow.folder / "toy.py")
    result = workflow.run("evaluate")
    assert result.returncode == 0, result.stdout + result.stderr
    metrics = json.loads((workflow.results / "evaluation/toy/tiny_test/metrics.json").read_text())
    assert metrics["images"] == 10 and metrics["rsum"] > 0
    run = json.loads((workflow.results / "runs/toy/config.json").read_text())
    assert run["kind"] == "toy.py" and run["image"]["depth"] == 2 and run["features"].keys() == {"visual"}
    assert (workflow.results / "runs/region/model.safetensors").stat().st_mtime_ns == (
        finished.results / "runs/region/model.safetensors"
    ).stat().st_mtime_ns, "the others stay"
    # Another file is another network: its run alone is out of date.
    with (workflow.folder / "toy.py").open("a") as file:
        file.write("# changed\n")
    assert workflow.planned("train") == {"train_model": 1}


def test_a_lost_shard_is_made_again_alone_and_alike(finished):
    """The command that a failed seal suggests: that shard, then the seal, and the store is what it was."""
    store = finished.results / "tiny" / "features" / "panoptic.zarr"
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    receipt = json.loads((store.parent / "panoptic.receipts" / "1.json").read_text())
    lost = store / next(key for key in receipt["files"] if key.startswith("seg_maps"))
    lost.unlink()
    seal = str((store / "zarr.json").relative_to(finished.folder))
    result = finished.run(seal, "--force")
    output = result.stdout + result.stderr
    assert result.returncode != 0 and "Traceback" not in output
    assert f"{lost.relative_to(finished.folder)} is missing" in output

    # What the message says is what is done, word for word.
    command = shlex.split(re.search(r"make it again with: snakemake (.*)", output).group(1))
    command.remove("--cores"), command.remove("all")
    assert command.pop(command.index("--configfile") + 1) == str(finished.configfile)
    command.remove("--configfile")
    assert finished.planned(*command) == {"extract_shard": 1}
    result = finished.run(*command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not (store / "zarr.json").exists(), "nobody may open it before it is sealed again"
    assert finished.planned("panoptic") == {"seal_store": 1}
    result = finished.run("panoptic")
    assert result.returncode == 0, result.stdout + result.stderr
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before
    # The same store again makes no model out of date; the report shows how long its shard took this time.
    assert finished.planned() == {"build_report": 1}


def test_the_seal_names_a_damaged_file_and_the_command_that_mends_it(finished):
    folder = finished.results / "tiny" / "features"
    damaged = folder / "grids.zarr" / "features" / "c" / "0" / "0" / "0"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    result = finished.run("grids", "--forcerun", "seal_store")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "grids.zarr/features/c/0/0/0" in output and "--force" in output and "grids.receipts/0.json" in output
    assert not (folder / "grids.zarr" / "zarr.json").exists()
