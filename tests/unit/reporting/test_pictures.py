from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from catalog.categories import BY_NAME, COCO_PANOPTIC
from reporting.pictures import (
    LADDER,
    Picture,
    category_colour,
    encode_pictures,
    load_upright,
    panoptic_overlay,
    plain_name,
    top_boxes,
)


def decode(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def gradient(width=40, height=30):
    values = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    return np.stack([values, values[::-1], values[:, ::-1]], axis=-1)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "P", "RGBA", "LA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image = Image.fromarray(gradient())
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(path)
    loaded = load_upright(str(path))
    assert (loaded.mode, loaded.size) == ("RGB", (40, 30))
    if mode in ("L", "I;16"):
        grey = np.asarray(Image.fromarray(gradient()).convert("L")).astype(int)
        assert np.abs(np.asarray(loaded)[..., 0].astype(int) - grey).max() <= 1
    assert np.asarray(loaded).std() > 10, "the picture must not be washed out"


def test_orientation_and_animation(tmp_path):
    image = Image.fromarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_upright(str(tmp_path / "turned.jpg")).size == (30, 40)
    frames = [Image.new("P", (5, 5), colour) for colour in (0, 1)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_upright(str(tmp_path / "moving.gif")).size == (5, 5)


def test_unreadable_files_are_left_empty(tmp_path):
    for name, content in (("empty.jpg", b""), ("noise.jpg", b"\xff\xd8\xff" + bytes(50))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError):
            load_upright(str(tmp_path / name))
    pictures = [Picture("a", str(tmp_path / "empty.jpg"), "a", "a", 1, 1)]
    pictures.append(Picture("b", str(tmp_path / "missing.jpg"), "b", "b", 1, 1))
    encode_pictures(pictures, 10_000)
    assert [picture.jpeg for picture in pictures] == ["", ""]


def test_pictures_shrink_until_they_fit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (500, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    pictures = [Picture(str(number), str(tmp_path / "x.png"), "", "", 700, 500) for number in range(3)]
    assert encode_pictures(pictures, 10_000_000) == LADDER[0]
    assert decode(pictures[0].jpeg).size == (240, 171)
    large = sum(len(picture.jpeg) for picture in pictures)
    side, _ = encode_pictures(pictures, large // 2)
    assert side < 240
    assert sum(len(picture.jpeg) for picture in pictures) <= large // 2
    assert encode_pictures(pictures, 1) == LADDER[-1]


def test_overlay_has_the_maps_colours_and_transparent_void():
    seg_map = np.full((64, 64), 120, np.uint8)
    seg_map[:16] = 2
    seg_map[60:, 60:] = 255
    uri, areas = panoptic_overlay(seg_map)
    pixels = np.asarray(decode(uri).convert("RGBA"))
    assert pixels.shape == (64, 64, 4)
    assert tuple(pixels[0, 0]) == (*category_colour(2), 255)
    assert tuple(pixels[30, 30]) == (*category_colour(120), 255)
    assert pixels[63, 63, 3] == 0
    assert [(area.name, round(area.share, 2)) for area in areas] == [
        (plain_name(COCO_PANOPTIC[120].name), 74.61),
        ("car", 25.0),
    ]
    assert areas[1].colour == "#" + bytes(category_colour(2)).hex()
    assert len(uri) < 1500
    assert panoptic_overlay(np.full((64, 64), 255, np.uint8)) == ("", [])


def test_names_lose_what_says_nothing():
    names = ["sky-other-merged", "door-stuff", "water-other", "floor-wood", "dog"]
    assert [plain_name(name) for name in names] == ["sky", "door", "water", "floor-wood", "dog"]


def test_all_categories_have_their_own_colour_and_frequent_ones_differ_much():
    assert len({category_colour(index) for index in range(133)}) == 133
    names = (
        "person",
        "car",
        "dog",
        "cat",
        "sea",
        "sand",
        "snow",
        "road",
        "tree-merged",
        "sky-other-merged",
        "mountain-merged",
    )
    colours = np.array([category_colour(BY_NAME[name].index) for name in names], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[np.triu_indices(len(names), 1)].min() > 40


def test_boxes_of_highest_score():
    boxes = np.array([[0, 0, 10, 20], [5, 5, 6, 8], [1, 2, 3, 4]], np.float32)
    found = top_boxes(boxes, np.array([0.2, 0.9, 0.5]), np.array([0, 7, -1]), ["dog"], limit=2)
    assert [(box.x, box.y, box.width, box.height) for box in found] == [(5, 5, 1, 3), (1, 2, 2, 2)]
    assert [box.label for box in found] == ["", ""]
    assert top_boxes(boxes, np.array([0.9, 0.2, 0.5]), np.array([0, 7, -1]), ["dog"])[0].label == "dog"
    assert top_boxes(boxes[:0], np.zeros(0), np.zeros(0, int), []) == []
