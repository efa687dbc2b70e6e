"""SCAN's and 3SHNet's files -> stores -> files: bit-exact, read as those programs read them, and within bounds of memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from catalog.categories import UPSNET_TO_COCO
from catalog.index import ImageRows, read_image_rows
from core.console import UserError
from exchange.__main__ import main
from exchange.formats import READERS
from exchange.importing import open_reader
from stores import open_store
from stores.seal import seal

from .conftest import write_split

SPLITS = {"val": "dev", "train": "train"}  # rows are in the order of the splits' names, whatever theirs here
FEATURES = ["regions", "panoptic"]


def make_index(folder, output, splits=SPLITS, features=FEATURES):
    from catalog.run import main as catalog_main

    settings = {"source": "precomputed", "folder": str(folder), "splits": splits, "features": features}
    arguments = ["index", "--dataset", "pre", "--settings", json.dumps(settings), "--threads", "2"]
    arguments += ["--images", str(output / "images.parquet"), "--captions", str(output / "captions.parquet")]
    catalog_main(arguments)
    return output


def import_feature(index, folder, feature, shards=2, splits=SPLITS, features=FEATURES, on_bad_image="fail", **options):
    store = index / f"{feature}.zarr"
    source = {"format": "scan", "folder": str(folder), "splits": splits, "features": features} | options
    receipts = [index / f"{feature}.receipts" / f"{k}.json" for k in range(shards)]
    for k, receipt in enumerate(receipts):
        main(
            ["import", "--feature", feature, "--source", json.dumps(source), "--store", str(store)]
            + ["--images", str(index / "images.parquet"), "--receipt", str(receipt)]
            + ["--shard", str(k), "--shards", str(shards)]
        )  # fmt: skip
    images = read_image_rows(index / "images.parquet")
    seal(store=store, receipts=receipts, images=images, on_bad_image=on_bad_image)
    return open_store(store)


@pytest.fixture
def imported(scan, tmp_path):
    folder, arrays = scan
    index = make_index(folder, tmp_path / "index")
    return index, arrays, {f: import_feature(index, folder, f) for f in FEATURES}


def test_stores_hold_the_files_in_our_conventions(imported):
    _, arrays, stores = imported
    rows = range(13)
    both = {name: np.concatenate([arrays[p][name] for p in ("train", "dev")]) for name in arrays["train"]}
    assert list(stores["regions"].image_ids) == [f"train{i}" for i in range(9)] + [f"dev{i}" for i in range(4)]
    assert np.array_equal(stores["regions"].rows("features", rows), both["ims"])
    assert (stores["regions"].rows("counts", rows) == 6).all()
    panoptic = stores["panoptic"]
    assert np.array_equal(panoptic.rows("seg_maps", rows), np.array(UPSNET_TO_COCO)[both["maps"]])
    for upsnet, coco in enumerate(UPSNET_TO_COCO):
        assert np.array_equal(panoptic.rows("category_onehots", rows)[:, coco], both["cat_onehots"][:, upsnet])
        assert np.array_equal(panoptic.rows("seg_features", rows)[:, coco], both["segmentations"][:, upsnet])
    assert panoptic.attributes["imported_class_order"] == "upsnet" and panoptic.attributes["class_order"] == "coco"
    assert panoptic.attributes["imported_seg_maps"] == {"train": "raw", "dev": "raw"}


def export(index, output, *options):
    main(
        ["export", "--index", str(index), "--visual", str(index / "regions.zarr")]
        + ["--panoptic", str(index / "panoptic.zarr"), "--output", str(output), *options]
    )  # fmt: skip


def test_back_and_forth_is_bit_exact(imported, scan, tmp_path):
    index, _, _ = imported
    folder, _ = scan
    out = tmp_path / "out"
    export(index, out)
    for file in folder.glob("train_*"):
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    export(index, tmp_path / "repeated", "--repeat-images")
    for file in folder.glob("dev_*"):
        assert (tmp_path / "repeated" / file.name).read_bytes() == file.read_bytes(), file.name

    again = make_index(out, tmp_path / "again")
    for feature in FEATURES:
        before, after = open_store(index / f"{feature}.zarr"), import_feature(again, out, feature)
        for array in before.arrays:
            assert before.rows(array, range(13)).tobytes() == after.rows(array, range(13)).tobytes(), array


def test_the_export_is_what_the_fields_loaders_expect(imported, tmp_path):
    """As SCAN's `PrecompDataset` and VSE-infinity's read: one row per image, found by index // 5."""
    index, arrays, _ = imported
    export(index, tmp_path / "out")
    for split in ("train", "dev"):
        captions = [line.strip() for line in open(tmp_path / "out" / f"{split}_caps.txt", encoding="utf-8")]
        images = np.load(tmp_path / "out" / f"{split}_ims.npy")
        assert images.dtype == np.float32 and len(captions) == 5 * len(images)
        division = 5 if images.shape[0] != len(captions) else 1
        assert division == 5
        for number, caption in enumerate(captions):
            image = images[number // division]
            assert caption == f"caption {number % 5} of {split} {number // 5}."
            assert np.array_equal(image, arrays[split]["ims"][number // 5])
        # 3SHNet's three, by the same row.
        for name in ("seg_maps", "cat_onehots", "segmentations"):
            assert np.array_equal(np.load(tmp_path / "out" / f"{split}_{name}.npy"), arrays[split][name]), name


def test_void_and_padding_survive(tmp_path):
    folder = tmp_path / "precomp"
    folder.mkdir()
    write_split(folder, "train", 5)
    ims, maps = np.load(folder / "train_ims.npy"), np.load(folder / "train_seg_maps.npy")
    ims[1, 4:] = 0
    ims[2] = 0
    maps[3, :10] = 133
    np.save(folder / "train_ims.npy", ims), np.save(folder / "train_seg_maps.npy", maps)
    splits = {"train": "train"}
    index = make_index(folder, tmp_path / "index", splits)
    with pytest.raises(UserError, match=r"image 'train2' .*train_ims.npy#2\): features are all zero"):
        import_feature(index, folder, "regions", splits=splits)
    stores = {f: import_feature(index, folder, f, splits=splits, on_bad_image="drop") for f in FEATURES}
    assert stores["regions"].rows("counts", range(5)).tolist() == [6, 4, 0, 6, 6]
    assert stores["regions"].attributes["dropped"] == ["train2"]
    assert (stores["panoptic"].rows("seg_maps", [3])[0, :10] == 255).all()
    export(index, tmp_path / "out")
    for name in ("ims", "seg_maps"):
        exported = np.load(tmp_path / "out" / f"train_{name}.npy")
        assert np.array_equal(exported, np.load(folder / f"train_{name}.npy")[[0, 1, 3, 4]]), name


def test_standardised_maps_give_the_same_store(scan, imported, tmp_path):
    folder, arrays = scan
    _, _, stores = imported
    write_split(folder, "train", 9, encoding="standardised")
    index = make_index(folder, tmp_path / "other")
    store = import_feature(index, folder, "panoptic")
    assert store.attributes["imported_seg_maps"] == {"train": "standardised", "dev": "raw"}
    assert np.array_equal(store.rows("seg_maps", range(13)), stores["panoptic"].rows("seg_maps", range(13)))
    import_feature(index, folder, "regions")
    export(index, tmp_path / "out", "--seg-maps", "standardised")
    assert np.array_equal(np.load(tmp_path / "out" / "train_seg_maps.npy"), np.load(folder / "train_seg_maps.npy"))
    with pytest.raises(UserError, match="which is no class 0..132 .* as raw map; correct datasets.<name>.seg_maps"):
        import_feature(index, folder, "panoptic", seg_maps="raw")


def test_rounding_is_counted_or_refused(scan, tmp_path):
    folder, arrays = scan
    ims = arrays["train"]["ims"].copy()
    ims[3, 2, :2] += 1e-5
    np.save(folder / "train_ims.npy", ims)
    index = make_index(folder, tmp_path / "index")
    import_feature(index, folder, "regions", shards=1)
    receipt = json.loads((index / "regions.receipts" / "0.json").read_text())
    assert receipt["rounding"]["rounded"] == 2 and receipt["rounding"]["values"] == 13 * 6 * 16
    assert 0 < receipt["rounding"]["error"] < 1e-3
    with pytest.raises(UserError, match="float16 rounds; set rounding: count"):
        import_feature(index, folder, "regions", rounding="error")
    for bad in (np.nan, 1e6):
        ims[3, 2, 0] = bad
        np.save(folder / "train_ims.npy", ims)
        with pytest.raises(UserError, match=r"train_ims.npy, images 0 to 6 .* not finite in float16"):
            import_feature(index, folder, "regions")


def test_files_that_do_not_fit(scan, tmp_path):
    folder, _ = scan
    index = make_index(folder, tmp_path / "index")
    write_split(folder, "train", 8)
    with pytest.raises(UserError, match="have 12 images, the index 13: they changed since"):
        import_feature(index, folder, "regions")
    images = ImageRows([f"{i}" for i in range(12)], "digest")
    np.save(folder / "dev_ims.npy", np.zeros((4, 7, 16), np.float32))
    with pytest.raises(UserError, match="have different shapes per image"):
        READERS["scan", "regions"]("regions", images, folder=str(folder), splits=SPLITS, features=FEATURES)
    np.save(folder / "dev_cat_onehots.npy", np.zeros((4, 80), np.float32))
    np.save(folder / "train_cat_onehots.npy", np.zeros((8, 80), np.float32))
    with pytest.raises(UserError, match=r"category_onehots: \(80,\) per image instead of \(133,\)"):
        READERS["scan", "panoptic"]("panoptic", images, folder=str(folder), splits=SPLITS, features=FEATURES)


def test_panoptic_arrays_are_written_once(imported, tmp_path):
    index, _, _ = imported
    for feature in ("regions", "grids"):  # whichever visual store, they are the same
        export(index, tmp_path / "export" / feature, "--names", "{}")
    files = {name: [tmp_path / "export" / feature / f"train_{name}.npy" for feature in ("regions", "grids")]
             for name in ("ims", "seg_maps", "cat_onehots", "segmentations")}  # fmt: skip
    assert {name for name, (one, other) in files.items() if one.samefile(other)} == files.keys() - {"ims"}
    first = files["seg_maps"][0].read_bytes()
    export(index, tmp_path / "export" / "grids", "--names", "{}", "--seg-maps", "standardised")  # no longer the same
    one, other = files["seg_maps"]
    assert one.read_bytes() == first != other.read_bytes() and files["segmentations"][0].samefile(
        files["segmentations"][1]
    )
    export(index, tmp_path / "export" / "grids", "--names", "{}")
    assert one.samefile(other)
    assert not [path for path in (tmp_path / "export").rglob(".*")], "no lock or temporary file is left"


def test_an_export_needs_five_captions(imported, tmp_path):
    import pyarrow.parquet as pq

    from catalog.index import read_index, write_index

    index, _, _ = imported
    tables = read_index(index)
    write_index(index / "images.parquet", index / "captions.parquet", tables.images, tables.captions.slice(1))
    assert pq.read_table(index / "captions.parquet").num_rows == 64
    with pytest.raises(UserError, match="1 images have fewer than five captions.*'train0'"):
        export(index, tmp_path / "out")


@pytest.mark.parametrize("command", ["index", "import", "export"])
def test_large_files_never_enter_memory(command, large):
    """1.2 GB of features; each command's peak is a part of that, in a process of its own."""
    folder, index, limit = large
    split = json.dumps({"source": "precomputed", "folder": str(folder), "splits": {"test": "test"}, "features": ["regions"]})  # fmt: skip
    source = json.dumps({"format": "scan", "folder": str(folder), "splits": {"test": "test"}, "features": ["regions"]})
    tables = ["--images", str(index / "images.parquet")]
    arguments = {
        "index": ["catalog.run", "index", "--dataset", "d", "--settings", split, *tables]
        + ["--captions", str(index / "captions.parquet"), "--threads", "2"],
        "import": ["exchange", "import", "--feature", "regions", "--source", source, *tables]
        + ["--store", str(index / "regions.zarr"), "--receipt", str(index / "0.json")],
        "export": ["exchange", "export", "--index", str(index), "--visual", str(index / "regions.zarr")]
        + ["--output", str(index / "out")],
    }[command]  # fmt: skip
    peak = peak_memory(*arguments)
    assert peak < limit, f"{peak / 2**20:.0f} MiB"
    if command == "import":
        images = read_image_rows(index / "images.parquet")
        seal(store=index / "regions.zarr", receipts=[index / "0.json"], images=images)
    if command == "export":
        assert (index / "out" / "test_ims.npy").stat().st_size == (folder / "test_ims.npy").stat().st_size


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(folder, where to put results, bytes): a file of 4,096 images, mostly holes, and half its size as the limit."""
    folder = tmp_path_factory.mktemp("large")
    array = np.lib.format.open_memmap(folder / "test_ims.npy", "w+", np.float32, (4096, 36, 2048))
    array[:, 0, :512] = 1.5  # an image of zeros alone would be unusable
    size = array.nbytes
    del array
    (folder / "test_caps.txt").write_text("x\n" * 5 * 4096)
    return folder, tmp_path_factory.mktemp("index"), size // 2


def peak_memory(module, *arguments):
    """Bytes: the largest resident set of `python -m module arguments`."""
    code = (
        "import re, runpy, sys\n"
        f"sys.argv = {[module, *arguments]!r}\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        # Not getrusage: its peak is that of the process before exec as well, the one that runs the tests.
        "print('peak', re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read()).group(1))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return int(result.stdout.rsplit("peak ", 1)[1]) * 1024


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ims", np.ones((4, 600, 36), np.float32), "must be .regions or cells, width., swap them"),
        ("ims", np.ones((4, 128, 36), np.float32), "must be .regions or cells, width., swap them"),
        ("segmentations", np.full((4, 133, 7, 7), 2, np.float32), "outside 0 to 1"),
        ("boxes", np.tile(np.array([-99, 9, 3, 30], np.float32), (4, 6, 1)), "left of or above the image"),
        ("boxes", np.full((4, 6, 4), np.nan, np.float32), "not finite"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path, name, values, message):
    write_split(tmp_path, "dev", 4)
    np.save(tmp_path / f"dev_{name}.npy", values)
    feature = "panoptic" if name == "segmentations" else "regions"
    options = {"folder": str(tmp_path), "splits": {"val": "dev"}, "features": ["regions", "panoptic"]}
    with pytest.raises(UserError, match=message):
        READERS["scan", feature](feature, ImageRows([str(i) for i in range(4)], "x"), **options).read(range(4))


@pytest.mark.parametrize("written", ["upsnet", "coco"])
def test_classes_that_look_like_those_of_the_other_order_are_noted(tmp_path, written):
    """People are on half of COCO's photographs."""
    folder = tmp_path / "precomp"
    folder.mkdir()
    write_split(folder, "test", 40)
    onehots = (np.random.default_rng(0).random((40, 133)) < 0.02).astype(np.float32)
    onehots[::2, 53 if written == "upsnet" else 0] = 1
    np.save(folder / "test_cat_onehots.npy", onehots)
    images = ImageRows([f"test{i}" for i in range(40)], "digest", ["x"] * 40, [(0, 0)] * 40)
    options = {"format": "scan", "folder": str(folder), "splits": {"test": "test"}, "features": ["panoptic"]}
    for order in ("upsnet", "coco"):
        notes = open_reader("panoptic", options | {"class_order": order}, images).notes
        assert [f"is a person by class_order: {written}, and" in note for note in notes] == [True] * (order != written)
