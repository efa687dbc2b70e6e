"""A small search on disk: networks with random weights, stores, an index, image files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from catalog.index import read_captions, read_images, write_index
from model.build import new_network
from model.data import Features, read_split
from model.runs import save_run
from model.settings import Recipe
from search.build import build_search
from stores.schema import SCHEMA_VERSION
from tests.unit.model.conftest import make_world
from tests.unit.model.helpers import prepare, write_store

HOSTILE = '<script>alert("x")</script> & \'co'


def with_files(world, folder: Path) -> None:
    """Image files for the index of a world, each of its own colour, named awkwardly; their digests in index and stores."""
    import hashlib

    images, _ = read_images(world.images)
    captions = read_captions(world.captions).replace_schema_metadata(None)
    generator = np.random.default_rng(1)
    paths, hashes = [], []
    for number, image_id in enumerate(world.ids):
        path = folder / f"{image_id} {'<b>&amp;' if number == 0 else 'ä'}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), tuple(int(c) for c in generator.integers(0, 255, 3))).save(path)
        paths.append(str(path))
        hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
    columns = {name: images[name] for name in images.column_names}
    columns |= {"path": pa.array(paths), "content_hash": pa.array(hashes)}
    captions = captions.set_column(2, "text", pa.array([HOSTILE, *captions["text"].to_pylist()[1:]]))
    table = pa.Table.from_pydict(columns, schema=images.schema).replace_schema_metadata(None)
    world.digest = write_index(world.images, world.captions, table, captions)
    world.hashes = hashes


def write_stores(world, folder: Path, *, hashes: bool = True) -> None:
    count = len(world.ids)
    world.visual.arrays["boxes"] = np.tile(np.array([8, 8, 40, 50], np.float32), (count, 6, 1))
    for name in ("visual", "panoptic"):
        store = getattr(world, name)
        store.attributes["index_digest"] = world.digest
        write_store(folder / f"{name}.zarr", store, SCHEMA_VERSION)
        if hashes:
            import zarr

            array = zarr.open_group(str(folder / f"{name}.zarr")).create_array(
                "content_hashes", shape=(count,), dtype=str
            )
            array[:] = np.array(world.hashes, dtype=np.dtypes.StringDType())


def make_searchable(folder: Path, *, runs=("first", "second"), scan=(), **world_options) -> SimpleNamespace:
    """`build()` makes `folder/results/search/mine/search.json`. `runs`: of 3SHNet. `scan`: runs that score pairs, and how."""
    world = make_world(folder, **world_options)
    with_files(world, folder / "photos")
    write_stores(world, folder)
    described = {}
    for seed, run in enumerate(runs):
        network, pairs = prepare(world, seed=seed)
        with torch.no_grad():  # random networks see all images alike; spread them
            network.image.token_projection.weight.mul_(3)
        save_run(folder / "runs" / run, network, pairs.tokenizer, config={"run": run})
        described[run] = {"folder": str(folder / "runs" / run)}
        described[run] |= {kind: str(folder / f"{kind}.zarr") for kind in ("visual", "panoptic")}
    for run, model in dict(scan).items():
        described[run] = {"folder": str(folder / "runs" / run), "visual": str(folder / "visual.zarr")}
        save_scan(world, described[run]["folder"], model)
    output = folder / "results" / "search" / "mine" / "search.json"

    def build(**options):
        given = {"runs": described, "output": output, "device": "cpu"} | options
        build_search(dataset="photos", images=world.images, captions=world.captions, **given)
        return json.loads(output.read_text())

    return SimpleNamespace(world=world, runs=described, output=output, results=folder / "results", build=build)


def save_scan(world, folder: str, model: dict) -> None:
    """A SCAN with random weights as a run."""
    split, features = read_split(world.images, world.captions, "train"), Features(world.visual, None)
    recipe = Recipe(
        model={"kind": "scan", "embed_size": 8} | model, text={"kind": "bigru", "word_size": 8, "min_count": 1}
    )
    torch.manual_seed(3)
    network, tokenizer = new_network(recipe, split.captions, img_dim=features.img_dim)
    save_run(folder, network, tokenizer, config={"run": Path(folder).name})


@pytest.fixture
def searchable(tmp_path):
    return make_searchable(tmp_path)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A search that is there; not to be changed by tests."""
    made = make_searchable(tmp_path_factory.mktemp("searchable"))
    made.build()
    return made


@pytest.fixture
def read_table():
    return pq.read_table
