"""Real photographs and odd files through the extractors: what is bad is listed, what is good is kept."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from stores import open_store

pytestmark = pytest.mark.workflow

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
BAD = ("corrupt",)  # only decoding tells
KNOWN_BAD = {"empty.jpg": b"", "text.png": b"this is no image"}  # the index tells


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    source = Path(skimage.__file__).parent / "data"
    astronaut = None
    for name in PHOTOS:
        image = Image.open(source / name).convert("RGB")
        image.thumbnail((320, 320))
        image.save(folder / f"{Path(name).stem}.png")
        astronaut = astronaut or image
    astronaut.convert("L").save(folder / "grey.png")
    astronaut.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    astronaut.convert("P").save(folder / "palette.gif")
    deep = np.asarray(astronaut.convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown upright
    astronaut.transpose(Image.Transpose.ROTATE_90).save(folder / "rotated.jpg", exif=exif, quality=95)
    frames = [astronaut.convert("P"), Image.new("P", astronaut.size)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1), (200, 30, 30)).save(folder / "dot.png")
    buffer = io.BytesIO()
    astronaut.save(buffer, "JPEG")
    (folder / "corrupt.jpg").write_bytes(buffer.getvalue()[: buffer.tell() // 3])
    return folder


@pytest.fixture(scope="module")
def workflow(make_workflow, photos):
    return make_workflow({"datasets": {"photos": {"source": "folder", "images": str(photos), "shards": 2}}})


@pytest.fixture(scope="module")
def failed(workflow):
    return workflow.run("regions", "panoptic")


def test_the_seal_lists_every_bad_image_and_fails(workflow, failed):
    output = failed.stdout + failed.stderr
    assert failed.returncode != 0
    for name in BAD:
        assert f"image {name} " in output or f"{name}." in output, name
    assert "on_bad_image: drop" in output
    assert "Traceback" not in output
    for feature in ("regions", "panoptic"):
        assert not (workflow.results / "photos" / "features" / f"{feature}.zarr" / "zarr.json").exists()
        receipts = [
            json.loads(p.read_text())
            for p in sorted((workflow.results / "photos" / "features" / f"{feature}.receipts").glob("*.json"))
        ]
        assert len(receipts) == 2, "a bad image does not stop its shard"
        assert sorted(f["image_id"] for r in receipts for f in r["failures"]) == sorted(BAD)


def test_dropping_them_only_seals_and_keeps_the_rest(workflow, failed, photos):
    config = workflow.config | {"features": {"on_bad_image": "drop"}}
    assert workflow.planned("regions", "panoptic", config=config) == {"seal_store": 2}, "nothing finished is lost"
    result = workflow.run("regions", "panoptic", config=config)
    assert result.returncode == 0, result.stdout + result.stderr

    regions = open_store(workflow.results / "photos" / "features" / "regions.zarr")
    assert regions.dropped == set(BAD)
    ids = list(regions.image_ids)
    row = {name: ids.index(name) for name in ids}
    counts = regions.rows("counts", range(len(ids)))
    assert all(counts[row[name]] == 0 for name in BAD)
    assert all(counts[row[name]] > 0 for name in ids if name not in (*BAD, "dot"))

    def features(name):
        return regions.rows("features", [row[name]])[0].astype(np.float32)

    def alike(a, b):
        """Cosine of the mean features."""
        u, v = features(a).mean(0), features(b).mean(0)
        return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))

    # Upright, whatever the file says, and the same picture in every encoding of it.
    assert alike("rotated", "astronaut") > 0.995
    assert alike("cmyk", "astronaut") > 0.99
    assert alike("palette", "astronaut") > 0.95 and alike("animated", "palette") > 0.99
    assert alike("deep", "grey") > 0.999

    panoptic = open_store(workflow.results / "photos" / "features" / "panoptic.zarr")
    maps = panoptic.rows("seg_maps", [row["corrupt"], row["coffee"]])
    assert (maps[0] == 255).all() and (maps[1] != 255).any()


def test_what_the_index_finds_broken_ends_it_before_any_extraction(workflow, failed, photos):
    for name, content in KNOWN_BAD.items():
        (photos / name).write_bytes(content)
    result = workflow.run("regions")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert all(name in output for name in KNOWN_BAD) and "on_bad_image: drop" in output
    assert "Traceback" not in output and "Checks and seals" not in output


def test_the_report_names_what_was_dropped(workflow, failed):
    config = workflow.config | {"features": {"on_bad_image": "drop"}}
    result = workflow.run("report", config=config)
    assert result.returncode == 0, result.stdout + result.stderr
    page = (workflow.results / "report" / "index.html").read_text()
    for name in (*BAD, *KNOWN_BAD):
        assert name in page
