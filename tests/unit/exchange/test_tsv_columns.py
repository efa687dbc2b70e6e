"""Columns of a `.tsv` in any order: as its header says, or as the values tell; else it is refused."""

import base64

import numpy as np
import pytest

from catalog.index import ImageRows
from core.console import UserError
from exchange.importing import open_reader

IDS, SIZES = ["42", "7", "boxes"], [(480, 640), (300, 400), (200, 100)]
USUAL = ("img_id", "img_w", "img_h", "num_boxes", "boxes", "features")
TEN = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features")  # fmt: skip


def arrays(row):
    random = np.random.default_rng(row)
    count = 3 + row
    boxes = np.sort(random.uniform(1, 99, (count, 4)).astype(np.float32))[:, [0, 1, 2, 3]]
    return {
        "boxes": boxes, "features": random.standard_normal((count, 8)).astype(np.float16).astype(np.float32),
        "objects_id": random.integers(0, 9, count), "objects_conf": random.random(count).astype(np.float32),
        "attrs_id": random.integers(0, 9, count), "attrs_conf": random.random(count).astype(np.float32),
    }  # fmt: skip


def write(path, order, header=(), ids=IDS, sizes=SIZES):
    lines = ["\t".join(header)] if header else []
    for row, (name, (height, width)) in enumerate(zip(ids, sizes, strict=True)):
        cells = {k: base64.b64encode(v.tobytes()).decode() for k, v in arrays(row).items()}
        cells |= {
            "img_id": name,
            "img_h": str(height),
            "img_w": str(width),
            "num_boxes": str(3 + row),
            "cls_prob": "AAAA",
        }
        lines.append("\t".join(cells[column] for column in order))
    path.write_text("\n".join(lines) + "\n")


def read(path, sizes=SIZES):
    images = ImageRows(IDS, "digest", [f"{name}.jpg" for name in IDS], sizes)
    reader = open_reader("regions", {"format": "tsv", "path": str(path), "num_regions": 5}, images)
    return reader, *reader.read(range(3))


def check(path, classes=False):
    reader, rows, failures = read(path)
    assert failures == [] and ("class_ids" in reader.arrays) == classes
    for row in range(3):
        known = arrays(row)
        assert np.array_equal(rows["features"][row, : 3 + row], known["features"])
        assert np.array_equal(rows["boxes"][row, : 3 + row], known["boxes"])
        if classes:
            assert np.array_equal(rows["class_ids"][row, : 3 + row], known["objects_id"])


@pytest.mark.parametrize(
    "order",
    [
        USUAL,
        ("img_id", "img_h", "img_w", "num_boxes", "boxes", "features"),
        ("img_id", "img_h", "img_w", "features", "num_boxes", "boxes"),
        ("features", "boxes", "num_boxes", "img_w", "img_h", "img_id"),
        ("img_w", "img_h", "img_id", "cls_prob", "num_boxes", "boxes", "features"),
    ],
)
def test_values_tell_the_order(tmp_path, order):
    write(tmp_path / "f.tsv", order)
    check(tmp_path / "f.tsv")


@pytest.mark.parametrize(
    ("order", "header"),
    [
        (TEN[::-1], TEN[::-1]),
        (TEN, ("image_id", "image_h", "image_w", *TEN[3:])),
        (("features", "cls_prob", *TEN[:9]), ("Features", "cls_prob", *(f'"{name}"' for name in TEN[:9]))),
    ],
)
def test_a_header_tells_the_order(tmp_path, order, header):
    write(tmp_path / "f.tsv", order, header)
    check(tmp_path / "f.tsv", classes=True)
    (tmp_path / "f.tsv").write_text("\ufeff\n" + (tmp_path / "f.tsv").read_text())
    check(tmp_path / "f.tsv", classes=True)


def test_ten_columns_with_width_before_height(tmp_path):
    write(tmp_path / "f.tsv", ("img_id", "img_w", "img_h", *TEN[3:]))
    check(tmp_path / "f.tsv", classes=True)


@pytest.mark.parametrize(
    ("order", "header", "message"),
    [
        (TEN[:9], TEN[:9], "names features nowhere; needed are img_id, "),
        ((*TEN, "boxes"), (*TEN, "bbox"), "names boxes twice"),
        (
            TEN[:3] + TEN[5:],
            (),
            "the 8 columns of .* are none of LXMERT's 10 .* put a line above them .*: img_id, img_w",
        ),
    ],
)
def test_what_nothing_tells_is_refused(tmp_path, order, header, message):
    write(tmp_path / "f.tsv", order, header)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "f.tsv")


def test_a_reversed_line_of_ten_is_no_line(tmp_path):
    """Of objects and attributes only a header tells which is which."""
    write(tmp_path / "f.tsv", TEN[::-1])
    with pytest.raises(UserError, match="no usable line for any image"):
        read(tmp_path / "f.tsv")
