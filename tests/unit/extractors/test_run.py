"""Shard jobs, with a tiny extractor in place of the networks."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import types

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from catalog.index import CAPTIONS_SCHEMA, IMAGES_SCHEMA, ImageRows, describe_images, write_index
from core.console import UserError
from core.files import digest_file
from extractors.images import InputSpec, decode_image, resize_shortest_edge
from extractors.loading import RUNNERS
from extractors.run import main
from stores import open_store
from stores.schema import ArraySpec
from stores.seal import seal

IMAGES = 13
BAD = 6


class MeanColour:
    """The mean colour of the resized image, its original size as a box, and 1 as the count."""

    input = InputSpec(16, 24, "RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 8)
    arrays = {
        "features": ArraySpec((1, 3), "float16", 0),
        "boxes": ArraySpec((1, 4), "float32", 0),
        "class_ids": ArraySpec((1,), "int16", -1),
        "counts": ArraySpec((), "int16", 0),
    }
    weights_digest = "weights"
    attributes = {"class_names": ["colour"]}

    def __init__(self, scale: float = 1.0, weights: str | None = None) -> None:
        self.scale = scale
        if weights is not None:
            self.weights_digest = digest_file(weights)
        self.batch_sizes: list[int] = []

    def to(self, device):
        return self

    def __call__(self, batch):
        self.batch_sizes.append(len(batch.rows))
        results = []
        for pixels, (h, w), (height, width) in zip(batch.pixels, batch.sizes, batch.original_sizes, strict=True):
            mean = pixels[:, :h, :w].double().mean((1, 2)).numpy() * self.scale
            results.append(
                {
                    "features": mean.astype(np.float16)[None],
                    "boxes": np.array([[0, 0, width, height]], np.float32),
                    "class_ids": np.array([0], np.int16),
                    "counts": np.array(1, np.int16),
                }
            )
        return results


@pytest.fixture
def module(monkeypatch):
    """A stand-in for extractors/regions.py and its network, and small Zarr shards."""
    fake = types.ModuleType("extractors.regions")
    fake.RECIPE = 3
    fake.built = []

    def extractor(runner: str | None, *, scale: float = 1.0):
        fake.built.append(MeanColour(scale, weights=runner))
        return fake.built[-1]

    def runner(*, architecture: str, weights: str | None = None):
        return weights

    fake.EXTRACTOR = extractor
    monkeypatch.setitem(sys.modules, "extractors.regions", fake)
    monkeypatch.setitem(RUNNERS, "regions", runner)
    monkeypatch.setattr("stores.plan.MAX_SHARD_ROWS", 4)
    threads = torch.get_num_threads()
    yield fake
    torch.set_num_threads(threads)


@pytest.fixture
def job(tmp_path, module, capsys):
    """An index of 13 images, one of them damaged, and functions that run the command and seal."""
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(3)
    paths = []
    for i in range(IMAGES):
        size = [(20, 30), (30, 20), (18, 18)][i % 3]
        paths.append(str(tmp_path / f"photos/{i}.png"))
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(paths[-1])
    with open(paths[BAD], "r+b") as file:
        file.truncate(70)
    ids = [f"photo-{i}" for i in range(IMAGES)]
    table = describe_images(ids, paths, ["test"] * IMAGES, 1)
    digest = write_index(
        tmp_path / "images.parquet", tmp_path / "captions.parquet", table, CAPTIONS_SCHEMA.empty_table()
    )
    capsys.readouterr()
    job = types.SimpleNamespace(root=tmp_path, ids=ids, paths=paths, digest=digest, store=tmp_path / "regions.zarr")

    def receipt(shard: int):
        return tmp_path / f"regions.receipts/{shard}.json"

    def run(shard: int = 0, shards: int = 2, settings: dict | str | None = None, **changes) -> dict:
        if not isinstance(settings, str):
            settings = json.dumps({"architecture": "tiny", "batch_size": 3} | (settings or {}))
        arguments = {
            "feature": "regions",
            "images": tmp_path / "images.parquet",
            "shard": shard,
            "shards": shards,
            "store": job.store,
            "receipt": receipt(shard),
            "settings": settings,
            "recipe": 3,
            "threads": 1,
            "workers": 0,
            "device": "cpu",
            **changes,
        }
        main([text for key, value in arguments.items() for text in (f"--{key}", str(value))])
        return json.loads(receipt(shard).read_text())

    def seal_(shards: int = 2, **changes) -> None:
        arguments = {"images": ImageRows(ids, digest), "on_bad_image": "drop", **changes}
        seal(store=job.store, receipts=[receipt(shard) for shard in range(shards)], **arguments)

    def digests() -> dict[str, str]:
        files = [path for path in job.store.rglob("*") if path.is_file()]
        return {str(path.relative_to(job.store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def reindex(ids: list[str], paths: list[str]) -> None:
        """Another index in the place of the first, and sealing for it."""
        job.ids, job.paths = ids, paths
        job.table = describe_images(ids, paths, ["test"] * len(ids), 1)
        job.digest = write_index(
            tmp_path / "images.parquet", tmp_path / "captions.parquet", job.table, CAPTIONS_SCHEMA.empty_table()
        )

    def all_shards(shards: int = 2, **changes) -> list[dict]:
        """Every shard and the seal, as the workflow does it; the receipts."""
        receipts = [run(shard, shards, **changes) for shard in range(shards)]
        hashes = job.table.column("content_hash").to_pylist()
        seal_(shards, images=ImageRows(job.ids, job.digest, content_hashes=hashes))
        return receipts

    job.table = table
    job.run, job.seal, job.receipt, job.digests = run, seal_, receipt, digests
    job.reindex, job.all_shards = reindex, all_shards
    return job


def test_store_holds_what_the_extractor_says_about_each_image(job):
    for shard in range(2):
        job.run(shard)
    job.seal()
    store = open_store(job.store)
    for row, path in enumerate(job.paths):
        if row == BAD:
            wanted = [np.zeros((1, 3)), np.zeros((1, 4)), np.array([-1]), np.array(0)]
        else:
            picture = decode_image(path)
            mean = resize_shortest_edge(picture, 16, 24).astype(np.float64).mean((0, 1)).astype(np.float16)
            box = np.array([[0, 0, picture.shape[1], picture.shape[0]]])
            wanted = [mean[None], box, np.array([0]), np.array(1)]
        for name, value in zip(("features", "boxes", "class_ids", "counts"), wanted, strict=True):
            np.testing.assert_array_equal(store.rows(name, [row])[0], value)
    assert store.image_ids.tolist() == job.ids
    assert store.attributes["extractor"] == {"architecture": "tiny", "batch_size": 3, "recipe": 3}
    assert store.attributes["class_names"] == ["colour"]
    assert store.attributes["index_digest"] == job.digest
    assert store.dropped == {f"photo-{BAD}"}


def test_receipt(job, capsys):
    receipt = job.run(0)
    assert {key: receipt[key] for key in ("feature", "shard", "shards", "rows", "images", "device")} == {
        "feature": "regions",
        "shard": 0,
        "shards": 2,
        "rows": [0, 8],
        "images": 8,
        "device": "cpu",
    }
    (failure,) = receipt["failures"]
    assert failure["image_id"] == f"photo-{BAD}" and failure["path"] == job.paths[BAD]
    assert "truncated" in failure["error"]
    assert receipt["seconds"].keys() == {"total", "startup", "decode", "network", "write"}
    # Writing goes on beside the rest.
    parts = sum(value for key, value in receipt["seconds"].items() if key not in ("total", "write"))
    assert 0 < parts <= receipt["seconds"]["total"] + 0.01
    assert receipt["images_per_second"] > 0
    # A job writes whole Zarr shards of (here) 4 rows.
    assert sorted(receipt["files"]) == sorted(
        f"{name}/c/{index}{tail}"
        for index in (0, 1)
        for name, tail in (("features", "/0/0"), ("boxes", "/0/0"), ("class_ids", "/0"), ("counts", ""))
    )
    for name, digest in receipt["files"].items():
        assert hashlib.sha256((job.store / name).read_bytes()).hexdigest() == digest
    printed = capsys.readouterr()
    assert "regions shard 1/2: 8 images, 1 of them unreadable" in printed.out
    assert "regions 1/2" in printed.err and "8/8" in printed.err


def test_batches_are_full_and_never_beyond_the_setting(job, module):
    job.run(0, 1, {"batch_size": 2})
    assert max(module.built[0].batch_sizes) == 2
    assert sum(module.built[0].batch_sizes) == IMAGES - 1


def test_same_bytes_whatever_the_workers_and_however_often(job):
    for shard in range(2):
        job.run(shard)
    job.seal()
    wanted = job.digests()
    for workers in (0, 3):
        job.run(1, workers=workers)
        with pytest.raises(UserError, match="not a finished store"):
            open_store(job.store)
        job.seal()
        assert job.digests() == wanted


def test_same_features_in_any_number_of_shards(job):
    found = []
    for shards in (1, 2, 20):
        for shard in range(shards):
            job.run(shard, shards)
        job.seal(shards)
        store = open_store(job.store)
        found.append({name: store.rows(name, range(IMAGES)) for name in store.arrays})
    assert json.loads(job.receipt(19).read_text())["rows"] == [13, 13]
    for other in found[1:]:
        for name, values in found[0].items():
            np.testing.assert_array_equal(other[name], values)


def test_shards_of_changed_settings_do_not_seal_together(job):
    job.run(0)
    job.run(1, settings={"scale": 0.5})
    with pytest.raises(UserError, match="shard 0: made with other extractor than shard 1"):
        job.seal()


def test_all_bad_images_are_named_and_the_others_extracted(job):
    for row in (1, 9):
        open(job.paths[row], "wb").close()
    for shard in range(2):
        job.run(shard)
    with pytest.raises(UserError) as caught:
        job.seal(on_bad_image="fail")
    for row in (1, BAD, 9):
        assert f"image 'photo-{row}' ({job.paths[row]})" in str(caught.value)
    job.seal()
    assert open_store(job.store).rows("counts", range(IMAGES)).sum() == IMAGES - 3


@pytest.mark.parametrize("trouble", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_trouble_in_the_network_ends_the_job_and_leaves_no_receipt(job, monkeypatch, trouble):
    job.run(0)

    def fail(self, batch):
        raise trouble

    monkeypatch.setattr(MeanColour, "__call__", fail)
    with pytest.raises(type(trouble)):
        job.run(0)
    assert not job.receipt(0).exists()


@pytest.mark.parametrize(
    "changed, error, message",
    [
        (
            {"features": np.full((1, 3), np.inf, np.float16)},
            UserError,
            "photo-.*array features has values .* not finite",
        ),
        ({"boxes": np.full((1, 4), np.nan, np.float32)}, UserError, "array boxes has values that are not finite"),
        ({"features": np.zeros((1, 3), np.float32)}, ValueError, r"features is float32 \(1, 3\) instead of float16"),
        ({"features": np.zeros((3,), np.float16)}, ValueError, r"features is float16 \(3,\) instead of"),
        ({"extra": np.zeros(1)}, ValueError, "the extractor gave arrays"),
    ],
)
def test_rows_the_store_cannot_hold_are_refused(job, monkeypatch, changed, error, message):
    real = MeanColour.__call__
    monkeypatch.setattr(MeanColour, "__call__", lambda self, batch: [r | changed for r in real(self, batch)])
    with pytest.raises(error, match=message):
        job.run(0)
    assert not job.receipt(0).exists() and not job.digests()


def test_too_few_results_are_an_error(job, monkeypatch):
    monkeypatch.setattr(MeanColour, "__call__", lambda self, batch: [])
    with pytest.raises(ValueError, match="zip"):
        job.run(0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"recipe": 2}, "--recipe 2 is not the RECIPE 3 of extractors/regions.py"),
        ({"shard": 2}, "there is no shard 2"),
        ({"shards": 0}, "shards must be at least 1"),
        ({"store": "features/regions"}, "ends in .zarr"),
        ({"images": "nowhere.parquet"}, "nowhere.parquet does not exist"),
        ({"settings": "{"}, "--settings"),
        ({"settings": "[]"}, "--settings"),
        ({"settings": '{"batch_size": 0}'}, "batch_size of regions must be a whole number of at least 1, not 0"),
        ({"settings": '{"batch_size": true}'}, "not True"),
        ({"settings": "{}"}, "settings of engine native: missing a required (keyword-only )?argument: 'architecture'"),
        ({"settings": {"scael": 2}}, "settings of engine native: got an unexpected keyword argument 'scael'"),
        ({"device": "cuda:99"}, "--device cuda:99: this machine has"),
        ({"device": "gpu"}, "--device gpu: no such device"),
        ({"on-bad-image": "fail"}, r"1 images cannot be read: '.*\.png: .*set features.on_bad_image: drop"),
    ],
)
def test_wrong_arguments_are_user_errors_that_touch_nothing(job, changes, message):
    for shard in range(2):
        job.run(shard)
    job.seal()
    before = job.digests()
    with pytest.raises(UserError, match=message):
        job.run(**{"shard": 0, **changes})
    assert job.digests() == before
    assert job.receipt(0).exists()


def test_an_empty_index_is_a_user_error(job):
    write_index(
        job.root / "images.parquet",
        job.root / "captions.parquet",
        pa.table(IMAGES_SCHEMA.empty_table()),
        CAPTIONS_SCHEMA.empty_table(),
    )
    with pytest.raises(UserError, match="no images"):
        job.run(0)


def photograph(folder, name: str, seed: int) -> str:
    path = str(folder / f"photos/{name}.png")
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return path


def changed_dataset(job) -> list[int]:
    """Three images more, one less, one replaced, in another order; the rows that no former store has."""
    pairs = dict(zip(job.ids, job.paths, strict=True))
    del pairs["photo-2"]
    photograph(job.root, "4", 104)
    new = {f"new-{i}": photograph(job.root, f"new-{i}", 200 + i) for i in range(3)}
    pairs = dict(reversed((pairs | new).items()))
    job.reindex(list(pairs), list(pairs.values()))
    return sorted(job.ids.index(name) for name in (*new, "photo-4", f"photo-{BAD}"))


def test_after_a_change_of_the_dataset_only_new_images_are_extracted(job, module, capsys):
    job.all_shards()
    rows = changed_dataset(job)
    module.built.clear()
    receipts = job.all_shards(3)
    assert sum(sum(built.batch_sizes) for built in module.built) == len(rows) - 1, "the damaged one is tried again"
    assert sum(r["taken_over"] for r in receipts) == len(job.ids) - len(rows)
    assert sum(r["extracted"] for r in receipts) == len(rows) - 1
    assert "taken over from the former store" in capsys.readouterr().out
    assert [path.name for path in job.root.glob("*.zarr")] == ["regions.zarr"]
    found = job.digests()
    assert open_store(job.store).image_ids.tolist() == job.ids and open_store(job.store).dropped == {f"photo-{BAD}"}

    # From nothing: the same bytes.
    job.store = job.root / "other" / "regions.zarr"
    assert all(receipt["taken_over"] == 0 for receipt in job.all_shards(3))
    assert job.digests() == found


def test_what_changes_no_row_needs_no_network(job, module):
    """How many images go at a time, and where the weights lie."""
    job.all_shards(2)
    found = job.digests()
    module.built.clear()
    receipts = job.all_shards(2, settings={"batch_size": 2})
    assert [receipt["extracted"] for receipt in receipts] == [0, 0] and sum(
        receipt["taken_over"] for receipt in receipts
    ) == IMAGES - 1
    assert open_store(job.store).attributes["extractor"]["batch_size"] == 2
    assert {name: digest for name, digest in job.digests().items() if "zarr.json" not in name} == {
        name: digest for name, digest in found.items() if "zarr.json" not in name
    }


def test_jobs_that_die_and_come_back_find_the_former_store_again(job, module, monkeypatch):
    job.all_shards()
    rows = changed_dataset(job)
    with monkeypatch.context() as patch:
        patch.setattr("stores.job.write_zarr_shard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job.run(0)
    with pytest.raises(UserError, match="not a finished store"):
        open_store(job.store)
    (former,) = job.root.glob("regions.former-*.zarr")
    job.run(1)
    job.run(1)
    receipts = job.all_shards()
    assert sum(r["taken_over"] for r in receipts) == len(job.ids) - len(rows)
    assert not former.exists()


def test_nothing_new_needs_no_network(job, module):
    (job.root / "weights.bin").write_bytes(b"weights")
    settings = {"weights": str(job.root / "weights.bin")}
    job.reindex([i for i in job.ids if i != f"photo-{BAD}"], [p for i, p in enumerate(job.paths) if i != BAD])
    job.all_shards(settings=settings)
    wanted = {i: open_store(job.store).rows("features", [row])[0] for row, i in enumerate(job.ids)}
    job.reindex(job.ids[::-1], job.paths[::-1])
    module.built.clear()
    receipts = job.all_shards(settings=settings)
    assert module.built == [] and {r["device"] for r in receipts} == {"none"}
    for row, image_id in enumerate(job.ids):
        np.testing.assert_array_equal(open_store(job.store).rows("features", [row])[0], wanted[image_id])

    # One more image, and the network is there.
    job.reindex([*job.ids, "new"], [*job.paths, photograph(job.root, "new", 1)])
    job.all_shards(settings=settings)
    assert sum(sum(built.batch_sizes) for built in module.built) == 1

    # Other weights: nothing of the old ones is left.
    (job.root / "weights.bin").write_bytes(b"other")
    job.reindex(job.ids[::-1], job.paths[::-1])
    assert sum(r["taken_over"] for r in job.all_shards(settings=settings)) == 0


def test_another_compression_needs_no_network(job, module):
    (job.root / "weights.bin").write_bytes(b"weights")
    settings = {"weights": str(job.root / "weights.bin")}
    job.reindex([i for i in job.ids if i != f"photo-{BAD}"], [p for i, p in enumerate(job.paths) if i != BAD])
    job.all_shards(settings=settings)
    plain = job.digests()
    features = open_store(job.store).rows("features", range(len(job.ids)))
    module.built.clear()
    receipts = job.all_shards(settings=settings, compression="zstd")
    assert module.built == [] and sum(r["taken_over"] for r in receipts) == len(job.ids)
    assert {a["compression"] for a in open_store(job.store).attributes["arrays"].values()} == {"zstd"}
    np.testing.assert_array_equal(open_store(job.store).rows("features", range(len(job.ids))), features)
    changed = job.digests()
    assert changed.keys() == plain.keys() and changed["features/c/0/0/0"] != plain["features/c/0/0/0"]
    job.all_shards(settings=settings, compression="lz4")
    assert job.digests() == plain


def test_rows_of_another_extractor_are_never_taken_over(job):
    job.all_shards()
    changed_dataset(job)
    assert sum(r["taken_over"] for r in job.all_shards(settings={"scale": 0.5})) == 0
    job.reindex(job.ids[::-1], job.paths[::-1])
    assert sum(r["taken_over"] for r in job.all_shards(settings={"scale": 0.5})) == len(job.ids) - 1
    assert sum(r["taken_over"] for r in job.all_shards()) == 0


def test_a_part_that_is_made_again_is_really_made_again(job):
    job.all_shards()
    wanted = job.digests()
    assert job.run(0)["taken_over"] == 0
    job.all_shards()
    assert job.digests() == wanted


def test_a_store_without_content_hashes_is_not_looked_into(job):
    job.run(0)
    job.run(1)
    job.seal()
    changed_dataset(job)
    assert sum(r["taken_over"] for r in job.all_shards()) == 0


def test_damaged_rows_are_extracted_not_taken_over(job, capsys):
    job.all_shards()
    changed_dataset(job)
    file = job.store / "features/c/1/0/0"
    data = bytearray(file.read_bytes())
    data[12] ^= 255
    file.write_bytes(data)
    receipts = job.all_shards()
    assert "are extracted, not taken over" in capsys.readouterr().out
    assert 0 < sum(r["taken_over"] for r in receipts) < len(job.ids) - 5
    found = job.digests()
    job.store = job.root / "other" / "regions.zarr"
    job.all_shards()
    assert job.digests() == found


def test_copies_of_an_image_share_its_row(job):
    job.all_shards()
    copies = [str(job.root / f"photos/copy-{i}.png") for i in range(2)]
    for path in copies:
        shutil.copy(job.paths[3], path)
    job.reindex([*job.ids, "copy-0", "copy-1"], [*job.paths, *copies])
    assert sum(r["taken_over"] for r in job.all_shards()) == IMAGES - 1 + 2
    store = open_store(job.store)
    np.testing.assert_array_equal(store.rows("features", [13, 14]), store.rows("features", [3, 3]))
