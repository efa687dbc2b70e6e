"""A picture that both training and test have is told of, and can be kept in one split."""

import json
import shutil

import pytest
from PIL import Image

from catalog.index import read_index
from catalog.run import main
from core.console import UserError
from core.machine import IMAGES_ALONE


def indexed(tmp_path, capsys, *flags, **setting):
    images = tmp_path / "images"
    if not images.exists():
        images.mkdir()
        for k, name in enumerate(("a", "b", "c", "d")):
            Image.new("RGB", (8, 6), (40 * k, 0, 0)).save(images / f"{name}.png")
        shutil.copy(images / "a.png", images / "z.png")  # of another split
        shutil.copy(images / "b.png", images / "b2.png")  # of the same
        rows = {"a": "train", "b": "train", "b2": "train", "c": "test", "d": "val", "z": "test"}
        lines = [f"{name},text {name},{split}" for name, split in rows.items()]
        (tmp_path / "captions.csv").write_text("\n".join(["image,caption,split", *lines]))
    settings = {"source": "folder", "images": str(images), "captions": str(tmp_path / "captions.csv")} | setting
    paths = [str(tmp_path / f"index/{name}.parquet") for name in ("images", "captions")]
    main(
        [
            "index",
            "--dataset",
            "t",
            "--settings",
            json.dumps(settings),
            "--images",
            paths[0],
            "--captions",
            paths[1],
            *flags,
        ]
    )
    index = read_index(tmp_path / "index")
    splits = dict(zip(index.images["image_id"].to_pylist(), index.images["split"].to_pylist(), strict=True))
    return splits, index.notes, capsys.readouterr().out


@pytest.mark.parametrize("choice", ["keep", "one_split"])
def test_copies_between_splits(tmp_path, capsys, choice):
    splits, notes, printed = indexed(tmp_path, capsys, copies=choice)
    (note,) = notes
    assert "1 pictures are in several splits" in note and "a (train) = z (test)" in note and note in printed
    assert splits["z"] == ("train" if choice == "one_split" else "test")
    assert ("copies: one_split" in note) == (choice == "keep")
    assert {name: split for name, split in splits.items() if name != "z"} == {
        "a": "train",
        "b": "train",
        "b2": "train",
        "c": "test",
        "d": "val",
    }


def test_no_copies_no_note(tmp_path, capsys):
    indexed(tmp_path, capsys)
    (tmp_path / "images" / "z.png").write_bytes((tmp_path / "images" / "c.png").read_bytes())
    assert indexed(tmp_path, capsys)[1] == ()


def test_of_many_copies_a_few_are_named(tmp_path, capsys):
    indexed(tmp_path, capsys)
    for k in range(40):
        shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / f"gone{k}.png")
    with open(tmp_path / "captions.csv", "a") as file:
        file.writelines(f"\ngone{k},text {k},test" for k in range(40))
    (note,) = indexed(tmp_path, capsys)[1]
    assert "a (train) = gone0 (test)" in note and "and 37 more" in note and len(note) < 300


def test_a_split_of_copies_alone_is_not_given_away(tmp_path, capsys):
    indexed(tmp_path, capsys)
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "c.png")
    with pytest.raises(UserError, match=r"datasets.t.copies: one_split leaves no image in test: .* copies: keep"):
        indexed(tmp_path, capsys, copies="one_split")


def test_a_split_that_nothing_is_left_of_is_noted(tmp_path, capsys):
    indexed(tmp_path, capsys)
    (tmp_path / "images" / "d.png").unlink()
    _, notes, printed = indexed(tmp_path, capsys, missing_images="drop", copies="one_split")
    assert "no images of split val" in notes and "note: no images of split val" in printed


def test_a_split_that_somebody_reads_must_not_be_empty(tmp_path, capsys, monkeypatch):
    indexed(tmp_path, capsys, "--needed", "train", "val")
    (tmp_path / "images" / "d.png").unlink()
    with pytest.raises(
        UserError, match=r"datasets.t: no image is left of split val, which runs .*\n  1 captions left out.*'d'"
    ):
        indexed(tmp_path, capsys, "--needed", "train", "val", missing_images="drop")
    assert "no images of split val" in indexed(tmp_path, capsys, "--needed", "train", missing_images="drop")[1]
    drawn = {"captions": None, "splits": {"train": 1.0, "val": 1e-9}}
    with pytest.raises(
        UserError, match="no image is left of split val, .*: of 5 images; give it a larger share, or more images"
    ):
        indexed(tmp_path, capsys, "--needed", "val", **drawn)
    monkeypatch.setenv(IMAGES_ALONE, "yes")  # for features alone no split is read
    assert "no images of split val" in indexed(tmp_path, capsys, "--needed", "val", missing_images="drop")[1]
