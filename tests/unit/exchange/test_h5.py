"""HDF5 files: as captioning codes read ours, and theirs in every layout, whole, foreign and broken."""

import pickle

import h5py
import numpy as np
import pytest

from catalog.index import ImageRows, read_image_rows
from catalog.settings import RegionImport
from core.console import UserError
from exchange.importing import open_reader
from exchange.per_image import _classes, export_images
from tests.unit.exchange.test_per_image import IDS, exported  # noqa: F401 - a fixture
from tests.unit.model.conftest import FakeStore

IMAGES = ImageRows(["42", "7"], "digest", ["COCO_val2014_000000000042.jpg", "7.jpg"], [(480, 640)] * 2)
COUNTS = [5, 3]


def regions(row):
    random, n = np.random.default_rng(row), COUNTS[row]
    boxes = random.uniform(0, 150, (n, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return random.uniform(0.5, 1, (n, 16)).astype(np.float16).astype(np.float32), boxes


ARRAYS = [regions(row) for row in range(2)]


def read(path, feature="regions", images=IMAGES, **options):
    reader = open_reader(feature, {"format": "h5", "path": str(path)} | options, images)
    return reader, *reader.read(range(len(images.ids)))


def check(rows, failures, boxes=True):
    assert failures == [] and rows["counts"].tolist() == COUNTS
    for row, (features, own) in enumerate(ARRAYS):
        assert np.array_equal(rows["features"][row, : COUNTS[row]], features)
        assert not boxes or np.array_equal(rows["boxes"][row, : COUNTS[row]], own)


def padded(values, most=8):
    return np.pad(values, ((0, most - len(values)), (0, 0)))


def by_image(file, name, features, boxes):
    file[f"{name}_features"], file[f"{name}_boxes"] = features, boxes


def by_group(file, name, features, boxes):
    file[f"{name}/features"], file[f"{name}/bbox"] = features, boxes


def by_array(file, name, features, boxes):
    file[f"features/{name}"], file[f"boxes/{name}"] = features, boxes


def turned(file, name, features, boxes):
    file[f"{name}_features"], file[f"{name}_boxes"] = features.T, boxes.T


@pytest.mark.parametrize("write", [by_image, by_group, by_array, turned])
def test_layouts_by_name(tmp_path, write):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, arrays in zip(("COCO_val2014_000000000042", "7"), ARRAYS, strict=True):
            write(file, name, *arrays)
    check(*read(tmp_path / "a.h5")[1:])


def test_a_file_for_each_array(tmp_path):
    for name, at in (("att", 0), ("box", 1), ("fc", None), ("label", None)):
        with h5py.File(tmp_path / f"cocobu_{name}.h5", "w") as file:
            for row, image_id in enumerate(IMAGES.ids):
                file[image_id] = np.ones(3) if at is None else ARRAYS[row][at]
    check(*read(tmp_path)[1:])
    check(*read(tmp_path / "cocobu_att.h5")[1:], boxes=False)


def tables():
    names = ("features", "boxes")
    stacked = {name: np.stack([padded(arrays[k]) for arrays in ARRAYS]) for k, name in enumerate(names)}
    yield (
        "numbers of regions",
        stacked | {"image_id": [42, 7], "num_boxes": COUNTS, "width": [640] * 2, "height": [480] * 2},
    )
    yield "padding alone", stacked | {"image_ids": np.array(["000000000042", "7.jpg"], "S")}
    yield (
        "turned",
        {
            "features": stacked["features"].transpose(0, 2, 1),
            "boxes": stacked["boxes"],
            "ids": [42, 7],
            "num_boxes": COUNTS,
        },
    )
    rows = np.concatenate([arrays[0] for arrays in ARRAYS])
    boxes = np.concatenate([arrays[1] for arrays in ARRAYS])
    yield (
        "one after the other",
        {"image_features": rows, "image_bb": boxes, "img_ids": [42, 7], "pos_boxes": [[0, 5], [5, 8]]},
    )


@pytest.mark.parametrize("table", [pytest.param(table, id=name) for name, table in tables()])
def test_tables(tmp_path, table):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, values in table.items():
            file[name] = values
    check(*read(tmp_path / "a.hdf5")[1:])


def test_tables_of_unrolled_rows(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k, name in enumerate(("features", "boxes")):
            file.create_dataset(name, 2, h5py.vlen_dtype(np.float32))
            for row in range(2):
                file[name][row] = ARRAYS[row][k].ravel()
        file["image_id"], file["num_boxes"] = [42, 7], COUNTS
    check(*read(tmp_path / "a.h5")[1:])


def test_ids_beside_the_file_and_no_code_in_them(tmp_path):
    with h5py.File(tmp_path / "val36.hdf5", "w") as file:
        file["image_features"] = np.stack([padded(features) for features, _ in ARRAYS])
        file["image_bb"] = np.stack([padded(boxes) for _, boxes in ARRAYS])
    with pytest.raises(UserError, match="no ids: neither a dataset image_id.*nor val36_imgid2idx.pkl"):
        read(tmp_path)
    ids = tmp_path / "val36_imgid2idx.pkl"
    ids.write_bytes(pickle.dumps({7: 1, 42: 0}))
    check(*read(tmp_path)[1:])
    assert RegionImport(format="h5", path=str(tmp_path / "val36.hdf5")).files() == [
        str(tmp_path / "val36.hdf5"),
        str(ids),
    ]
    ids.write_bytes(pickle.dumps({7: 1, 42: 0, 8: 0}))
    with pytest.raises(UserError, match="several ids have one row"):
        read(tmp_path)
    ids.write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match="asks for builtins.print"):
        read(tmp_path)


def test_classes_are_those_of_cls_prob_after_the_background(tmp_path):
    probabilities = np.array([[0.9, 0, 0.1], [0.2, 0.7, 0.1], [0, 0, 0], [0, 0, 1], [0.5, 0.5, 0]], np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        by_image(file, "42", *ARRAYS[0])
        file["42_cls_prob"] = probabilities
        by_image(file, "7", *ARRAYS[1])
        file["7_cls_prob"] = probabilities[:2]
    _, rows, failures = read(tmp_path / "a.h5")
    assert rows["class_ids"][0, :5].tolist() == [1, 0, -1, 1, 0]
    assert rows["scores"][0, :5].tolist() == probabilities[:, 1:].max(1).tolist()
    assert [row for row, _ in failures] == [1] and "cls_prob has shape (2, 3) instead of (3, 1 + classes)" in failures[
        0
    ][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "a web page that was saved"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (b"", r"empty \(0 bytes\)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "no HDF5 file, or cut off"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(UserError, match=f"imports.path: .*a.h5 is {message}"):
        read(tmp_path / "a.h5")


def test_files_that_are_cut_off_or_damaged(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, arrays in zip(IMAGES.ids, ARRAYS, strict=True):
            by_image(file, name, *arrays)
        file.create_dataset(
            "7_cls_prob", data=np.random.default_rng(0).random((3, 900), np.float32), compression="gzip"
        )
        place = file["7_cls_prob"].id.get_chunk_info(0).byte_offset
    whole = path.read_bytes()

    def replace(content):
        path.unlink()  # the library takes a file of the same inode for one that it has open
        path.write_bytes(content)

    replace(whole[:place] + bytes(64) + whole[place + 64 :])
    _, rows, failures = read(path)
    assert [row for row, _ in failures] == [1] and "7_cls_prob cannot be read" in failures[0][1]
    for length in range(200, len(whole), len(whole) // 7):
        replace(whole[:length])
        with pytest.raises(UserError, match="cut off|damaged"):
            read(path)
    for seed in range(40):  # whatever is wrong, it is said and never a traceback
        noisy = bytearray(whole)
        random = np.random.default_rng(seed)
        for at in random.integers(0, len(whole), 30):
            noisy[at] = random.integers(256)
        replace(noisy)
        try:
            read(path)
        except UserError:
            pass


def broken(**changes):
    return {
        "42_features": ARRAYS[0][0],
        "42_boxes": ARRAYS[0][1],
        "7_features": ARRAYS[1][0],
        "7_boxes": ARRAYS[1][1],
    } | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (broken(**{"7_features": np.full((3, 16), np.nan)}), "not finite"),
        (broken(**{"7_features": np.ones((3, 9), "f4")}), "features has shape"),
        (broken(**{"7_features": np.ones((4, 16), "f4")}), "fits 3 boxes in no direction"),
        (broken(**{"7_features": np.array(b"text")}), "not real numbers"),
        (broken(**{"7_features": np.ones((40, 16), "f4"), "7_boxes": np.ones((40, 4), "f4")}), "raise imports.regions.num_regions"),
        (broken(**{"7_boxes": ARRAYS[1][1] / 640}), "as fractions of the image do"),
        ({k: v for k, v in broken().items() if k != "7_features"}, "has no features, only boxes"),
        ({k: v for k, v in broken().items() if k[0] == "4"}, "nothing for it in"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_image(tmp_path, content, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in content.items():
            file[name] = values
    _, _, failures = read(tmp_path / "a.h5")
    assert [row for row, _ in failures] == [1] and message in failures[0][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": np.ones((3, 3)), "labels": [1]}, "'42'.*nothing for it"),
        (
            {"features": np.ones((2, 3, 4)), "image_id": [1, 2, 3]},
            "has 3 ids .image_id., but other numbers of rows: features 2",
        ),
        ({"features": np.ones((2, 3, 4)), "image_id": [42, 42]}, "has id '42' twice"),
        ({"42_boxes": np.ones((3, 4))}, "no features under names that are known.*'42_boxes'"),
        ({"42_features": np.ones((3, 4)), "42_feats": np.ones((3, 4))}, "has twice features of image '42'"),
        ({"1/features": np.ones((3, 4))}, "no usable regions of any image of the index.*there are '1'"),
        (
            {"features": np.ones((9, 4)), "image_id": [42, 7], "pos_boxes": [[0, 5], [4, 9]]},
            r"gives rows to two images: \[0, 5\] and \[4, 9\]",
        ),
        ({"features": np.ones((9, 4)), "image_id": [42, 7], "pos_boxes": [0, 4]}, r"pos_boxes has shape \(2,\)"),
        (
            {"features": np.ones((2, 3, 4)), "image_id": [42, 7], "num_boxes": [-1, np.nan]},
            "no usable regions.*the number of its regions is -1.0",
        ),
        ({"features": np.ones((1, 3, 4)), "image_id": [42], "num_boxes": [9]}, "has 3 rows for 9 regions"),
    ],
)
def test_files_that_cannot_be_of_the_dataset(tmp_path, content, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in content.items():
            file[name] = values
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.h5")


def test_numbers_that_lie_elsewhere_or_are_packed_otherwise(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        by_image(file, "42", *ARRAYS[0])
        layout = h5py.VirtualLayout((3, 16), np.float32)
        layout[:] = h5py.VirtualSource(str(tmp_path / "gone.h5"), "x", (3, 16))  # h5py fills in what is missing
        file.create_virtual_dataset("7_features", layout, fillvalue=7)
    assert "/7_features lies in other files" in read(path)[2][0][1]
    with h5py.File(path, "w") as file:
        by_image(file, "42", *ARRAYS[0])
        (tmp_path / "raw").write_bytes(ARRAYS[1][0].tobytes())
        file.create_dataset("7_features", (3, 16), np.float32, external=[(str(tmp_path / "raw"), 0, 192)])
    assert "/7_features lies in other files" in read(path)[2][0][1]
    with h5py.File(path, "w") as file:
        by_image(file, "42", *ARRAYS[0])
        file.create_dataset("7_features", data=ARRAYS[1][0], compression="gzip")
    content = bytearray(path.read_bytes())
    at = content.index(b"deflate") - 8
    content[at : at + 2] = (32001).to_bytes(2, "little")
    path.write_bytes(content)
    assert "(number 32001), which h5py lacks; write it anew" in read(path)[2][0][1]


def test_rows_of_their_own_lengths_that_are_equal(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, (features, boxes) in zip(("42", "7"), ARRAYS, strict=True):
            rows = file.create_dataset(f"{name}_features", len(features), h5py.vlen_dtype(np.float32))
            for k, values in enumerate(features):
                rows[k] = values
            file[f"{name}_boxes"] = boxes
    _, rows, failures = read(tmp_path / "a.h5")
    check(rows, failures)


def test_sizes_that_cannot_be_are_not_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        by_image(file, "42", *ARRAYS[0])
        file.create_dataset("7_features", (10**9, 2048), np.float32, chunks=(1, 2048))  # nothing of it is in the file
    _, _, failures = read(tmp_path / "a.h5")
    assert [row for row, _ in failures] == [1] and "not of one image" in failures[0][1]


def test_links_lead_nowhere_and_regions_are_no_grid(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = ARRAYS[1][0]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        by_image(file, "42", *ARRAYS[0])
        file["7_features"] = h5py.ExternalLink("other.h5", "secret")
    _, _, failures = read(tmp_path / "a.h5")
    assert [row for row, _ in failures] == [1] and "is no dataset of this file" in failures[0][1]
    with pytest.raises(UserError, match="its features are regions, not a grid; import it as imports.regions"):
        read(tmp_path / "a.h5", "grids")


def test_as_captioning_codes_read_ours(exported):  # noqa: F811
    _, arrays, options = exported
    written = export_images(formats=["h5", "h5_arrays", "h5_table"], **options["regions"])
    assert written == {"h5": 3, "h5_arrays": 3, "h5_table": 3}
    out, own = options["regions"]["output"], arrays["regions"]
    with h5py.File(out / "features.h5") as file:
        # As M2 Transformer's ImageDetectionsField does.
        features = file[f"{42:d}_features"][()]
        order = np.argsort(np.max(file[f"{42:d}_cls_prob"][()], -1))[::-1]
        assert features.dtype == np.float32 and np.array_equal(features, own["features"][0].astype(np.float32))
        assert np.array_equal(order, np.argsort(own["class_scores"][0])[::-1])
        assert np.array_equal(file["sub/b c_boxes"][()], own["boxes"][1, :1])
    # As self-critical.pytorch's HybridLoader and its Dataset do.
    with (
        h5py.File(out / "cocobu_att.h5") as att,
        h5py.File(out / "cocobu_box.h5") as box,
        h5py.File(out / "cocobu_fc.h5") as fc,
    ):
        assert np.array(att["42"]).astype("float32").shape == (6, 16) and np.array(box["42"]).shape == (6, 4)
        assert np.allclose(fc["42"][()], att["42"][()].mean(0))
    # As UpDown's ImageFeaturesReader does.
    with h5py.File(out / "features_table.h5") as file:
        rows = {image_id.decode(): row for row, image_id in enumerate(file["image_id"])}
        assert list(rows) == IDS[:3] and file["num_boxes"][()].tolist() == [6, 1, 4]
        assert np.array_equal(file["boxes"][rows["ä"]], own["boxes"][2])
    export_images(formats=["h5"], **options["grids"])
    with h5py.File(options["grids"]["output"] / "features.h5") as file:
        assert file["42_grids"] == file["42_features"] and file["42_grids"].shape == (6, 16)


def test_cls_prob_alone_gives_classes_and_their_scores_back(exported, monkeypatch):  # noqa: F811
    """As of a file that is not ours: without what ours hold beside it."""
    folder, arrays, options = exported
    monkeypatch.setattr("exchange.h5_files.BESIDE", ())
    export_images(formats=["h5"], **options["regions"])
    _, found, _ = read(
        options["regions"]["output"] / "features.h5", images=read_image_rows(folder / "images.parquet"), num_regions=6
    )
    assert np.array_equal(found["class_ids"][:3], arrays["regions"]["class_ids"][:3])
    assert np.array_equal(found["scores"][:3], arrays["regions"]["class_scores"][:3])


@pytest.mark.parametrize("names", [[], ["dog", "cat"]], ids=["by the largest number", "by their names"])
def test_cls_prob_has_a_column_for_each_class_and_the_background(names):
    asked = []
    store = FakeStore({"class_ids": np.array([[1, -1], [0, -1]])}, ["a", "b"], {"class_names": names})
    rows, store.rows = store.rows, lambda array, indices: asked.append(array) or rows(array, indices)
    assert _classes(store) == 2 and bool(asked) == (not names), "all images are read only where nothing says it"


def test_counts_and_ranges_that_cannot_be(tmp_path):
    table = {"features": np.ones((2, 5, 300), np.float32), "image_ids": [42, 7]}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in (table | {"num_boxes": [5, 4.5]}).items():
            file[name] = values
    _, _, failures = read(tmp_path / "a.h5")
    assert [row for row, _ in failures] == [1] and "the number of its regions is 4.5" in failures[0][1]
    rows = {"image_features": np.ones((8, 300), np.float32), "img_ids": [42, 7]}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in (rows | {"pos_boxes": [[0, 4], [5, 7]]}).items():
            file[name] = values
    with pytest.raises(UserError, match="pos_boxes, pos_bboxes name the last row of each image; .*: add 1 to all ends"):
        read(tmp_path / "a.h5")


@pytest.mark.parametrize("shape", [7, [49], "7x7", [7, 7, 1], [0, 49], [7.5, 7], np.nan])
def test_shapes_of_grids_that_are_none(tmp_path, shape):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("42", "7"):
            file[f"{name}_grids"] = np.ones((49, 300), np.float32)
            file[f"{name}_grids"].attrs["grid_shape"] = [7, 7] if name == "42" else shape
    _, _, failures = read(tmp_path / "a.h5", "grids")
    assert [row for row, _ in failures] == [1] and "not the numbers of rows and columns" in failures[0][1]


def test_a_row_of_more_cells_than_are_kept(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, cells in (("42", 60), ("7", 70)):
            file[f"{name}_grids"] = np.ones((cells, 300), np.float32)
    _, rows, failures = read(tmp_path / "a.h5", "grids", grid="native", max_cells=60)
    assert failures == [] and rows["grid_shapes"].tolist() == [[1, 60], [1, 60]]


def test_one_id_alone_is_no_list_of_them(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["image_ids"] = np.ones((2, 5, 300), np.float32), "42"
    with pytest.raises(UserError, match="has 1 ids .image_ids., but other numbers of rows: features 2"):
        read(tmp_path / "a.h5")
