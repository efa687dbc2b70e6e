"""A small results folder as the workflow leaves it, with made-up numbers."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr
from PIL import Image, ImageDraw

from catalog.categories import BY_NAME
from catalog.index import CAPTIONS_SCHEMA, IMAGES_SCHEMA, write_index
from core import layout
from evaluation.embeddings import Embeddings, read_embeddings, write_embeddings
from evaluation.ensemble import ensemble_ranks
from evaluation.metrics import metrics_and_ranks
from evaluation.ranks import write_ranks

COLOURS = {"red": (200, 50, 45), "blue": (60, 90, 200), "green": (50, 150, 70), "yellow": (230, 190, 60)}
SHAPES = ("car", "dog", "bench", "kite", "boat")
GROUNDS = {"grass-merged": (120, 170, 90), "sand": (225, 205, 150), "road": (120, 120, 125)}

CONFIG = {
    "results": "results",
    "seed": 0,
    "datasets": {
        "scenes": {"source": "scenes", "style": "day", "seed": 1, "splits": {"train": 30, "val": 10, "test": 40}},
        "scenes_dusk": {"source": "scenes", "style": "dusk", "seed": 2, "splits": {"test": 20}},
    },
    "features": {
        "on_bad_image": "drop",
        "regions": {"engine": "native", "architecture": "scenes_regions", "num_regions": 12},
        "grids": {"engine": "native", "architecture": "scenes_grids", "grid": 7},
        "panoptic": {"engine": "native", "architecture": "scenes_panoptic"},
    },
    "runs": {"region": {"dataset": "scenes", "visual": "regions"}, "grid": {"dataset": "scenes", "visual": "grids"}},
    "testsets": {
        "scenes_test": {"dataset": "scenes", "split": "test", "folds": 5},
        "scenes_dusk": {"dataset": "scenes_dusk", "split": "test", "folds": 5},
    },
    "ensembles": {"region_grid": {"runs": ["region", "grid"]}},
}


def draw_scene(generator: np.random.Generator, path: Path, dusk: bool) -> dict:
    """One picture with two objects on a ground; returns its size, boxes, class names, category map and captions."""
    width, height = (240, 170) if generator.random() < 0.7 else (160, 220)
    ground = str(generator.choice(list(GROUNDS)))
    horizon = int(height * generator.uniform(0.4, 0.6))
    image = Image.new("RGB", (width, height), (90, 80, 120) if dusk else (150, 200, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, horizon, width, height], fill=GROUNDS[ground])
    categories = np.full((height, width), BY_NAME["sky-other-merged"].index, np.uint8)
    categories[horizon:] = BY_NAME[ground].index
    boxes, names = [], []
    for name in generator.choice(SHAPES, 2, replace=False):
        colour = str(generator.choice(list(COLOURS)))
        w, h = generator.integers(40, 80), generator.integers(30, 60)
        x, y = int(generator.integers(0, width - w)), int(generator.integers(horizon - 20, height - h))
        draw.ellipse([x, y, x + w, y + h], fill=COLOURS[colour], outline=(20, 20, 20))
        mask = Image.new("1", (width, height))
        ImageDraw.Draw(mask).ellipse([x, y, x + w, y + h], fill=1)
        categories[np.asarray(mask)] = BY_NAME[str(name)].index
        boxes.append([x, y, x + w, y + h])
        names.append((colour, str(name)))
    image.save(path, quality=90)
    (c1, n1), (c2, n2) = names
    place = ground.removesuffix("-merged")
    captions = [
        f"a {c1} {n1} and a {c2} {n2} on the {place}",
        f"there is a {c1} {n1} near a {c2} {n2}",
        f"on the {place} one can see a {c2} {n2}",
    ]
    return {"size": (width, height), "boxes": boxes, "names": names, "categories": categories, "captions": captions}


def write_store(path: Path, arrays: dict, ids: list[str], **attributes) -> None:
    group = zarr.create_group(str(path), overwrite=True)
    for name, values in arrays.items():
        group.create_array(name, data=values)
    strings = group.create_array("image_ids", shape=(len(ids),), dtype=str)
    strings[:] = np.array(ids, dtype=np.dtypes.StringDType())
    group.attrs.update(
        {
            "schema_version": 1,
            "extractor": {"recipe": 1},
            "weights_digest": "d" * 64,
            "fingerprint": "f",
            "dropped": [],
            "failures": [],
        }
        | attributes
    )


def write_receipts(folder: Path, feature: str, rows: int, shards: int, rate: float, failures: list) -> None:
    folder.mkdir(parents=True)
    bounds = np.linspace(0, rows, shards + 1).astype(int)
    for shard in range(shards):
        start, stop = int(bounds[shard]), int(bounds[shard + 1])
        total = (stop - start) / rate + 4
        receipt = {
            "receipt_version": 1,
            "fingerprint": "f",
            "feature": feature,
            "shard": shard,
            "shards": shards,
            "rows": [start, stop],
            "images": stop - start,
            "failures": failures if shard == 0 else [],
            "seconds": {
                "total": total,
                "decode": 0.15 * total,
                "network": 0.6 * total,
                "write": 0.03 * total,
                "startup": 4.0,
            },
            "images_per_second": (stop - start) / total,
            "device": "cpu",
            "files": {},
        }
        (folder / f"{shard}.json").write_text(json.dumps(receipt))


def build_tree(root: Path, config: dict = CONFIG, *, poison: str = "", bad_image: bool = False) -> dict:
    """Write everything that `config` (CONFIG or a part of it) names below `root` and return `config`.

    `poison` replaces the first caption of every image; `bad_image` makes the last image of each dataset unreadable
    (and dropped).
    """
    generator = np.random.default_rng(0)
    for dataset, settings in config["datasets"].items():
        folder = root / dataset / "scenes" / "images"
        folder.mkdir(parents=True)
        rows, captions, scenes = [], [], []
        for split, count in settings["splits"].items():
            for _ in range(count):
                image_id = f"{dataset}-{len(rows):04d}"
                path = folder / f"{image_id}.jpg"
                scene = draw_scene(generator, path, settings.get("style") == "dusk")
                texts = [poison, *scene["captions"][1:]] if poison else scene["captions"]
                captions += [
                    {"caption_id": f"{image_id}-{number}", "image_id": image_id, "text": text}
                    for number, text in enumerate(texts)
                ]
                rows.append(
                    {
                        "image_id": image_id,
                        "path": str(path),
                        "width": scene["size"][0],
                        "height": scene["size"][1],
                        "split": split,
                        "content_hash": f"{len(rows):064x}",
                        "error": None,
                    }
                )
                scenes.append(scene)
        ids = [row["image_id"] for row in rows]
        failures = []
        if bad_image:
            Path(rows[-1]["path"]).write_bytes(b"not an image")
            rows[-1] |= {"width": 0, "height": 0, "error": "cannot identify image file"}
            failures = [{"image_id": ids[-1], "path": rows[-1]["path"], "error": "cannot identify image file"}]
        write_tables(root / dataset / "index", rows, captions)
        n, k = len(rows), 12
        boxes = np.zeros((n, k, 4), np.float32)
        class_ids = np.full((n, k), -1, np.int16)
        scores = np.zeros((n, k), np.float32)
        seg_maps = np.full((n, 64, 64), 255, np.uint8)
        for row, scene in enumerate(scenes):
            width, height = scene["size"]
            for place, box in enumerate(scene["boxes"]):
                boxes[row, place] = box
                class_ids[row, place] = SHAPES.index(scene["names"][place][1])
            loose = generator.uniform(0, 0.6, (k - 2, 2)) * (width, height)
            boxes[row, 2:] = np.concatenate(
                [loose, loose + generator.uniform(0.1, 0.4, (k - 2, 2)) * (width, height)], 1
            )
            class_ids[row, 2:] = generator.integers(0, len(SHAPES), k - 2)
            scores[row] = np.sort(generator.random(k))[::-1]
            y, x = (np.arange(64) + 0.5) * height / 64, (np.arange(64) + 0.5) * width / 64
            seg_maps[row] = scene["categories"][y.astype(int)[:, None], x.astype(int)[None]]
            seg_maps[row, :3, :3] = 255
        features = root / dataset / "features"
        counts = np.full(n, k, np.int16)
        if bad_image:
            counts[-1] = 0
            seg_maps[-1] = 255
        arrays = {
            "regions": {"boxes": boxes, "scores": scores, "class_ids": class_ids, "counts": counts},
            "grids": {"counts": counts},
            "panoptic": {"seg_maps": seg_maps},
        }
        rates = {"regions": 6.0, "grids": 24.0, "panoptic": 8.0}
        for feature in arrays.keys() & config["features"].keys():
            dropped = [failure["image_id"] for failure in failures]
            extra = {"class_names": list(SHAPES)} if feature == "regions" else {}
            write_store(features / f"{feature}.zarr", arrays[feature], ids, feature=feature, dropped=dropped, **extra)
            write_receipts(features / f"{feature}.receipts", feature, n, 2, rates[feature], failures)
        for number, run in enumerate(config["runs"]):
            write_run(root / "runs" / run, number)
            for testset, test in config["testsets"].items():
                if test["dataset"] == dataset:
                    good = [row for row in rows if row["split"] == test["split"] and not row["error"]]
                    write_scores(
                        root / "evaluation" / run / testset, run, number, good, captions, test["folds"], dataset
                    )
    for name, ensemble in config["ensembles"].items():
        for testset, test in config["testsets"].items():
            paths = [root / "evaluation" / run / testset / "embeddings.zarr" for run in ensemble["runs"]]
            folder = root / "ensembles" / name / testset
            folder.mkdir(parents=True)
            metrics, ranked = ensemble_ranks(
                [read_embeddings(path) for path in paths], ensemble["runs"], folds=test["folds"]
            )
            write_ranks(folder / layout.RANKS, ranked)
            (folder / "metrics.json").write_text(json.dumps(metrics | {"runs": ensemble["runs"]}))
    return config


def write_tables(folder: Path, rows: list[dict], captions: list[dict]) -> None:
    images = pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)
    texts = pa.Table.from_pylist(captions, schema=CAPTIONS_SCHEMA)
    write_index(folder / "images.parquet", folder / "captions.parquet", images, texts)


def write_run(folder: Path, number: int) -> None:
    if folder.exists():
        return
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"embed_size": 256, "visual": "regions"}))
    with open(folder / "history.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "train_loss", "lr", "i2t_r1", "rsum"])
        for epoch in range(1, 13):
            rsum = 330 - 270 * np.exp(-epoch / (3 + number)) - 2 * max(0, epoch - 9) + 5 * np.sin(epoch)
            writer.writerow(
                [
                    epoch,
                    round((4000 if epoch == 1 else 220) * np.exp(-epoch / (4 + number)) + 12, 3),
                    5e-4,
                    30,
                    round(rsum, 2),
                ]
            )


def write_scores(folder: Path, run: str, number: int, rows: list, captions: list, folds: int, dataset: str) -> None:
    generator = np.random.default_rng(7)
    position = {row["image_id"]: place for place, row in enumerate(rows)}
    own = [caption for caption in captions if caption["image_id"] in position]
    owner = np.array([position[caption["image_id"]] for caption in own], np.int32)
    images = generator.normal(size=(len(rows), 32))
    noise = np.random.default_rng([number, len(dataset)]).normal(size=(len(own), 32))
    texts = images[owner] + (2.0 if dataset == "scenes" else 2.8) * noise
    embeddings = Embeddings(
        images=(images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32),
        captions=(texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32),
        caption_image=owner,
        image_ids=np.array(list(position)),
        caption_ids=np.array([caption["caption_id"] for caption in own]),
        attributes={"run": run, "split": "test"},
    )
    write_embeddings(folder / "embeddings.zarr", embeddings)
    metrics, ranked = metrics_and_ranks(embeddings, folds=folds, seed=0)
    write_ranks(folder / layout.RANKS, ranked)
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> tuple[Path, dict]:
    """A complete results folder and its configuration; not to be changed by tests."""
    root = tmp_path_factory.mktemp("results")
    return root, build_tree(root)


@pytest.fixture
def small_config() -> dict:
    """One dataset, one run, one test set: to be cut down or spoilt by a test."""
    config = copy.deepcopy(CONFIG)
    del config["datasets"]["scenes_dusk"], config["testsets"]["scenes_dusk"], config["runs"]["grid"]
    config["datasets"]["scenes"]["splits"] = {"train": 4, "test": 12}
    config["ensembles"] = {}
    return config


@pytest.fixture
def build_results():
    """`build_tree`."""
    return build_tree
