"""SCAN's and 3SHNet's files as a dataset: rows, ids and captions; everything wrong at once; nothing is unpickled."""

import hashlib
import pickle
import re

import numpy as np
import pytest

from catalog.precomputed import open_array, read_parts, read_precomputed, seg_map_encoding
from core.console import UserError

SPLITS = {"train": "train", "val": "dev"}


def write(folder, prefix, images, step=1, lines=None):
    rows = np.arange(images * 3 * 4, dtype=np.float32).reshape(images, 3, 4)
    np.save(folder / f"{prefix}_ims.npy", np.repeat(rows, step, 0))
    texts = [f"{prefix} {i} {k}" for i in range(images) for k in range(5)] if lines is None else lines
    (folder / f"{prefix}_caps.txt").write_text("\n".join(texts) + "\n")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "train", 3)
    write(tmp_path, "dev", 2, step=5)
    return tmp_path


def test_rows_are_images_whether_repeated_or_not(folder):
    (folder / "dev_ids.txt").write_text("".join(f"{i}.jpg\n" * 5 for i in (36979, 65567)))
    (folder / "dev_capids.txt").write_text("".join(f"c{i}\n" for i in range(10)))
    found = read_precomputed(str(folder), SPLITS, ["regions"])
    images = found.images(1)
    assert found.image_ids == ["train-000000", "train-000001", "train-000002", "36979.jpg", "65567.jpg"]
    assert images["split"].to_pylist() == ["train"] * 3 + ["val"] * 2
    assert images["path"].to_pylist()[4] == f"{folder / 'dev_ims.npy'}#1"
    assert found.texts[5:10] == [f"train 1 {k}" for k in range(5)]
    assert found.caption_images[15:] == ["36979.jpg"] * 5 + ["65567.jpg"] * 5
    assert found.caption_ids[14:17] == ["train-000002#4", "c0", "c1"]
    assert [p.steps for p in read_parts(str(folder), SPLITS, ["regions"]).values()] == [{"ims": 1}, {"ims": 5}]


def test_the_hash_is_of_an_images_own_rows(folder):
    before = read_precomputed(str(folder), SPLITS, ["regions"]).images(1)
    header = b"ims <f4 (3, 4)"
    own = np.arange(12, dtype=np.float32)
    assert before["content_hash"][0].as_py() == hashlib.sha256(header + own.tobytes()).hexdigest()
    rows = np.load(folder / "dev_ims.npy")
    rows[5:, 1, 1] += 1
    np.save(folder / "dev_ims.npy", rows)
    after = read_precomputed(str(folder), SPLITS, ["regions"]).images(1)
    changed = [a != b for a, b in zip(before["content_hash"], after["content_hash"], strict=True)]
    assert changed == [False] * 4 + [True]


def test_what_does_not_fit_is_listed_at_once(folder):
    (folder / "dev_caps.txt").write_text("x\n" * 12)
    np.save(folder / "train_ims.npy", np.zeros((4, 3, 4), np.float32))
    with pytest.raises(UserError) as error:
        read_precomputed(str(folder), SPLITS | {"test": "test"}, ["regions", "panoptic"])
    message = str(error.value)
    for expected in (
        r"train_ims\.npy has 4 rows, .*train_caps\.txt 15 captions; expected 3 rows \(one per image\) or 15",
        r"train_seg_maps\.npy does not exist",
        r"dev_caps\.txt has 12 lines, which is no multiple of five",
        r"test_caps\.txt does not exist",
    ):
        assert re.search(expected, message), expected


def test_ids_captions_and_repeats_are_checked(folder):
    write(folder, "train", 3, lines=["x"] * 13 + ["", " "])
    (folder / "train_ids.txt").write_text("a\nb\na\n")
    with pytest.raises(UserError) as error:
        read_precomputed(str(folder), SPLITS, ["regions"])
    assert "2 empty captions in train_caps.txt: 'line 14', 'line 15'" in str(error.value)
    assert "1 image ids that occur twice in train_ids.txt: 'a'. Write ids that differ" in str(error.value)

    (folder / "train_ids.txt").write_text("id\na\nb\nc\n")
    with pytest.raises(UserError, match="train_ids.txt has 4 lines for 3 images; remove or correct the file"):
        read_precomputed(str(folder), SPLITS, ["regions"])
    write(folder, "train", 3)
    (folder / "train_ids.txt").unlink()
    rows = np.load(folder / "dev_ims.npy")
    rows[7, 0, 0] = -1
    np.save(folder / "dev_ims.npy", rows)
    with pytest.raises(UserError, match="1 images whose five rows in dev_ims.npy are not equal: 'image 1'"):
        read_precomputed(str(folder), SPLITS, ["regions"])


def test_ids_that_two_splits_share(folder):
    """SCAN's files number the images of each split from 0."""
    (folder / "train_ids.txt").write_text("0\n1\n2\n")
    (folder / "dev_ids.txt").write_text("".join(f"{i}\n" * 5 for i in (0, 1)))
    with pytest.raises(UserError) as error:
        read_precomputed(str(folder), SPLITS, ["regions"])
    _, line = str(error.value).splitlines()
    assert line == (
        "  2 image ids that occur twice in train_ids.txt and dev_ids.txt: '0', '1'. Write ids that differ over all splits into "
        "these files, or remove them: rows are then numbered"
    )


def test_pickles_are_refused(folder):
    np.save(folder / "train_ims.npy", np.array([{"a": 1}] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="train_ims.npy is an array of Python objects, which are never opened"):
        read_precomputed(str(folder), SPLITS, ["regions"])


def test_a_pickle_under_the_name_of_an_array_comes_without_advice_to_open_it(folder):
    (folder / "train_ims.npy").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="is an array of Python objects, which are never opened") as error:
        read_precomputed(str(folder), SPLITS, ["regions"])
    assert "allow_pickle" not in str(error.value)


def test_what_lies_behind_an_array_is_not_lost_in_silence(folder):
    with open(folder / "train_ims.npy", "ab") as file:
        file.write(bytes(512))  # zeros say nothing
    assert len(read_precomputed(str(folder), SPLITS, ["regions"]).image_ids) == 5
    with open(folder / "train_ims.npy", "ab") as file:
        np.save(file, np.ones((2, 3, 4), np.float32))
    with pytest.raises(
        UserError, match=r"train_ims.npy holds 736 bytes behind its array \(3, 3, 4\), as of several that were saved"
    ):
        read_precomputed(str(folder), SPLITS, ["regions"])


def test_rows_that_were_written_again_and_again_are_noted(folder):
    assert read_precomputed(str(folder), SPLITS, ["regions"]).notes == []
    np.save(folder / "train_ims.npy", np.ones((3, 3, 4), np.float32))
    (note,) = read_precomputed(str(folder), SPLITS, ["regions"]).notes
    assert (
        note.startswith("2 images of train_*.npy have the very features of one above them") and "'train-000002'" in note
    )


def test_maps_are_recognised_by_their_range(tmp_path):
    ids = np.random.default_rng(0).integers(0, 133, (100, 64, 64))
    np.save(tmp_path / "raw.npy", ids.astype(np.float32))
    assert seg_map_encoding(tmp_path / "raw.npy") == "raw"
    for dtype in (np.float16, np.float64):
        path = tmp_path / f"{np.dtype(dtype)}.npy"
        np.save(path, ((ids / 133 - 0.3342) / 0.0621).astype(dtype))
        assert seg_map_encoding(path) == "standardised"
    # One class only, and one with a positive value.
    np.save(tmp_path / "one.npy", np.full((3, 64, 64), (100 / 133 - 0.3342) / 0.0621, np.float32))
    assert seg_map_encoding(tmp_path / "one.npy") == "standardised"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train_caps.txt",
            "".join(f"{i}.jpg#{k}\ta dog\n" for i in range(3) for k in range(5)),
            "leave the caption alone",
        ),
        ("train_ims.npy", {"x": np.ones((3, 3, 4))}, "it is a .npz archive"),
    ],
    ids=["token lines", "archive"],
)
def test_files_that_only_look_like_it(folder, name, content, message):
    if isinstance(content, str):
        (folder / name).write_text(content)
    else:
        with open(folder / name, "wb") as file:
            np.savez(file, **content)
    with pytest.raises(UserError, match=message):
        read_precomputed(str(folder), SPLITS, ["regions"])


@pytest.mark.parametrize("header", [b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), ", b"{[descr': 3", b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 3), }"])  # fmt: skip
def test_headers_that_nobody_can_read(tmp_path, header):
    file = tmp_path / "a.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n" + bytes(24))
    with pytest.raises(UserError, match="not an array of numbers in .npy format, or cut off"):
        open_array(file)


def test_an_empty_last_line_is_told(tmp_path):
    np.save(tmp_path / "test_ims.npy", np.ones((1, 3, 300), np.float32))
    (tmp_path / "test_caps.txt").write_text("x\n" * 5 + "\n")
    with pytest.raises(
        UserError,
        match="has 6 lines, which is no multiple of five captions per image; its last line is empty, remove it",
    ):
        read_parts(str(tmp_path), {"test": "test"}, ["regions"])
