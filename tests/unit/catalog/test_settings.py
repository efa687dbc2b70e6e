"""Dataset sections answer for themselves: to the rules, to the checks and to the command that makes the index."""

import json
from typing import Annotated, Literal, Union

import pytest
from pydantic import Field, ValidationError

from catalog.annotations import Annotations
from catalog.settings import Dataset, DatasetSection, FolderDataset, KarpathyDataset, ScenesDataset
from core.features import FEATURES
from core.messages import validated

IMPORTS = {"regions": {"format": "tsv", "path": "boxes.tsv"}, "grids": {"format": "pth", "path": "cells"}}


def section(**content) -> DatasetSection:
    return validated(Dataset, content, place="dataset")


@pytest.mark.parametrize(
    ("content", "splits", "captions", "extracted", "imported"),
    [
        ({"source": "scenes", "splits": {"train": 3}}, {"train"}, True, FEATURES, ()),
        ({"source": "folder", "images": "i"}, None, False, FEATURES, ()),
        ({"source": "folder", "images": "i", "split_files": {"a": "a.txt"}}, {"a"}, False, FEATURES, ()),
        ({"source": "folder", "images": "i", "captions": "c.csv", "splits": {"a": 1.0}}, None, True, FEATURES, ()),
        ({"source": "karpathy", "images": "i", "annotations": "a", "imports": IMPORTS}, {"train", "val", "test"}, True, ("panoptic",), ("regions", "grids")),
        ({"source": "precomputed", "folder": "f", "splits": {"val": "dev"}}, {"val"}, True, (), ("regions", "panoptic")),
    ],
)  # fmt: skip
def test_what_a_dataset_has(content, splits, captions, extracted, imported):
    dataset = section(**content)
    assert dataset.known_splits() == splits
    assert dataset.has_captions is captions
    assert (dataset.extracted(), dataset.imported()) == (extracted, imported)


@pytest.mark.parametrize(
    ("content", "makes", "sources", "flags"),
    [
        ({"source": "scenes", "splits": {"train": 3}}, "scenes", ["MADE"], ["--annotations", "MADE"]),
        ({"source": "folder", "images": "i", "captions": "c.csv", "split_files": {"a": "a.txt"}}, None, ["c.csv", "a.txt"], []),
        ({"source": "folder", "images": "i.ZIP", "captions": "c.csv"}, "images", ["c.csv", "MADE"], ["--unpacked", "MADE"]),
        ({"source": "karpathy", "images": "i", "annotations": "a.json"}, None, ["a.json"], []),
    ],
)  # fmt: skip
def test_what_an_index_is_made_from(content, makes, sources, flags):
    dataset = section(**content)
    assert (dataset.makes, dataset.sources("MADE"), dataset.index_flags("MADE")) == (makes, sources, flags)
    assert dataset.archive == ("i.ZIP" if makes == "images" else None)


def test_files_of_precomputed_features(tmp_path):
    for name in ("dev_ids.txt", "dev_boxes.npy"):
        (tmp_path / name).touch()
    dataset = section(source="precomputed", folder=str(tmp_path), splits={"val": "dev", "test": "testall"})
    arrays = [f"{tmp_path}/{prefix}_ims.npy" for prefix in ("dev", "testall")] + [f"{tmp_path}/dev_boxes.npy"]
    assert dataset.feature_files("regions") == arrays
    assert len(dataset.feature_files("panoptic")) == 6
    texts = [f"{tmp_path}/dev_caps.txt", f"{tmp_path}/testall_caps.txt", f"{tmp_path}/dev_ids.txt"]
    assert dataset.sources("") == [*texts, *arrays, *dataset.feature_files("panoptic")]
    assert json.loads(dataset.import_source("regions"))["format"] == "scan"


def test_files_of_other_programs():
    dataset = section(source="folder", images="i", imports=IMPORTS)
    assert dataset.feature_files("grids") == ["cells"]
    assert json.loads(dataset.import_source("regions")) == {
        "format": "tsv",
        "path": "boxes.tsv",
        "num_regions": 36,
        "provenance": "unknown",
    }


def test_an_index_of_version_0_1_is_not_made_again():
    """Letter for letter what that version handed to the command: another parameter would be another index."""
    assert section(source="scenes", splits={"train": 3, "a": 1}, shards=4).index_settings() == (
        '{"seed": 1, "source": "scenes", "splits": {"a": 1, "train": 3}, "style": "day"}'
    )
    assert section(source="folder", images="ü", splits={"a": 0.1}, imports=IMPORTS).index_settings() == (
        '{"captions": null, "images": "\\u00fc", "seed": 0, "source": "folder", "split_files": null, "splits": {"a": 0.1}}'
    )
    assert section(source="karpathy", images="i", annotations="a", splits=["val"]).index_settings() == (
        '{"annotations": "a", "images": "i", "member": null, "source": "karpathy", "splits": ["val"]}'
    )
    assert section(source="precomputed", folder="f", splits={"a": "b"}, provenance="x").index_settings() == (
        '{"features": ["regions", "panoptic"], "folder": "f", "source": "precomputed", "splits": {"a": "b"}}'
    )


def test_keys_that_are_younger_count_where_they_are_used():
    assert '"missing_images": "drop"' in section(source="folder", images="i", missing_images="drop").index_settings()


def test_the_state_of_images_is_that_of_the_folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    folder = FolderDataset(source="folder", images=str(tmp_path))
    karpathy = KarpathyDataset(source="karpathy", images=str(tmp_path), annotations="a")
    for name in ("b.jpg", "a.jpg"):  # added, replaced
        before = [folder.state(), karpathy.state()]
        (tmp_path / name).write_bytes(b"2")
        assert before[0] != folder.state() == karpathy.state() != before[1]
    # A zip is an input as it is.
    assert FolderDataset(source="folder", images=f"{tmp_path}.zip").state() == ""


def test_how_a_path_is_spelled_is_no_other_setting():
    spelled = ("photos", "photos/", "./photos", ".//photos/.")
    assert len({FolderDataset(source="folder", images=path).index_settings() for path in spelled}) == 1
    for path in ("/", ".", "/data/photos", "../photos", "a/../photos", "s3://bucket/photos"):
        assert FolderDataset(source="folder", images=path).images == path
    assert FolderDataset(source="folder", images="./").images == "."


def test_captions_that_can_be_counted_in_a_moment(tmp_path):
    """Batches of more pairs than there are must be known before any job."""
    (tmp_path / "c.csv").write_text("image,caption,split\n" + "a.jpg,x,train\n" * 3 + "b.jpg,x,val\n")
    folder = section(source="folder", images="i", captions=str(tmp_path / "c.csv"))
    assert [folder.captions_in(split) for split in ("train", "val", "test")] == [3, 1, 0]
    (tmp_path / "c.csv").write_text("image,caption,split\na.jpg,x,train\na.jpg,x,\n")
    assert section(source="folder", images="i", captions=str(tmp_path / "c.csv")).captions_in("train") is None
    assert section(source="folder", images="i").captions_in("all") is None
    (tmp_path / "dev_caps.txt").write_text("x\n" * 9 + "x")
    precomputed = section(source="precomputed", folder=str(tmp_path), splits={"val": "dev", "test": "test"})
    assert (
        precomputed.captions_in("val") == 10
        and precomputed.captions_in("test") is None
        and precomputed.captions_in("x") is None
    )


def test_a_seed_counts_where_something_is_drawn():
    for splits, counts in ((None, False), ({"a": 0.5}, True)):
        one, other = (
            section(source="folder", images="i", splits=splits, seed=seed).index_settings() for seed in (0, 1)
        )
        assert (one != other) is counts


def test_two_kinds_of_splits_exclude_each_other():
    with pytest.raises(ValidationError, match="exclude each other"):
        FolderDataset(source="folder", images="i", splits={"a": 1.0}, split_files={"a": "a.txt"})


def test_a_format_of_ones_own_is_one_section():
    """What a new format must answer; all else has answers that fit images whose features are extracted."""

    class Lines(DatasetSection):
        source: Literal["lines"]
        file: str

        def known_splits(self):
            return {"all"}

        def sources(self, made):
            return [self.file]

        def read(self, made, threads):
            return Annotations(["a"], [self.file], ["all"], ["0"], ["a"], ["A line."])

    either = Annotated[Union[ScenesDataset, Lines], Field(discriminator="source")]
    dataset = validated(either, {"source": "lines", "file": "x.txt"}, place="dataset")
    assert dataset.index_settings() == '{"file": "x.txt", "source": "lines"}'
    assert (dataset.extracted(), dataset.imported(), list(dataset.missing())) == (FEATURES, (), [])
    assert dataset.read(None, 1).captions().to_pylist() == [{"caption_id": "0", "image_id": "a", "text": "A line."}]
