"""One setting says how many captions of an image count, in the index, in training and in evaluation; the rest is counted."""

import json

import pytest
from PIL import Image

from catalog.index import read_index
from catalog.run import main
from core.console import UserError
from model.data import read_split
from settings import ALL_CAPTIONS, load_settings


@pytest.fixture
def folder(tmp_path):
    """Images with 9 and 2 captions."""
    rows = [(name, f"{name} {k}") for name, count in (("a", 9), ("b", 2)) for k in range(count)]
    for name in ("a", "b"):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "captions.csv").write_text("image,caption,split\n" + "".join(f"{n},{t},test\n" for n, t in rows))
    return {"source": "folder", "images": str(tmp_path / "images"), "captions": str(tmp_path / "captions.csv")}


@pytest.mark.parametrize(("setting", "count", "note"), [({}, 7, "4 captions of 1 images left out: the first 5"), ({"captions_per_image": 8}, 10, "1 captions"), ({"captions_per_image": None}, 11, None), ({"captions_per_image": 1}, 2, "9 captions of 2 images")])  # fmt: skip
def test_the_index_holds_what_counts_and_says_what_does_not(folder, tmp_path, capsys, setting, count, note):
    paths = [tmp_path / "index" / f"{name}.parquet" for name in ("images", "captions")]
    main(
        [
            "index",
            "--dataset",
            "t",
            "--settings",
            json.dumps(folder | setting),
            "--images",
            str(paths[0]),
            "--captions",
            str(paths[1]),
        ]
    )
    found = read_split(*paths, "test")
    assert len(found.captions) == count and found.captions[0] == "a 0" and found.captions[-1].startswith("b")
    notes = read_index(tmp_path / "index").notes
    printed = capsys.readouterr().out
    assert len(notes) == (note is not None)
    assert note is None or (note in notes[0] and note in printed)


def test_training_takes_what_the_dataset_has_unless_it_says_otherwise(folder):
    def trained(setting, **training):
        run = {"dataset": "t", "visual": "regions", "train_split": "test", "val_split": None}
        run |= {"training": {"batch_size": 2} | training}
        config = {"datasets": {"t": folder | setting}, "runs": {"r": run | {"text": {"pretrained": None}}}}
        return load_settings(config).runs["r"].training.captions_per_image

    assert trained({}) == 5 and trained({"captions_per_image": 8}) == 8
    assert trained({"captions_per_image": 3}) == 3 and trained({"captions_per_image": None}) == ALL_CAPTIONS
    assert trained({"captions_per_image": 8}, captions_per_image=2) == 2


def test_a_split_that_the_captions_do_not_have_is_a_mistake(folder, tmp_path):
    def mistakes(**sections):
        with pytest.raises(UserError) as error:
            load_settings({"datasets": {"t": folder}} | sections)
        return str(error.value)

    assert "testsets.x.split: dataset 't' has no split 'val' (it has test)" in mistakes(
        testsets={"x": {"dataset": "t", "split": "val"}}
    )
    run = {"dataset": "t", "visual": "regions", "train_split": "test", "text": {"pretrained": None}}
    assert "runs.r.val_split: dataset 't' has no split 'val' (it has test)" in mistakes(runs={"r": run})
    # Rows without a split get one by the fractions, or "all".
    with open(folder["captions"], "a") as file:
        file.write("b,b 3,\n")
    assert "(it has all, test)" in mistakes(testsets={"x": {"dataset": "t", "split": "val"}})
    folder["splits"] = {"train": 0.5, "val": 0.5}
    load_settings({"datasets": {"t": folder}, "runs": {"r": run}})
    folder["splits"] = {"train": 0.8, "val": 0.4}
    assert "datasets.t.splits: they add up to 1.2" in mistakes()
