"""Karpathy's split files: what is read, and that everything wrong is listed at once."""

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from catalog.karpathy import read_karpathy
from catalog.settings import KarpathyDataset
from core.console import UserError


def entry(number, split="train", captions=5, **extra):
    return {
        "filename": f"COCO_val2014_{number:012d}.jpg",
        "filepath": "val2014",
        "imgid": number,
        "cocoid": 1000 + number,
        "split": split,
        "sentids": [10 * number + k for k in range(captions)],
        "sentences": [
            {"raw": f" Caption {k}  of {number}.\n", "tokens": ["caption"], "imgid": number, "sentid": 10 * number + k}
            for k in range(captions)
        ],
    } | extra


@pytest.fixture
def coco(tmp_path):
    """(write, images): `write(entries)` gives the path of a JSON; images 0 to 3 exist."""
    folder = tmp_path / "images" / "val2014"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (4, 3)).save(folder / f"COCO_val2014_{number:012d}.jpg")

    def write(entries):
        path = tmp_path / "dataset_coco.json"
        path.write_text(json.dumps({"images": entries, "dataset": "coco"}))
        return str(path)

    return write, tmp_path / "images"


def test_coco(coco):
    write, images = coco
    path = write([entry(0), entry(1, "restval", 7), entry(2, "val"), entry(3, "test")])
    found = read_karpathy(path, str(images))
    assert found.image_ids == ["1000", "1001", "1002", "1003"]
    assert found.splits == ["train", "train", "val", "test"], "restval joins train"
    assert found.paths[1] == str(images / "val2014" / "COCO_val2014_000000000001.jpg")
    assert found.caption_ids == [str(10 * n + k) for n in range(4) for k in range(5)], "the first five"
    assert found.caption_images == [i for i in found.image_ids for _ in range(5)]
    assert found.texts[6] == "Caption 1 of 1."


def test_going_on_without_what_is_missing(coco):
    write, images = coco
    path = write([entry(0), entry(1, captions=0), entry(9)])
    with pytest.raises(UserError, match=r"missing_images: drop\): 'val2014/COCO_val2014_000000000009.jpg'"):
        read_karpathy(path, str(images))
    kept = read_karpathy(path, str(images), missing_images="drop", missing_captions="keep")
    assert (kept.image_ids, kept.splits) == (["1000", "1001"], ["train", "unlisted"])
    left = read_karpathy(path, str(images), missing_images="drop", missing_captions="drop")
    assert left.image_ids == ["1000"] and len(left.notes) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"filename": 1.10}, "its filename is a number; write text"), ({"sentences": [{"sentid": "\ud800", "raw": "x"}]}, "half a character")],
)  # fmt: skip
def test_entries_that_no_file_can_hold_or_name(coco, change, message):
    write, images = coco
    with pytest.raises(UserError, match=f"1 entries without filename.*{message}"):
        read_karpathy(write([entry(0), entry(1, **change)]), str(images))


def test_captions_beyond_five_are_told(coco):
    write, images = coco
    found = read_karpathy(write([entry(0, captions=7), entry(1), entry(2, captions=6)]), str(images))
    assert found.notes == ["3 captions of 2 images left out: the first 5 of an image count, as the field does"]


def test_two_entries_of_one_file(coco):
    write, images = coco
    other = entry(1, filename="else/COCO_val2014_000000000000.jpg", filepath="")
    with pytest.raises(UserError, match=r"1 files that several entries name \(keep one entry of each\): '.*000.jpg'"):
        read_karpathy(write([entry(0), other]), str(images))


def test_numbers_of_coco_as_floats_or_nothing(coco):
    write, images = coco
    found = read_karpathy(write([entry(0, cocoid=7.0), entry(1, cocoid=None)]), str(images))
    assert found.image_ids == ["7", "COCO_val2014_000000000001"]


def test_the_pictures_under_the_names_of_coco_2017(coco, tmp_path):
    """COCO 2017 holds COCO 2014's pictures as `train2017/000000001000.jpg`, in other folders than Karpathy's file says."""
    write, _ = coco
    for place, number in (("train2017", 1000), ("val2017", 1001)):
        (tmp_path / "2017" / place).mkdir(parents=True)
        Image.new("RGB", (4, 3)).save(tmp_path / "2017" / place / f"{number:012d}.jpg")
    found = read_karpathy(write([entry(0), entry(1)]), str(tmp_path / "2017"))
    assert [path.rpartition("2017/")[2] for path in found.paths] == ["000000001000.jpg", "000000001001.jpg"]
    assert found.notes == ["2 images found by their COCO number, under the names of COCO 2017"]
    with pytest.raises(UserError, match="1 files that are not in"):
        read_karpathy(write([entry(0), entry(1), entry(2)]), str(tmp_path / "2017"))


def test_pictures_in_another_folder_or_of_another_type(coco, tmp_path):
    write, _ = coco
    for name in ("all/COCO_val2014_000000000000.JPG", "all/COCO_val2014_000000000001.png", "all/1002.webp"):
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / "other" / name)
    found = read_karpathy(write([entry(0), entry(1), entry(2)]), str(tmp_path / "other"))
    assert [path.rpartition("all/")[2] for path in found.paths] == [
        "COCO_val2014_000000000000.JPG",
        "COCO_val2014_000000000001.png",
        "1002.webp",
    ]
    assert found.notes[0] == "2 images found by their name alone, in another folder or with another suffix"
    (tmp_path / "other/more").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "other/more/COCO_val2014_000000000000.jpg")  # which of the two?
    with pytest.raises(UserError, match="1 files that are not in"):
        read_karpathy(write([entry(0)]), str(tmp_path / "other"))


def test_a_key_that_stands_twice(coco):
    write, images = coco
    path = write([entry(0)])
    text = open(path).read()
    with open(path, "w") as file:
        file.write(text.replace('"split": ', '"split": "val", "split": ', 1))
    with pytest.raises(UserError, match="the key 'split' stands twice in an object"):
        read_karpathy(path, str(images))


def test_annotations_in_another_encoding(coco, tmp_path):
    write, images = coco
    path = write([entry(0)])
    text = (tmp_path / "dataset_coco.json").read_text().replace("Caption 0", "caf\xe9 ’")
    (tmp_path / "dataset_coco.json").write_bytes(text.encode("cp1252"))
    with pytest.raises(UserError, match=r"dataset_coco\.json, line 1: .* is not UTF-8; .*iconv -f cp1252"):
        read_karpathy(path, str(images))
    (tmp_path / "dataset_coco.json").write_bytes(text.encode("utf-16"))
    assert read_karpathy(path, str(images)).texts[0].startswith("café ’")


def test_some_splits_only(coco):
    """Files of the others need not be there."""
    write, images = coco
    path = write([entry(0), entry(1, "restval"), entry(9, "val"), entry(3, "test")])
    assert read_karpathy(path, str(images), splits=["train", "test"]).image_ids == ["1000", "1001", "1003"]
    path = write([entry(0)])
    with pytest.raises(UserError, match="have no images of split val; correct splits"):
        read_karpathy(path, str(images), splits=["train", "val"])
    # All splits: those that there are. What names another is known before any job.
    dataset = KarpathyDataset(source="karpathy", annotations=path, images=str(images))
    assert (dataset.read(None, 1).notes, dataset.known_splits()) == (["no images of split test, val"], {"train"})


def test_a_folder_without_the_subfolders_of_coco(coco):
    write, images = coco
    assert read_karpathy(write([entry(2)]), str(images / "val2014")).paths == [
        str(images / "val2014" / "COCO_val2014_000000000002.jpg")
    ]


def test_flickr_is_flat_and_named_by_its_files(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "36979.jpg")
    item = entry(0, "test") | {"filename": "36979.jpg"}
    del item["cocoid"], item["filepath"]
    (tmp_path / "flickr.json").write_text(json.dumps({"images": [item]}))
    found = read_karpathy(str(tmp_path / "flickr.json"), str(tmp_path))
    assert (found.image_ids, found.paths) == (["36979"], [str(tmp_path / "36979.jpg")])


def test_the_json_in_its_zip(coco, tmp_path):
    write, images = coco
    path = write([entry(0)])
    archive = str(tmp_path / "caption_datasets.zip")
    with zipfile.ZipFile(archive, "w") as file:
        file.write(path, "dataset_coco.json")
        file.writestr("__MACOSX/._dataset_coco.json", "x")
    assert read_karpathy(archive, str(images)).image_ids == ["1000"]
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("dataset_flickr30k.json", "{}")
    with pytest.raises(UserError, match=r"holds dataset_coco.json, dataset_flickr30k.json; name one of them"):
        read_karpathy(archive, str(images))
    assert read_karpathy(archive, str(images), "dataset_coco.json").image_ids == ["1000"]
    with zipfile.ZipFile(archive, "w") as file:  # as `tar` and some tools pack the folder that they are in
        file.writestr("./dataset_coco.json", Path(path).read_text())
        file.writestr("./__MACOSX/dataset_flickr30k.json", "x")
        file.writestr("./.cache/dataset_flickr30k.json", "x")
    assert read_karpathy(archive, str(images)).image_ids == ["1000"]


def test_everything_wrong_is_listed_at_once(coco):
    write, images = coco
    stranger = entry(3)
    stranger["sentences"][0]["imgid"] = 77
    blank = entry(1)
    blank["sentences"][1]["raw"] = "  "
    broken = entry(0)
    del broken["split"]
    entries = [entry(0), entry(0), blank, entry(2, captions=0), stranger, broken, entry(3, "dev", cocoid=9)]
    entries += [entry(n) for n in range(10, 17)]
    entries.append(entry(20, filename="../../../etc/passwd"))
    with pytest.raises(UserError) as error:
        read_karpathy(write(entries), str(images))
    lines = str(error.value).splitlines()[1:]
    for expected in (
        "1 image ids that occur twice",
        "1 entries without filename, split, sentences, sentid or raw: \"entry 5 (KeyError: 'split')\"",
        "8 files that are not in ",
        "1 unknown splits (known are train, restval, val, test): 'dev (COCO_val2014_000000000003.jpg)'",
        "1 images without a caption (missing_captions: keep or drop goes on): 'COCO_val2014_000000000002.jpg'",
        "1 captions without an image: their imgid is another's: '30'",
        "1 captions that are empty or no text (missing_captions: keep or drop goes on without them): '11'",
        "10 caption ids that occur twice: '0', '1', '2', '3', '4', ...",
        "1 files that several entries name (keep one entry of each): ",
    ):
        assert sum(line.strip().startswith(expected) for line in lines) == 1, (expected, lines)
    assert len(lines) == 9
    missing = next(line for line in lines if "files that are not in" in line)
    assert "'val2014/COCO_val2014_000000000010.jpg'" in missing and missing.endswith(", ...")


def test_files_of_another_kind(coco, tmp_path):
    write, images = coco
    with pytest.raises(UserError, match="no list `images`"):
        read_karpathy(write([]), str(images))
    (tmp_path / "x.json").write_text('{"images": [')
    with pytest.raises(UserError, match="x.json cannot be read"):
        read_karpathy(str(tmp_path / "x.json"), str(images))
    with pytest.raises(UserError, match="nothing.json do not exist"):
        read_karpathy(str(tmp_path / "nothing.json"), str(images))
    with pytest.raises(UserError, match="image folder 'nowhere' does not exist"):
        read_karpathy(write([entry(0)]), "nowhere")


def test_the_benchmarks_dataset_is_indexed(tmp_path):
    from benchmarks.index import make_dataset
    from catalog.index import describe_images

    annotations, images = make_dataset(tmp_path, 100)
    found = read_karpathy(str(annotations), str(images))
    table = describe_images(found.image_ids, found.paths, found.splits, workers=2)
    assert table["width"].to_pylist() == [32] * 100 and table["error"].null_count == 100
    assert len(set(table["content_hash"].to_pylist())) == 16
