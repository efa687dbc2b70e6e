"""The embedded dataset: small captioned scenes in COCO's vocabulary, drawn from a seed with exact ground truth.

The same seed, number and style give the same pixels and captions on every machine: geometry is rounded to whole
pixels, randomness comes from Python's Mersenne Twister and numpy's frozen `RandomState`. The embedded detectors have
learned from `DETECTOR_SEED`; changing how anything is drawn means training them again (`make weights`), changing
captions does not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from catalog.categories import BY_NAME
from catalog.scenes_captions import describe
from catalog.scenes_things import COLORS, KINDS, RGB, STUFF, STUFFS, Kind, Pen

STYLES = ("day", "dusk")
DETECTOR_SEED = 424_242  # reserved for training the embedded detectors; datasets use any other
SCALE = 2  # drawn at twice the size, then averaged down
_GROUNDS = {
    "day": ("grass", "sand", "road", "snow", "grass", "sea"),
    "dusk": ("road", "sand", "sea", "grass", "road", "snow"),
}

_PALETTES = {
    "day": {
        "sky": [(150, 195, 235), (185, 215, 240), (205, 215, 225)],
        "grass": [(105, 155, 70), (130, 165, 80), (90, 140, 75)],
        "sand": [(222, 200, 150), (230, 212, 170)],
        "road": [(120, 120, 124), (140, 138, 136)],
        "snow": [(232, 238, 244), (222, 230, 240)],
        "sea": [(40, 110, 160), (50, 130, 150)],
        "mountains": [(125, 115, 120), (140, 125, 110)],
        "trees": [(40, 95, 50), (60, 105, 45)],
    },
    "dusk": {
        "sky": [(225, 140, 95), (150, 90, 130), (80, 75, 125)],
        "grass": [(70, 92, 62), (80, 84, 50)],
        "sand": [(165, 130, 110), (150, 125, 95)],
        "road": [(72, 68, 84), (88, 80, 90)],
        "snow": [(165, 165, 200), (180, 165, 185)],
        "sea": [(45, 60, 110), (80, 70, 110)],
        "mountains": [(75, 60, 90), (90, 70, 80)],
        "trees": [(35, 55, 50), (50, 55, 40)],
    },
}


@dataclass
class Scene:
    """One scene.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        panoptic: (H, W) uint16 segment ids from 1; every pixel belongs to a segment.
        segments: dicts with `id`, `category` (0..132), `is_thing`, `bbox` (x0, y0, x1, y1; ends exclusive) and `area` of
            the visible part in pixels, and for things `color` (index into COLORS), `size` ("small", "" or "large")
            and `visible` (share of the object that is seen).
        captions: five sentences.
        facts: per caption what it claims: ("group", category, color or None, count, size or None),
            ("relation", category, name, category) and ("stuff", category).
    """

    image: np.ndarray
    panoptic: np.ndarray
    segments: list[dict]
    captions: list[str]
    facts: list[list[tuple]]


@dataclass
class _Background:
    canvas: Image.Image  # at SCALE
    stuff: np.ndarray  # (H, W) uint8 index into STUFF
    horizon: int
    ground: str
    sea_bottom: int | None  # where a beach's water ends


@dataclass
class _Object:
    kind: Kind
    color: int
    size: str
    box: tuple[int, int, int, int]  # x, y, width, height
    flip: bool


def _jitter(rng: random.Random, color: tuple[int, ...], amount: int = 14) -> tuple[int, ...]:
    return tuple(max(0, min(255, v + rng.randint(-amount, amount))) for v in color)


def _mountains(rng: random.Random, w: int, top: int, bottom: int) -> list[tuple[int, int]]:
    x, points = 0, [(0, bottom)]
    while x < w:
        points.append((x, rng.randint(top, (top + bottom) // 2 + (bottom - top) // 4)))
        x += rng.randint(w // 7, w // 3)
    return [*points, (w, rng.randint(top, bottom)), (w, bottom)]


def _draw_sky(rng: random.Random, draw: ImageDraw.ImageDraw, style: str, w: int, horizon: int) -> None:
    top = _jitter(rng, rng.choice(_PALETTES[style]["sky"]))
    bottom = tuple((a + 255) // 2 for a in top) if style == "day" else tuple(min(255, a + 45) for a in top)
    for y in range(0, horizon * SCALE, 4):
        t = y / (horizon * SCALE)
        fill = tuple(round(a + (b - a) * t) for a, b in zip(top, bottom, strict=True))
        draw.rectangle([0, y, w * SCALE, y + 4], fill=fill)


def _draw_band(rng: random.Random, draw: ImageDraw.ImageDraw, style: str, size: tuple[int, int], horizon: int):
    """Mountains or trees along the horizon, or nothing: name and (H, W) mask."""
    w, h = size
    palette = _PALETTES[style]
    band = rng.choice(["mountains", "trees", None])
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    if band == "mountains":
        points = _mountains(rng, w, max(4, horizon - h // 4), horizon)
        draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=_jitter(rng, rng.choice(palette[band])))
        pen.polygon(points, fill=255)
    elif band == "trees":
        x, base = -6, rng.choice(palette[band])
        while x < w:
            r = rng.randint(9, 20)
            box = [x, horizon - r - rng.randint(4, 14), x + 2 * r, horizon + 3]
            draw.ellipse([v * SCALE for v in box], fill=_jitter(rng, base, 18))
            pen.ellipse(box, fill=255)
            x += r + rng.randint(0, 6)
    return band, np.asarray(mask) > 0


def _draw_texture(rng: random.Random, back: _Background, draw: ImageDraw.ImageDraw, w: int, h: int) -> None:
    """Strokes whose length and direction belong to the material of the ground."""
    for _ in range(140):
        x, y = rng.randrange(w * SCALE), rng.randrange(back.horizon * SCALE, h * SCALE)
        wet = back.ground == "sea" or (back.sea_bottom is not None and y < back.sea_bottom * SCALE)
        shade = rng.uniform(0.8, 1.2)
        base = back.canvas.getpixel((x, y))
        tone = tuple(max(0, min(255, round(v * shade))) for v in base)
        if wet:
            draw.arc([x - 12, y - 3, x + 12, y + 5], 190, 350, fill=tuple(min(255, v + 40) for v in base), width=2)
        elif back.ground == "grass":
            draw.line([x, y, x + rng.randint(-3, 3), y - rng.randint(4, 10)], fill=tone, width=2)
        elif back.ground == "snow":
            draw.ellipse([x - 8, y - 2, x + 8, y + 2], fill=tone)
        else:
            draw.point([x, y, x + 1, y], fill=tone)
            draw.ellipse([x, y, x + 2, y + 2], fill=tone)
    if back.ground == "road":
        y = (back.horizon + h) // 2 * SCALE
        for x in range(rng.randrange(30), w * SCALE, 70):
            draw.rectangle([x, y, x + 36, y + 5], fill=(228, 222, 190))


def _draw_background(rng: random.Random, style: str, w: int, h: int) -> _Background:
    palette = _PALETTES[style]
    canvas = Image.new("RGB", (w * SCALE, h * SCALE), _jitter(rng, rng.choice(palette["sky"])))
    draw = ImageDraw.Draw(canvas)
    horizon = round(h * rng.uniform(0.34, 0.58))
    ground = rng.choice(_GROUNDS[style])
    stuff = np.full((h, w), STUFF.index("sky"), np.uint8)
    stuff[horizon:] = STUFF.index(ground)
    _draw_sky(rng, draw, style, w, horizon)
    band, mask = _draw_band(rng, draw, style, (w, h), horizon)
    if band:
        stuff[mask & (np.arange(h)[:, None] < horizon)] = STUFF.index(band)
    color = _jitter(rng, rng.choice(palette[ground]))
    draw.rectangle([0, horizon * SCALE, w * SCALE, h * SCALE], fill=color)
    back = _Background(canvas, stuff, horizon, ground, None)
    if ground == "sand" and rng.random() < 0.7:
        back.sea_bottom = horizon + round((h - horizon) * rng.uniform(0.25, 0.45))
        water = _jitter(rng, rng.choice(palette["sea"]))
        draw.rectangle([0, horizon * SCALE, w * SCALE, back.sea_bottom * SCALE], fill=water)
        stuff[horizon : back.sea_bottom] = STUFF.index("sea")
    _draw_texture(rng, back, draw, w, h)
    return back


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Shared area of two (x, y, w, h) boxes over the smaller one's area."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, w) * max(0, h) / min(a[2] * a[3], b[2] * b[3])


def _position(rng: random.Random, kind: Kind, back: _Background, size: tuple[int, int], object_size: tuple[int, int]):
    (w, h), (ow, oh), horizon = size, object_size, back.horizon
    x = rng.randint(-ow // 8, max(1, w - ow * 7 // 8))
    if kind.place == "sky":
        return x, rng.randint(0, max(1, horizon - oh // 2))
    if kind.place == "sea":
        bottom = h if back.ground == "sea" else back.sea_bottom
        return x, rng.randint(horizon, bottom) - oh + (4 if back.ground != "sea" else 0)
    first = horizon + (h - horizon) // 6 if back.sea_bottom is None else min(h - 2, back.sea_bottom + 4)
    return x, rng.randint(first, h) - oh


def _place_objects(rng: random.Random, back: _Background, w: int, h: int) -> list[_Object]:
    """Groups of one kind, colour and size; each kind at most once, so that "the dog" is never ambiguous."""
    water = back.ground == "sea" or back.sea_bottom is not None
    kinds = [k for k in KINDS if (k.place != "sea" or water) and not (k.place == "ground" and back.ground == "sea")]
    placed: list[_Object] = []
    target = rng.randint(2, 6)
    attempts = 0
    while len(placed) < target and attempts < 14:
        attempts += 1
        kind = rng.choice(kinds)
        color = rng.randrange(len(COLORS))
        size = rng.choice(["small", "", "large"])
        if any(o.kind is kind for o in placed):
            continue
        for _ in range(min(target - len(placed), rng.choice([1, 1, 1, 1, 2, 3]))):
            low, high = kind.height
            span = (high - low) / 3
            start = {"small": low, "": low + span, "large": low + 2 * span}[size]
            oh = round(start + rng.random() * span)
            ow = max(8, round(oh * kind.aspect * rng.uniform(0.92, 1.08)))
            for _ in range(8):
                box = (*_position(rng, kind, back, (w, h), (ow, oh)), ow, oh)
                if all(_overlap(box, o.box) <= 0.4 for o in placed):
                    break
            else:
                continue  # no room: objects may hide each other in part, not wholly
            placed.append(_Object(kind, color, size, box, rng.random() < 0.5))
    # Nearer objects stand lower in the picture and are drawn later.
    placed.sort(key=lambda o: (o.kind.place == "ground", o.box[1] + o.box[3]))
    return placed


def _draw_objects(rng: random.Random, canvas: Image.Image, objects: list[_Object], w: int, h: int):
    """Paint the objects; (H, W) int32 object number + 1 of every pixel (0: background) and each object's full area."""
    owner = np.zeros((h, w), np.int32)
    areas = []
    for i, o in enumerate(objects):
        x, y, ow, oh = o.box
        pen = Pen(ow * SCALE, oh * SCALE, _jitter(rng, RGB[COLORS[o.color]], 16), rng)
        o.kind.draw(pen)
        patch = pen.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if o.flip else pen.image
        alpha = patch.getchannel("A")
        canvas.paste(patch.convert("RGB"), (x * SCALE, y * SCALE), alpha)
        mask = np.asarray(alpha.reduce(SCALE)) >= 128
        areas.append(int(mask.sum()))
        x0, y0, x1, y1 = max(0, x), max(0, y), min(w, x + ow), min(h, y + oh)
        if x0 < x1 and y0 < y1:
            owner[y0:y1, x0:x1][mask[y0 - y : y1 - y, x0 - x : x1 - x]] = i + 1
    return owner, areas


def _photograph(rng: random.Random, canvas: Image.Image, style: str) -> np.ndarray:
    """Canvas -> (H, W, 3) uint8 with a lens' blur, sensor noise and the light of the hour."""
    image = canvas.reduce(SCALE)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    array = np.asarray(image).astype(np.float32)
    # RandomState's streams are frozen across numpy versions, unlike Generator's.
    noise = np.random.RandomState(rng.getrandbits(32))
    strength = rng.uniform(2, 7) if style == "day" else rng.uniform(5, 11)
    array += noise.randint(-128, 128, array.shape).astype(np.float32) * np.float32(strength / 74)
    array *= np.float32(rng.uniform(0.85, 1.1))
    if style == "dusk":
        array *= np.array([0.95, 0.8, 0.85], np.float32)
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)


def render_scene(seed: int, index: int, style: str = "day") -> Scene:
    """Draw scene `index` of `seed`.

    Args:
        seed, index: any integers; scenes of different seeds or numbers are independent.
        style: "day", or "dusk": other palettes, more noise, other shares of the grounds.

    Raises:
        ValueError: for another style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(STYLES)}")
    rng = random.Random(f"{seed}/{index}/{style}")
    short, long = rng.randint(150, 180), rng.randint(180, 240)
    w, h = (long, short) if rng.random() < 0.65 else ((short, long) if rng.random() < 0.7 else (short, short))
    back = _draw_background(rng, style, w, h)
    objects = _place_objects(rng, back, w, h)
    owner, areas = _draw_objects(rng, back.canvas, objects, w, h)
    image = _photograph(rng, back.canvas, style)

    panoptic = np.zeros((h, w), np.uint16)
    segments: list[dict] = []

    def add(mask: np.ndarray, **facts) -> None:
        ys, xs = np.nonzero(mask)
        box = [float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)]
        segments.append({"id": len(segments) + 1, **facts, "bbox": box, "area": len(ys)})
        panoptic[mask] = len(segments)

    for stuff_index, category in enumerate(STUFFS):
        mask = (back.stuff == stuff_index) & (owner == 0)
        if mask.any():
            add(mask, category=category, is_thing=False, color=None, size=None)
    for i, (o, area) in enumerate(zip(objects, areas, strict=True)):
        mask = owner == i + 1
        if mask.any():
            add(
                mask,
                category=BY_NAME[o.kind.name].index,
                is_thing=True,
                color=o.color,
                size=o.size,
                visible=float(mask.sum()) / area,
            )
    captions, facts = describe(segments, rng)
    return Scene(image, panoptic, segments, captions, facts)
