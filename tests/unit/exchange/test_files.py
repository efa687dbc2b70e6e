"""bottom-up-attention's .npz, LXMERT's .tsv and grid-feats' .pth per image -> stores; damaged and hostile files are listed."""

import base64
import os
import re
import warnings
import zipfile

import numpy as np
import pytest
import torch

from catalog.index import ImageRows
from core.console import UserError
from exchange.importing import open_reader

IDS = ["42", "7", "photos/x"]
PATHS = ["val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000007.jpg", "photos/x.jpg"]
SIZES = [(480, 640), (300, 400), (0, 0)]
NAMES = ["COCO_val2014_000000000042", "000000000007", "x"]  # each as another program writes it


def regions(row, count):
    random = np.random.default_rng(row)
    boxes = random.uniform(0, 150, (count, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "features": random.standard_normal((count, 16)).astype(np.float16).astype(np.float32),
        "boxes": boxes,
        "class_ids": random.integers(0, 1600, count),
        "scores": random.random(count).astype(np.float32),
        "attribute_ids": random.integers(0, 400, count),
        "attribute_scores": random.random(count).astype(np.float32),
    }


COUNTS = [4, 6, 1]
IMAGES = [regions(row, count) for row, count in enumerate(COUNTS)]


def write_npz(path, image, size, **changes):
    """As bottom-up-attention's `extract_features.py` does."""
    info = {"objects_id": image["class_ids"], "objects_conf": image["scores"]}
    info |= {"attrs_id": image["attribute_ids"], "attrs_conf": image["attribute_scores"]}
    content = {"x": image["features"], "bbox": image["boxes"], "num_bbox": len(image["boxes"]), "info": info}
    np.savez_compressed(path, **(content | {"image_h": size[0], "image_w": size[1]} | changes))


def write_tsv(path, images, names, columns=10):
    def code(values):
        return base64.b64encode(values.tobytes()).decode()

    lines = []
    for name, image, size in zip(names, images, SIZES, strict=True):
        cells = [name, str(size[0] or 999), str(size[1] or 999)]
        if columns == 10:
            cells += [code(image["class_ids"]), code(image["scores"])]
            cells += [code(image["attribute_ids"]), code(image["attribute_scores"])]
        else:
            cells[1:] = cells[:0:-1]
        lines.append("\t".join([*cells, str(len(image["boxes"])), code(image["boxes"]), code(image["features"])]))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(params=["npz", "tsv", "tsv of six columns"])
def source(request, tmp_path):
    if request.param == "npz":
        for name, image, size in zip(NAMES, IMAGES, SIZES, strict=True):
            write_npz(tmp_path / f"{name}.npz", image, size)
        return {"format": "npz", "path": str(tmp_path)}
    path = tmp_path / "features.tsv"
    order = [2, 0, 1]  # not that of the index
    columns = 6 if "six" in request.param else 10
    lines = [[sequence[i] for i in order] for sequence in (IMAGES, NAMES)]
    sizes = [SIZES[i] for i in order]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "SIZES", sizes)
        write_tsv(path, *lines, columns)
    return {"format": "tsv", "path": str(path)}


def read(source, rows=range(3), feature="regions", **options):
    reader = open_reader(feature, source | options, images=ImageRows(IDS, "digest", PATHS, SIZES))
    return reader, *reader.read(rows)


def test_region_files(source):
    reader, rows, failures = read(source, num_regions=8)
    assert failures == []
    known = {"features", "boxes"}
    if source["path"].endswith(".tsv") and len(open(source["path"]).readline().split("\t")) == 6:
        assert reader.arrays.keys() == known | {"counts"}
    else:
        known |= IMAGES[0].keys()
        assert reader.arrays.keys() == known | {"counts"}
    assert rows["counts"].tolist() == COUNTS
    for name in known:
        assert rows[name].dtype == reader.arrays[name].dtype and rows[name].shape[:2] == (3, 8)
        for row, count in enumerate(COUNTS):
            assert np.array_equal(rows[name][row, :count], IMAGES[row][name]), (name, row)
            assert (rows[name][row, count:] == reader.arrays[name].fill).all()
    _, part, _ = read(source, range(1, 2), num_regions=8)
    assert np.array_equal(part["features"][0], rows["features"][1])


def test_files_that_change_between_shards_make_another_store(source, tmp_path):
    reader, _, _ = read(source)
    assert read(source)[0].attributes == reader.attributes
    if source["format"] == "npz":
        write_npz(tmp_path / f"{NAMES[0]}.npz", regions(9, 5), SIZES[0])
    else:
        (tmp_path / "features.tsv").write_text((tmp_path / "features.tsv").read_text().replace("x\t", "xx\t", 1))
    assert read(source)[0].attributes != reader.attributes


def test_too_many_regions_name_the_setting(source):
    _, rows, failures = read(source, num_regions=5)
    assert failures == [(1, "has 6 regions; raise imports.regions.num_regions from 5")]
    assert rows["counts"].tolist() == [4, 0, 1] and (rows["features"][1] == 0).all()


def test_images_without_usable_files_are_listed(tmp_path):
    write_npz(tmp_path / "42.npz", IMAGES[0], (640, 480))  # lying, where ours is upright
    (tmp_path / "7.npz").write_bytes(b"PK not really")
    write_npz(tmp_path / "x.npz", IMAGES[2], SIZES[2])
    _, rows, failures = read({"format": "npz", "path": str(tmp_path)})
    assert [row for row, _ in failures] == [0, 1]
    assert failures[0][1] == "is of an image of 480 x 640 pixels, this one has 640 x 480"
    assert "7.npz cannot be read" in failures[1][1]
    content = (tmp_path / "x.npz").read_bytes()
    for damaged, what in (
        (content[: len(content) // 2], "is cut off"),
        (content[:200] + bytes(50) + content[250:], "cannot be read"),
    ):
        (tmp_path / "7.npz").write_bytes(damaged)
        _, _, failures = read({"format": "npz", "path": str(tmp_path)})
        assert [row for row, _ in failures] == [0, 1] and f"7.npz {what}" in failures[1][1]
    assert rows["counts"].tolist() == [0, 0, 1]

    (tmp_path / "7.npz").unlink()
    _, _, failures = read({"format": "npz", "path": str(tmp_path)})
    tried = "'7.npz', 'COCO_val2014_000000000007.npz', 'COCO_val2014_000000000007.jpg.npz', '000000000007.npz'; there are '42.npz', 'x.npz'"
    assert failures[1] == (1, f"nothing for it in {tmp_path}; looked for {tried}")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_in_a_file_is_run(tmp_path):
    made = tmp_path / "made"
    write_npz(tmp_path / "42.npz", IMAGES[0], SIZES[0], info=np.array(Hostile(str(made)), dtype=object))
    write_npz(tmp_path / "7.npz", IMAGES[1], SIZES[1], x=np.array([Hostile(str(made))], dtype=object))
    write_npz(tmp_path / "x.npz", IMAGES[2], SIZES[2])
    _, _, failures = read({"format": "npz", "path": str(tmp_path)})
    assert [row for row, _ in failures] == [0, 1] and "asks for posix.mkdir" in failures[0][1]

    for name in ("42", "7"):
        torch.save(Hostile(str(made)), tmp_path / f"{name}.pth")
    torch.save(torch.ones(1, 4, 2, 2), tmp_path / "x.pth")
    _, _, failures = read({"format": "pth", "path": str(tmp_path)}, feature="grids")
    assert [row for row, _ in failures] == [0, 1]
    assert not made.exists()


def test_damaged_lines_of_a_tsv(tmp_path):
    path = tmp_path / "features.tsv"
    write_tsv(path, IMAGES, ["42", "7", "x"])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-30], lines[2].replace("\t", " ", 5)]))
    _, _, failures = read({"format": "tsv", "path": str(path)})
    assert [row for row, _ in failures] == [1, 2] and "is damaged" in failures[0][1]
    path.write_text("\n".join([lines[0], lines[1], lines[0]]))
    _, rows, failures = read({"format": "tsv", "path": str(path)})  # equal lines are one
    assert [row for row, _ in failures] == [2] and rows["counts"].tolist() == [4, 6, 0]
    path.write_text(
        "\n".join([lines[0][:-30], lines[1], lines[0], lines[2]])
    )  # of a damaged and a whole one the whole one counts
    assert read({"format": "tsv", "path": str(path)})[2] == []
    path.write_text("\n".join([lines[0], lines[1], lines[1].replace("7", "42", 1)]))
    with pytest.raises(UserError, match="two lines that differ for '42'"):
        read({"format": "tsv", "path": str(path)})


def test_names_that_files_have(tmp_path):
    """OpenVQA's `a.jpg.npz`, grid-feats-vqa's `42.pth`, subfolders; what could mean two images means neither."""
    for name, image, size in zip(["42", "COCO_val2014_000000000007.jpg", "x.jpg"], IMAGES, SIZES, strict=True):
        write_npz(tmp_path / f"{name}.npz", image, size)
    source = {"format": "npz", "path": str(tmp_path)}
    assert read(source)[2] == []
    (tmp_path / "val2014").mkdir()
    for name in ("42", "x.jpg"):
        (tmp_path / f"{name}.npz").rename(tmp_path / "val2014" / f"{name}.npz")
    assert read(source)[2] == []
    ids, paths = ["a/x", "b/x", "COCO_val2014_000000000042"], ["a/x.jpg", "b/x.png", "COCO_val2014_000000000042.jpg"]
    images = ImageRows(ids, "digest", paths, [(0, 0)] * 3)
    _, failures = open_reader("regions", source, images).read(range(3))
    assert [row for row, _ in failures] == [1] and "looked for 'b/x.npz', 'x.png.npz'" in failures[0][1]
    write_npz(tmp_path / "000000000042.npz", IMAGES[1], SIZES[0])
    _, failures = open_reader("regions", source, images).read(range(3))
    assert failures[-1][0] == 2 and "could both be of it; remove one" in failures[-1][1]


def test_the_same_content_under_two_names_is_one(tmp_path):
    for name in ("42.NPZ", "42.jpg.npz"):
        write_npz(tmp_path / "42.npz", IMAGES[0], SIZES[0])
        (tmp_path / "42.npz").rename(tmp_path / name)
    images = ImageRows(["42"], "digest", ["42.jpg"], SIZES[:1])
    assert open_reader("regions", {"format": "npz", "path": str(tmp_path)}, images).read(range(1))[1] == []
    write_npz(tmp_path / "42.jpg.npz", IMAGES[1], SIZES[0])
    with pytest.raises(UserError, match="could both be of it; remove one"):
        open_reader("regions", {"format": "npz", "path": str(tmp_path)}, images)
    write_tsv(tmp_path / "f.tsv", [IMAGES[0], IMAGES[0], IMAGES[1]], ["42", "42.jpg", "7"])
    (tmp_path / "f.tsv").write_text(
        "".join(line for line in (tmp_path / "f.tsv").open() if "7\t" not in line[:3]).replace(
            "\t300\t400\t", "\t480\t640\t"
        )
    )
    assert open_reader("regions", {"format": "tsv", "path": str(tmp_path / "f.tsv")}, images).read(range(1))[1] == []
    (tmp_path / "f.tsv").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="f.tsv is a git-lfs pointer"):
        open_reader("regions", {"format": "tsv", "path": str(tmp_path / "f.tsv")}, images)


def test_features_the_other_way_round_are_turned(tmp_path):
    """MCAN's and OpenVQA's `x` is (width, boxes): turned where the boxes say so, and where the other files do."""
    square = regions(3, 16)
    for name, image, size in zip(NAMES, [IMAGES[0], IMAGES[1], square], SIZES, strict=True):
        write_npz(tmp_path / f"{name}.npz", image, size, x=image["features"].T)
    reader, rows, failures = read({"format": "npz", "path": str(tmp_path)}, num_regions=16)
    assert failures == [] and reader.attributes["imported_transposed"] is True
    for row, image in enumerate((IMAGES[0], IMAGES[1], square)):
        assert np.array_equal(rows["features"][row, : len(image["boxes"])], image["features"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.ones((16, 5), "f4")}, "fits 4 boxes in no direction"),
        ({"x": np.ones((2, 4, 16), "f4")}, "instead of .regions, width"),
        ({"x": np.full((4, 16), np.nan, "f4")}, "features holds values that are not finite"),
        ({"x": np.zeros((4, 16), "f4")}, "features are all zero"),
        ({"x": np.full((4, 16), "a")}, "not real numbers"),
        ({"bbox": np.full((4, 4), np.inf, "f4")}, "boxes holds values that are not finite"),
        ({"x": np.ones((12, 16), "f4"), "bbox": np.tile(np.array([550, 440, 80, 35], "f4"), (12, 1)), "num_bbox": 12, "info": {"objects_id": np.arange(12), "objects_conf": np.ones(12)}}, "boxes are x, y, width, height"),
        ({"x": np.ones((12, 16), "f4"), "bbox": np.tile(np.array([600, 440, 80, 60], "f4"), (12, 1)), "num_bbox": 12, "info": {"objects_id": np.arange(12), "objects_conf": np.ones(12)}}, "boxes are centre x, centre y"),
        ({"x": np.full((4, 16), 16256, np.uint16)}, r"features are whole numbers \(uint16\)"),
        ({"x": np.full((4, 16), None)}, "holds Python objects as x or bbox, which are never opened; save arrays of numbers$"),
        ({"bbox": np.tile(np.array([0.1, 0.2, 0.5, 0.9], "f4"), (4, 1))}, "as fractions of the image do"),
        ({"bbox": np.tile(np.array([0, 0, 400, 630], "f4"), (4, 1))}, "are x and y swapped"),
        ({"bbox": np.tile(np.array([-90, 0, 400, 90], "f4"), (4, 1))}, "left of or above the image"),
        ({"bbox": np.zeros((3, 5), "f4")}, "boxes have shape"),
        ({"num_bbox": 9}, "says num_bbox is 9, but holds 4 boxes"),
        ({"num_bbox": 0}, "has no regions"),
        ({"num_bbox": 3.5}, "num_bbox is 3.5, no whole number"),
        ({"num_bbox": np.nan}, "num_bbox is nan, no whole number"),
        ({"x": np.full((4, 16), 1e6, "f4")}, "beyond 65504"),
        ({"info": {"objects_id": np.arange(4), "objects_conf": np.array([3.5, 0, 1, 1])}}, "not 0 to 1"),
        ({"info": {"objects_id": np.arange(4), "objects_conf": np.full(4, np.nan)}}, "not finite"),
        ({"info": {"objects_id": np.arange(4) + 0.5, "objects_conf": np.ones(4)}}, "no class numbers"),
        ({"info": {"objects_id": np.arange(4) * 20000, "objects_conf": np.ones(4)}}, "no class numbers"),
        ({"info": {"objects_id": np.arange(4), "objects_conf": np.ones((4, 9))}}, "scores has shape"),
    ],
    ids=str,
)  # fmt: skip
def test_values_that_cannot_be_are_failures(tmp_path, changes, message):
    plain = {"objects_id": np.arange(6), "objects_conf": np.ones(6)}
    write_npz(tmp_path / "7.npz", IMAGES[1], SIZES[1], info=plain)
    write_npz(tmp_path / "42.npz", IMAGES[0], SIZES[0], **({"info": {k: v[:4] for k, v in plain.items()}} | changes))
    images = ImageRows(["7", "42"], "digest", ["7.jpg", "42.jpg"], [SIZES[1], SIZES[0]])
    _, failures = open_reader("regions", {"format": "npz", "path": str(tmp_path)}, images).read(range(2))
    assert [row for row, _ in failures] == [1] and re.search(message, failures[0][1]), failures


def test_an_array_that_an_archive_holds_twice(tmp_path):
    write_npz(tmp_path / "7.npz", IMAGES[1], SIZES[1])
    for name, content in (("x.npy", b"later"), ("bbox", b"no array")):
        write_npz(tmp_path / "42.npz", IMAGES[0], SIZES[0])
        with zipfile.ZipFile(tmp_path / "42.npz", "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(name, content)
        images = ImageRows(["7", "42"], "digest", ["7.jpg", "42.jpg"], [SIZES[1], SIZES[0]])
        _, failures = open_reader("regions", {"format": "npz", "path": str(tmp_path)}, images).read(range(2))
        assert [row for row, _ in failures] == [1] and "an array is in it twice" in failures[0][1]


def test_boxes_that_are_all_far_from_the_border_are_told(tmp_path):
    """In percent, or of the image as it was scaled down: each image could be so, all of them hardly."""
    names = [str(number) for number in range(3)]
    images = ImageRows(names, "digest", [f"{name}.jpg" for name in names], [(480, 640)] * 3)
    for scale, told in ((1, False), (0.5, True)):
        for name in names:
            boxes = np.tile(np.array([10, 20, 640, 470], "f4"), (12, 1)) * scale
            np.savez(tmp_path / f"{name}.npz", x=np.full((12, 16), 1 + int(name), "f4"), bbox=boxes)
        reader = open_reader("regions", {"format": "npz", "path": str(tmp_path)}, images)
        assert bool(reader.notes) == told
    assert reader.notes[0].startswith(f"boxes of 3 images in {tmp_path} get 50% across them at most: of images that")


def test_features_that_were_written_for_several_images_are_noted(tmp_path):
    for name, image, size in zip(NAMES, [IMAGES[0], IMAGES[1], IMAGES[0]], SIZES, strict=True):
        write_npz(tmp_path / f"{name}.npz", image, size)
    (note,) = read({"format": "npz", "path": str(tmp_path)})[0].notes
    assert note == f"'42' and 'photos/x' have the very same features in {tmp_path}; are they the same picture?"


def test_boxes_may_end_a_pixel_beyond_the_image_and_lie_on_their_side(tmp_path):
    boxes = np.tile(np.array([-0.5, 0, 641, 481], "f4"), (4, 1))
    boxes[0] = [1, 2, 3, 4.5]
    write_npz(
        tmp_path / "42.npz",
        IMAGES[0],
        SIZES[0],
        bbox=boxes.T[:, :3],
        x=IMAGES[0]["features"][None, :3],
        num_bbox=3,
        info={},
    )
    images = ImageRows(["42"], "digest", ["42.jpg"], SIZES[:1])
    source = {"format": "npz", "path": str(tmp_path)}
    rows, failures = open_reader("regions", source, images).read(range(1))
    assert failures == [] and np.array_equal(rows["boxes"][0, :3], boxes[:3])
    write_npz(tmp_path / "42.npz", IMAGES[0], SIZES[0], bbox=np.zeros((4, 4), "f4"))
    assert open_reader("regions", source, images).read(range(1))[1] == []


def test_numbers_of_a_tsv_have_the_width_that_they_have(tmp_path):
    wide = [{k: v.astype({"f": "f8", "i": "i4"}[v.dtype.kind]) for k, v in image.items()} for image in IMAGES]
    write_tsv(tmp_path / "wide.tsv", wide, NAMES)
    _, rows, failures = read({"format": "tsv", "path": str(tmp_path / "wide.tsv")})
    assert failures == [] and rows["features"].shape[2] == 16
    assert np.array_equal(rows["class_ids"][0, :4], IMAGES[0]["class_ids"])
    assert np.array_equal(rows["boxes"][1, :6], IMAGES[1]["boxes"])


@pytest.mark.parametrize(("own", "boxes"), [("f2", "f4"), ("f4", "f8"), ("f8", "f4")])
def test_features_of_another_precision_than_their_boxes(tmp_path, own, boxes):
    """Two halves are a number as well: of another size in every row."""
    images = [
        image | {"features": image["features"].astype(own), "boxes": image["boxes"].astype(boxes)} for image in IMAGES
    ]
    write_tsv(tmp_path / "mixed.tsv", images, NAMES)
    with pytest.raises(UserError, match="features are no float.*; write both in one precision"):
        read({"format": "tsv", "path": str(tmp_path / "mixed.tsv")})


def test_grids_with_channels_last_are_turned_and_impossible_ones_refused(tmp_path):
    first = torch.randn(256, 3, 5)
    torch.save(first.permute(1, 2, 0)[None].contiguous(), tmp_path / "42.pth")
    torch.save(torch.full((1, 256, 3, 5), float("nan")), tmp_path / "7.pth")
    torch.save(torch.zeros(1, 256, 3, 5), tmp_path / "x.pth")
    _, rows, failures = read({"format": "pth", "path": str(tmp_path)}, feature="grids", grid="native", max_cells=20)
    assert np.array_equal(rows["features"][0, :15], first.flatten(1).T.numpy().astype(np.float16))
    assert [row for row, _ in failures] == [1, 2] and "not finite" in failures[0][1] and "all zero" in failures[1][1]


def test_grid_files_are_pooled_as_our_own_grids(tmp_path):
    maps = [torch.randn(1, 8, 19, 25), torch.randn(1, 8, 3, 4), torch.randn(8, 7, 7)]
    for name, content in zip(NAMES, maps, strict=True):
        torch.save(content, tmp_path / f"{name}.pth")
    source = {"format": "pth", "path": str(tmp_path)}
    _, rows, failures = read(source, feature="grids", grid=7)
    assert failures == [] and rows["features"].shape == (3, 49, 8)
    assert np.array_equal(rows["features"][2], maps[2].flatten(1).T.numpy().astype(np.float16))
    cell = maps[0][0, :, :3, :4].mean((1, 2)).numpy()  # rows 0..ceil(19/7), columns 0..ceil(25/7)
    assert np.allclose(rows["features"][0, 0], cell, atol=1e-3)

    _, rows, _ = read(source, feature="grids", grid="native", max_cells=100)
    assert rows["counts"].tolist() == [8 * 11, 12, 49]
    assert rows["grid_shapes"].tolist() == [[8, 11], [3, 4], [7, 7]]
    assert np.array_equal(rows["features"][1, :12], maps[1][0].flatten(1).T.numpy().astype(np.float16))
    assert (rows["features"][1, 12:] == 0).all()


def test_what_cannot_be_imported_at_all(tmp_path):
    with pytest.raises(
        UserError, match="regions cannot be imported from format 'pth'; choose scan or npz or tsv or npy"
    ):
        read({"format": "pth", "path": str(tmp_path)})
    for kind, feature in (("npz", "regions"), ("pth", "grids")):
        with pytest.raises(UserError, match=rf"no usable \.{kind} file"):
            read({"format": kind, "path": str(tmp_path)}, feature=feature)
        with pytest.raises(UserError, match="is not a folder"):
            read({"format": kind, "path": str(tmp_path / "no")}, feature=feature)
    with pytest.raises(UserError, match="cannot be read"):
        read({"format": "tsv", "path": str(tmp_path / "no")})
    with pytest.raises(UserError, match="--source of format npz.*colour"):
        read({"format": "npz", "path": str(tmp_path), "colour": 1})


def test_one_odd_file_does_not_decide_for_all(tmp_path):
    """The first is of another network, or has what the others lack: it is the one that is refused."""
    for name, image, size in zip(NAMES, IMAGES, SIZES, strict=True):
        write_npz(tmp_path / f"{name}.npz", image, size, info={})
    for odd in ({"x": np.ones((4, 8), "f4"), "info": {}}, {"num_bbox": np.array([4])}):
        write_npz(tmp_path / f"{NAMES[0]}.npz", IMAGES[0], SIZES[0], **odd)
        _, rows, failures = read({"format": "npz", "path": str(tmp_path)})
        assert rows["counts"].tolist() == [0 if "x" in odd else 4, 6, 1] and len(failures) == ("x" in odd)


def test_files_that_nothing_can_be_made_of(tmp_path):
    for name, image, size in zip(NAMES, IMAGES, SIZES, strict=True):
        write_npz(
            tmp_path / f"{name}.npz",
            image,
            size,
            bbox=image["boxes"] / 1000,
            image_h=size[0] or 90,
            image_w=size[1] or 90,
        )
    os.symlink(tmp_path / "nowhere", tmp_path / "link.npz")
    with pytest.raises(
        UserError, match=r"no usable \.npz file for any image of the index; '42': boxes reach .* as fractions"
    ):
        read({"format": "npz", "path": str(tmp_path)})
    np.savez(tmp_path / f"{NAMES[0]}.npz", features=IMAGES[0]["features"])
    with pytest.raises(UserError, match="no x and no bbox in it, only features"):
        read({"format": "npz", "path": str(tmp_path)})


def test_lines_as_programs_leave_them(tmp_path):
    """A byte order mark, Python 3's `b'...'` around base64, files without sizes."""
    write_tsv(tmp_path / "f.tsv", IMAGES, NAMES)
    lines = [line.split("\t") for line in (tmp_path / "f.tsv").read_text().splitlines()]
    text = "\n".join("\t".join(c if k in (0, 1, 2, 7) else f"b'{c}'" for k, c in enumerate(cells)) for cells in lines)
    (tmp_path / "f.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read({"format": "tsv", "path": str(tmp_path / "f.tsv")})[1]["counts"].tolist() == COUNTS
    (tmp_path / "f.tsv").write_bytes(b"")
    with pytest.raises(UserError, match="has no lines"):
        read({"format": "tsv", "path": str(tmp_path / "f.tsv")})
    for name, image in zip(NAMES, IMAGES, strict=True):
        np.savez(tmp_path / f"{name}.npz", x=image["features"], bbox=image["boxes"])
    assert read({"format": "npz", "path": str(tmp_path)})[1]["counts"].tolist() == COUNTS


def test_grids_the_other_way_round(tmp_path):
    first = torch.randn(300, 7, 7)
    np.save(tmp_path / "42.npy", first.flatten(1).numpy())
    np.save(tmp_path / "7.npy", first.flatten(1).T.numpy())
    torch.save(first.requires_grad_(), tmp_path / "42.pth")
    torch.save(first.detach().to_sparse(), tmp_path / "7.pth")
    _, rows, failures = read({"format": "npy", "path": str(tmp_path)}, feature="grids")
    assert np.array_equal(rows["features"][0], rows["features"][1]) and [row for row, _ in failures] == [2]
    _, also, failures = read({"format": "pth", "path": str(tmp_path)}, feature="grids")
    assert np.array_equal(also["features"][0], rows["features"][0])
    assert "7.pth holds torch.float32 (1, 300, 7, 7)".replace("(1, ", "(") in failures[0][1]
