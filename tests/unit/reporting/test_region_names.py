"""Names of a detector's classes out of a user's file."""

import pytest
import zarr

from core.console import UserError
from reporting.artefacts import Artefacts
from reporting.painted import SIDE, overlay
from reporting.report import build
from rules.plan import Plan
from settings import load_settings
from stores.class_names import class_names, read_names


def test_names_are_lines_the_first_of_several(tmp_path):
    (tmp_path / "objects.txt").write_bytes("yolk\r\ngoal,goals\r\n\r\ncafé\n\n".encode())
    assert read_names(str(tmp_path / "objects.txt")) == ["yolk", "goal", "", "café"]
    for first in ("__background__", "background", "BG"):
        (tmp_path / "other.txt").write_text(f"{first}\nyolk\ngoal\n")
        assert read_names(str(tmp_path / "other.txt")) == ["yolk", "goal"], "stores count classes without it"
    assert read_names(None) == read_names(str(tmp_path / "none.txt")) == []


def test_files_are_looked_for_at_the_start(tmp_path):
    config = {
        "datasets": {"s": {"source": "scenes", "splits": {"test": 1}}},
        "region_names": {"objects": str(tmp_path / "x")},
    }
    with pytest.raises(UserError, match="region_names.objects: file '.*x' does not exist"):
        load_settings(config)
    for content, message in (
        (b"", "region_names.objects: .*x' is empty|holds no names"),
        (b"\n \n", "region_names.objects: .*x holds no names; write one a line"),
        (b"caf\xe9\n", "region_names.objects: .*x.*not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "region_names.objects: .*git-lfs"),
        (b"<!DOCTYPE html><html>", "region_names.objects: .*web page"),
    ):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_settings(config)
    (tmp_path / "x").write_text("yolk\n")
    assert load_settings(config).region_names.files() == [str(tmp_path / "x")]


def test_published_names_and_folders(tmp_path):
    config = {
        "datasets": {"s": {"source": "scenes", "splits": {"test": 1}}},
        "region_names": "published:visual-genome-names",
    }
    folder = "published_weights/visual-genome-names"
    assert load_settings(config).region_names.files() == [
        f"{folder}/objects_vocab.txt",
        f"{folder}/attributes_vocab.txt",
    ]
    for value, message in (
        ("published:visual-genome-nams", "did you mean 'visual-genome-names'"),
        (
            {"objects": "published:visual-genome-names/x.txt"},
            "is no file of it; write published:visual-genome-names/objects_vocab.txt",
        ),
        ({"objects": "published:visual-genome-names"}, "or region_names: published:visual-genome-names for all"),
        ("published:bert-base-uncased", "no names of classes"),
        (str(tmp_path), "region_names.objects: file .*objects_vocab.txt' does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            load_settings(config | {"region_names": value})
    for name in ("objects", "attributes"):
        (tmp_path / f"{name}_vocab.txt").write_text("yolk\n")
    assert (
        load_settings(config | {"region_names": str(tmp_path)}).region_names.objects == f"{tmp_path}/objects_vocab.txt"
    )
    used = Plan(load_settings(config | {"search": {}}), lock=str(tmp_path / "lock.json"))
    assert f"{folder}/objects_vocab.txt" in used.report_inputs(None)


def test_names_stand_in_the_overlays():
    told = [{"heat": " ".join(["1"] * SIDE * SIDE), "words": [["dog", 1.0]],
             "frames": [{"place": [0, 0, 1, 1], "share": 0.5, "said": "dog +0.5", "class": number} for number in (1, 7, -1)]}]  # fmt: skip
    texts = [frame["text"] for frame in overlay(told, ["yolk", "goal"])["frames"]]
    assert texts == ["goal +0.500: dog +0.5", "+0.500: dog +0.5", "+0.500: dog +0.5"]
    assert class_names({}, ["goal"]) == ["goal"] and class_names({"class_names": ["own"]}, ["goal"]) == ["own"]


def test_a_file_of_another_detector_is_told(tmp_path, small_config, build_results):
    config = build_results(tmp_path, small_config)
    store = zarr.open_group(str(tmp_path / "scenes/features/regions.zarr"))
    store.attrs["class_names"] = []
    for names, told in ((3, True), (5, False)):  # there are five
        (tmp_path / "names.txt").write_text("".join(f"name {k}\n" for k in range(names)))
        artefacts = Artefacts(tmp_path, config | {"region_names": {"objects": str(tmp_path / "names.txt")}})
        build(artefacts, queries=2, seed=0)
        wrong = [
            note
            for note in artefacts.notes
            if note.startswith(f"There are names of {names} classes, but regions of scenes")
        ]
        assert bool(wrong) == told
