"""The embedded dataset: the same everywhere, exact in its ground truth, truthful in its captions."""

import colorsys
import hashlib

import numpy as np
import pytest

from catalog.categories import BY_NAME, COCO_PANOPTIC
from catalog.scenes import render_scene
from catalog.scenes_captions import SEEN
from catalog.scenes_things import COLORS, STUFFS, THINGS

SCENES = [(seed, index, style) for seed in (1, 2) for style in ("day", "dusk") for index in range(15)]


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(*arguments) for arguments in SCENES]


def digest(scene) -> str:
    content = scene.image.tobytes() + scene.panoptic.tobytes() + "\n".join(scene.captions).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def test_pixels_and_captions_are_the_same_everywhere():
    assert [digest(render_scene(1, i, style)) for i, style in ((0, "day"), (7, "day"), (3, "dusk"))] == [
        "16e84e2ceb33449b",
        "e6887ec7bd9839e1",
        "add3816845a0ebbb",
    ]


def test_seeds_numbers_and_styles_differ(scenes):
    assert len({digest(scene) for scene in scenes}) == len(scenes)


def test_vocabulary_is_cocos():
    assert len(THINGS) >= 12 and len(STUFFS) >= 6 and len(COLORS) == 8
    assert all(COCO_PANOPTIC[i].is_thing for i in THINGS)
    assert not any(COCO_PANOPTIC[i].is_thing for i in STUFFS)


def test_every_pixel_belongs_to_a_segment_with_a_tight_box(scenes):
    for scene in scenes:
        height, width, _ = scene.image.shape
        assert scene.panoptic.shape == (height, width)
        assert 150 <= min(height, width) <= 180 and max(height, width) <= 240
        assert set(np.unique(scene.panoptic)) == {s["id"] for s in scene.segments}
        for segment in scene.segments:
            ys, xs = np.nonzero(scene.panoptic == segment["id"])
            assert segment["bbox"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert segment["area"] == len(ys)
            assert segment["category"] in (THINGS if segment["is_thing"] else STUFFS)


def test_the_named_colour_is_the_one_drawn():
    """Balls are one colour nearly all over: their hue must be closest to their own colour's name."""
    from catalog.scenes_things import RGB

    def hue(rgb) -> float:
        return colorsys.rgb_to_hsv(*(float(v) / 255 for v in rgb))[0]

    ball = BY_NAME["sports ball"].index
    bright = [c for c in COLORS if c not in ("white", "black")]
    seen = set()
    for index in range(120):
        scene = render_scene(9, index)
        for segment in scene.segments:
            name = COLORS[segment["color"]] if segment["is_thing"] else None
            if segment["category"] == ball and segment["visible"] > 0.95 and name in bright:
                mean = np.median(scene.image[scene.panoptic == segment["id"]].astype(float), axis=0)
                gaps = {c: abs((hue(mean) - hue(RGB[c]) + 0.5) % 1 - 0.5) for c in bright}
                seen.add(name)
                assert min(gaps, key=gaps.get) == name, (index, mean)
    assert len(seen) >= 5


def visible_groups(scene):
    groups = {}
    for segment in scene.segments:
        if segment["is_thing"] and segment["visible"] >= SEEN:
            groups.setdefault(segment["category"], []).append(segment)
    return groups


def test_captions_tell_the_truth(scenes):
    kinds = set()
    for scene in scenes:
        assert len(scene.captions) == len(scene.facts) == 5
        groups = visible_groups(scene)
        for caption, facts in zip(scene.captions, scene.facts, strict=True):
            assert facts and caption == caption.strip() and "  " not in caption
            for kind, *claim in facts:
                kinds.add(kind)
                if kind == "group":
                    category, color, count, size = claim
                    members = groups[category]
                    assert len(members) == count
                    assert color is None or all(m["color"] == color for m in members)
                    assert color is None or COLORS[color] in caption.split()
                    assert size is None or all(m["size"] == size for m in members)
                elif kind == "relation":
                    first, name, second = claim
                    (a,), (b,) = groups[first], groups[second]
                    assert name in caption
                    if name.endswith("left of"):
                        assert sum(a["bbox"][::2]) < sum(b["bbox"][::2])
                    elif name.endswith("right of"):
                        assert sum(a["bbox"][::2]) > sum(b["bbox"][::2])
                    elif name == "above":
                        assert a["bbox"][3] <= b["bbox"][1]
                    else:
                        assert a["bbox"][1] >= b["bbox"][3]
                else:
                    assert claim[0] in {s["category"] for s in scene.segments if not s["is_thing"]}
    assert kinds == {"group", "relation", "stuff"}


def test_captions_mention_different_parts_and_seldom_repeat():
    captions = [c for i in range(100) for c in render_scene(1, i).captions]
    assert len(set(captions)) > 0.95 * len(captions)
    several = [render_scene(1, i) for i in range(100)]
    assert sum(len({tuple(f) for f in s.facts}) >= 4 for s in several) > 80


def test_unknown_style_is_named():
    with pytest.raises(ValueError, match="unknown style 'noon'; choose one of day, dusk"):
        render_scene(1, 0, "noon")
