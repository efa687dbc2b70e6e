"""The scenes on disk, read back by the field's own tool."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from catalog.categories import COCO_PANOPTIC
from catalog.scenes import DETECTOR_SEED, render_scene
from catalog.scenes_dataset import read_dataset, write_dataset
from core.console import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("scenes") / "dataset"
    write_dataset(output, seed=3, splits={"train": 4, "test": 2}, style="day")
    return output


def test_instances_are_coco(folder):
    coco = COCO(str(folder / "instances.json"))
    assert len(coco.imgs) == 6
    for image_id in coco.imgs:
        scene = render_scene(3, image_id - 1, "day")
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        things = [s for s in scene.segments if s["is_thing"]]
        assert len(annotations) == len(things)
        for annotation, segment in zip(annotations, things, strict=True):
            assert annotation["category_id"] == COCO_PANOPTIC[segment["category"]].coco_id
            mask = coco.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(mask, scene.panoptic == segment["id"])
            assert annotation["area"] == mask.sum()


def test_panoptic_is_coco(folder):
    content = json.loads((folder / "panoptic.json").read_text())
    for annotation in content["annotations"]:
        rgb = np.asarray(Image.open(folder / "panoptic" / annotation["file_name"])).astype(np.int64)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        assert set(np.unique(ids)) == {s["id"] for s in annotation["segments_info"]}
        for segment in annotation["segments_info"]:
            assert (ids == segment["id"]).sum() == segment["area"]
    known = {c["id"] for c in content["categories"]}
    assert {s["category_id"] for a in content["annotations"] for s in a["segments_info"]} <= known


def test_images_and_captions_read_back(folder):
    annotations = read_dataset(folder)
    assert annotations.splits == ["train"] * 4 + ["test"] * 2
    assert annotations.image_ids[0] == "day-3-000000"
    assert len(annotations.texts) == 30 and len(set(annotations.caption_ids)) == 30
    assert annotations.caption_images == [i for i in annotations.image_ids for _ in range(5)]
    assert annotations.texts[:5] == render_scene(3, 0, "day").captions
    image = np.asarray(Image.open(annotations.paths[0])).astype(int)
    difference = np.abs(image - render_scene(3, 0, "day").image.astype(int)).mean()
    assert 0 < difference < 8, "a JPEG of the scene, not the scene itself"


def test_a_second_rendering_replaces_the_first_byte_for_byte(folder):
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (folder / "left_over.txt").write_text("from a killed job")
    write_dataset(folder, seed=3, splits={"train": 4, "test": 2}, style="day")
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_the_detectors_seed_is_refused(tmp_path):
    with pytest.raises(UserError, match="training images"):
        write_dataset(tmp_path / "x", seed=DETECTOR_SEED, splits={"train": 1}, style="day")
    with pytest.raises(UserError, match=r"captions\.json does not exist"):
        read_dataset(tmp_path)
