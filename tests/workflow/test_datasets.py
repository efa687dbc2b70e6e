"""The configurations in configs/: each as it is in a dry run, and really run on small data with small networks."""

import json
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image

from stores import open_store

from .conftest import jobs_of

pytestmark = pytest.mark.workflow

SMALL_DETECTORS = {
    name: {"architecture": f"scenes_{name}", "weights": f"weights/scenes_{name}.safetensors", "batch_size": 4}
    for name in ("regions", "grids", "panoptic")
}
SMALL_RUN = {
    "model": {"embed_size": 32, "spatial_size": 8},
    "text": {"pretrained": None, "layers": 1, "hidden_size": 32, "heads": 2, "vocabulary_size": 300},
    "training": {"epochs": 1, "batch_size": 12, "text_lr_factor": 1.0, "lr_decay_epochs": [1]},
}


def merged(base, change):
    """`base` with `change` in it, section by section, as Snakemake merges a second configuration file."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


def configuration(repository, name, change=None):
    config = yaml.safe_load((repository / "configs" / f"{name}.yaml").read_text())
    return merged(config, change or {})


def karpathy_entry(number, split, filename, **extra):
    sentences = [
        {"raw": f"Caption {k} of a thing numbered {number}.", "tokens": [], "imgid": number, "sentid": 5 * number + k}
        for k in range(5)
    ]
    entry = {"filename": filename, "imgid": number, "split": split, "sentences": sentences}
    return entry | {"sentids": [s["sentid"] for s in sentences]} | extra


def coco_entry(number, split):
    folder = "val2014" if number % 2 else "train2014"
    name = f"COCO_{folder}_{number + 1:012d}.jpg"
    return karpathy_entry(number, split, name, filepath=folder, cocoid=number + 1)


def write_zip(path, **datasets):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, entries in datasets.items():
            archive.writestr(f"dataset_{name}.json", json.dumps({"images": entries, "dataset": name}))


def stand_in(folder, config):
    """Everything of the user's that a configuration names, empty."""
    for dataset in config["datasets"].values():
        for key in ("images", "folder"):
            if key in dataset:
                (folder / dataset[key]).mkdir(parents=True, exist_ok=True)
        if "annotations" in dataset:
            (folder / dataset["annotations"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / dataset["annotations"]).write_bytes(b"PK\x03\x04")  # an empty one would be told
        if dataset["source"] == "precomputed":
            for prefix in dataset["splits"].values():
                for name in ("ims.npy", "seg_maps.npy", "cat_onehots.npy", "segmentations.npy", "caps.txt"):
                    (folder / dataset["folder"] / f"{prefix}_{name}").touch()


PLANS = {
    "coco": {"index_dataset": 2, "extract_shard": 3 * 128 + 3, "seal_store": 6, "export_features": 2}
    | {"train_model": 2, "encode_testset": 4, "compute_metrics": 4, "compute_ensemble": 2}
    | {"write_tables": 1, "explain_gallery": 1, "build_report": 1, "fetch_published": 6},
    "flickr30k": {"index_dataset": 1, "extract_shard": 3 * 32, "seal_store": 3, "export_features": 1}
    | {"train_model": 2, "encode_testset": 2, "compute_metrics": 2, "compute_ensemble": 1}
    | {"write_tables": 1, "explain_gallery": 1, "build_report": 1, "fetch_published": 6},
    "folder": {"index_dataset": 1, "extract_shard": 3, "seal_store": 3, "export_features": 1, "build_report": 1},
    "precomputed": {"index_dataset": 2, "import_shard": 2 * 16 + 2, "seal_store": 4, "export_features": 2}
    | {
        "train_model": 1,
        "encode_testset": 2,
        "compute_metrics": 2,
        "write_tables": 1,
        "explain_gallery": 1,
        "build_report": 1,
    }
    | {"fetch_published": 3},
}


@pytest.mark.parametrize("name", PLANS)
def test_each_configuration_as_it_is(make_workflow, repository, name):
    """COCO's at full size: seconds, and no job per image."""
    config = configuration(repository, name)
    workflow = make_workflow(config)
    stand_in(workflow.folder, config)
    if name == "coco":
        splits = ["train"] * 82_783 + ["restval"] * 30_504 + ["val"] * 5_000 + ["test"] * 5_000
        entries = [coco_entry(number, split) for number, split in enumerate(splits)]
        write_zip(workflow.folder / config["datasets"]["coco"]["annotations"], coco=entries, flickr30k=[])
    result = workflow.run("--dry-run", "all", "export")
    assert jobs_of(result) == PLANS[name]
    # Unlike the clock they do not run faster where other work waits for the same cores.
    assert result.cpu_seconds < 12


@pytest.fixture(scope="module")
def coco(make_workflow, repository, photos):
    """configs/coco.yaml on drawn photos, 38 in COCO's layout and 7 in Flickr30K's: region model, both tests, export."""
    change = {"datasets": {"coco": {"shards": 1}}, "features": SMALL_DETECTORS, "runs": {"region": SMALL_RUN}}
    config = configuration(repository, "coco", change)
    # The rest of the graph is that of the default configuration, which has tests of its own.
    del config["runs"]["grid"], config["ensembles"]
    workflow = make_workflow(config)
    splits = ["train"] * 16 + ["restval"] * 4 + ["val"] * 8 + ["test"] * 10
    entries = [coco_entry(number, split) for number, split in enumerate(splits)]
    flickr = [karpathy_entry(n, ("test", "train")[n >= 5], f"{1000 + n}.jpg") for n in range(7)]
    write_zip(workflow.folder / "data" / "karpathy" / "caption_datasets.zip", coco=entries, flickr30k=flickr)
    for entry in entries:
        photos(workflow.folder / "data" / "coco" / "images" / entry["filepath"] / entry["filename"])
    for entry in flickr:
        photos(workflow.folder / "data" / "flickr30k" / "images" / entry["filename"])
    result = workflow.run("evaluate", "export")
    assert result.returncode == 0, result.stdout + result.stderr
    return workflow


@pytest.fixture(scope="module")
def photos():
    """`photos(path)` writes the next drawn photo."""
    from catalog.scenes import render_scene

    drawn = iter(range(10_000))

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render_scene(5, next(drawn), "day").image).resize((96, 72)).save(path)

    return write


def test_coco_is_indexed_extracted_trained_scored_and_exported(coco):
    import pyarrow.parquet as pq

    results = coco.folder / "results" / "coco"
    images = pq.read_table(results / "coco" / "index" / "images.parquet")
    assert images["image_id"].to_pylist() == [str(n + 1) for n in range(38)]
    assert images["split"].to_pylist() == ["train"] * 20 + ["val"] * 8 + ["test"] * 10
    assert images["width"].to_pylist() == [96] * 38
    captions = pq.read_table(results / "coco" / "index" / "captions.parquet")
    assert captions["caption_id"].to_pylist() == [str(n) for n in range(190)]
    flickr = pq.read_table(results / "flickr30k" / "index" / "images.parquet")
    assert flickr["image_id"].to_pylist() == [str(1000 + n) for n in range(5)], "the test split only"
    for testset, count in (("coco_test", 10), ("flickr_test", 5)):
        metrics = json.loads((results / "evaluation" / "region" / testset / "metrics.json").read_text())
        assert (metrics["images"], metrics["captions"]) == (count, 5 * count)
    exported = results / "coco" / "export" / "regions"
    store = open_store(results / "coco" / "features" / "regions.zarr")
    ims = np.load(exported / "testall_ims.npy")
    assert np.array_equal(ims, store.rows("features", range(28, 38)))
    assert (exported / "dev_ids.txt").read_text().split() == [str(n) for n in range(21, 29)]


def test_flickr30k(make_workflow, repository, photos):
    change = {"datasets": {"flickr30k": {"shards": 1}}, "features": SMALL_DETECTORS}
    workflow = make_workflow(configuration(repository, "flickr30k", change))
    entries = [karpathy_entry(n, split, f"{36979 + n}.jpg") for n, split in enumerate(["train", "val", "test"])]
    write_zip(workflow.folder / "data" / "karpathy" / "caption_datasets.zip", coco=[], flickr30k=entries)
    for entry in entries:
        photos(workflow.folder / "data" / "flickr30k" / "images" / entry["filename"])
    result = workflow.run("grids")
    assert result.returncode == 0, result.stdout + result.stderr
    grids = open_store(workflow.folder / "results" / "flickr30k" / "flickr30k" / "features" / "grids.zarr")
    assert list(grids.image_ids) == ["36979", "36980", "36981"]


def test_a_new_folder_needs_images_only(make_workflow, repository, photos):
    """As documented: configs/folder.yaml, the folder on the command line."""
    workflow = make_workflow(configuration(repository, "folder"))
    for name in ("a.jpg", "more/b.jpg"):
        photos(workflow.folder / "my photos" / name)
    result = workflow.run("regions", "--config", "datasets={mine: {source: folder, images: my photos}}")
    assert result.returncode == 0, result.stdout + result.stderr
    folder = workflow.folder / "results" / "mine" / "mine" / "features"
    assert list(open_store(folder / "regions.zarr").image_ids) == ["a", "more/b"]
    assert [path.name for path in folder.glob("*.zarr")] == ["regions.zarr"]

    # More images, one of them before the others: only they are looked at.
    before = open_store(folder / "regions.zarr").rows("features", [0, 1])
    for name in ("0.jpg", "more/c.jpg"):
        photos(workflow.folder / "my photos" / name)
    result = workflow.run("regions", "--config", "datasets={mine: {source: folder, images: my photos}}")
    assert result.returncode == 0, result.stdout + result.stderr
    store = open_store(folder / "regions.zarr")
    assert list(store.image_ids) == ["0", "a", "more/b", "more/c"]
    np.testing.assert_array_equal(store.rows("features", [1, 2]), before)
    assert store.rows("counts", [0, 3]).min() > 0
    receipts = [json.loads(path.read_text()) for path in folder.glob("regions.receipts/*.json")]
    assert sum(r["taken_over"] for r in receipts) == 2 and sum(r["extracted"] for r in receipts) == 2
    assert [path.name for path in folder.glob("*.zarr")] == ["regions.zarr"]


def test_precomputed_features_go_all_the_way(coco, make_workflow, repository):
    """Our own export read back: the same features, in stores of other rows, and a model trained on them."""
    config = configuration(repository, "precomputed")
    config["datasets"]["coco"]["shards"] = 2
    config["runs"]["region"] = merged(config["runs"]["region"], SMALL_RUN)
    del config["datasets"]["flickr30k"], config["testsets"]["flickr_test"]
    workflow = make_workflow(config)
    exported = coco.folder / "results" / "coco" / "coco" / "export" / "regions"
    (workflow.folder / "data").mkdir()
    (workflow.folder / "data" / "coco_precomp").symlink_to(exported)
    result = workflow.run()
    assert result.returncode == 0, result.stdout + result.stderr
    results = workflow.folder / "results" / "precomputed"
    ours = coco.folder / "results" / "coco" / "coco" / "features"
    for feature in ("regions", "panoptic"):
        before = open_store(ours / f"{feature}.zarr")
        after = open_store(results / "coco" / "features" / f"{feature}.zarr")
        rows = [list(before.image_ids).index(image_id) for image_id in after.image_ids]
        assert sorted(rows) == list(range(38))
        expected = {"features", "counts", "boxes"} if feature == "regions" else set(before.arrays)
        assert set(after.arrays) == expected
        for array in expected:
            assert np.array_equal(before.rows(array, rows), after.rows(array, range(38))), array
    metrics = json.loads((results / "evaluation" / "region" / "coco_test" / "metrics.json").read_text())
    assert metrics["images"] == 10
    assert (results / "report" / "index.html").is_file()
    assert workflow.planned() == {}


def test_imported_regions_beside_extracted_panoptics(make_workflow, photos):
    config = {
        "datasets": {
            "mine": {
                "source": "folder",
                "images": "photos",
                "imports": {"regions": {"format": "npz", "path": "bua", "num_regions": 10}},
            },
            "other": {"source": "folder", "images": "photos"},
        },
        "features": {"on_bad_image": "drop"},
    }
    workflow = make_workflow(config)
    (workflow.folder / "bua").mkdir()
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        photos(workflow.folder / "photos" / f"{name}.jpg")
        x, bbox = random.standard_normal((7, 32), np.float32), random.random((7, 4), np.float32) * 30 + [0, 0, 40, 40]
        np.savez(workflow.folder / "bua" / f"{name}.npz", x=x, bbox=bbox, num_bbox=7, image_h=72, image_w=96)
    photos(workflow.folder / "photos" / "three.jpg")
    result = workflow.run("results/mine/features/regions.zarr/zarr.json")
    assert result.returncode == 0, result.stdout + result.stderr
    regions = open_store(workflow.results / "mine" / "features" / "regions.zarr")
    assert list(regions.image_ids) == ["one", "three", "two"] and regions.dropped == {"three"}
    assert regions.rows("counts", range(3)).tolist() == [7, 0, 7] and regions.shape("features") == (3, 10, 32)
    (receipt,) = (workflow.results / "mine" / "features" / "regions.receipts").glob("*.json")
    assert json.loads(receipt.read_text())["failures"][0]["error"] == (
        "nothing for it in bua; looked for 'three.npz', 'three.jpg.npz'; there are 'one.npz', 'two.npz'"
    )
