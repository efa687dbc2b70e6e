"""The embedded dataset: small captioned scenes in COCO's vocabulary, drawn from a seed with exact ground truth.

The same seed, number and style give the same pixels and captions on every machine: geometry is rounded to whole
pixels, randomness comes from Python's Mersenne Twister and numpy's frozen `RandomState`. The embedded detectors have
learned from `DETECTOR_SEED`; changing how anything is drawn means training them again (`make weights`), changing
captions does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from catalog.categories import BY_NAME

STYLES = ("day", "dusk")
DETECTOR_SEED = 424_242  # reserved for training the embedded detectors; datasets use any other
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
_RGB = {
    "red": (200, 40, 38), "orange": (236, 128, 28), "yellow": (240, 212, 50), "green": (40, 150, 60),
    "blue": (45, 85, 205), "purple": (130, 58, 165), "white": (238, 238, 236), "black": (38, 36, 40),
}  # fmt: skip
SCALE = 2  # drawn at twice the size, then averaged down


class Pen:
    """Draws one object in unit coordinates on its own transparent patch of (w, h) pixels.

    A `shade` is a factor on the object's colour (above 1: towards white) or a colour of its own.
    """

    def __init__(self, w: int, h: int, color: tuple[int, int, int], rng: random.Random) -> None:
        self.image = Image.new("RGBA", (w, h), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)
        self.w, self.h, self.color, self.rng = w, h, color, rng

    def tone(self, shade: float | tuple[int, int, int]) -> tuple[int, int, int, int]:
        if isinstance(shade, tuple):
            return (*shade, 255)
        if shade <= 1:
            return (*(int(c * shade) for c in self.color), 255)
        return (*(int(c + (255 - c) * (shade - 1)) for c in self.color), 255)

    def _at(self, points) -> list[tuple[int, int]]:
        return [(round(x * (self.w - 1)), round(y * (self.h - 1))) for x, y in points]

    def poly(self, points, shade=1.0) -> None:
        self.draw.polygon(self._at(points), fill=self.tone(shade))

    def ell(self, x0, y0, x1, y1, shade=1.0) -> None:
        self.draw.ellipse([c for p in self._at([(x0, y0), (x1, y1)]) for c in p], fill=self.tone(shade))

    def rect(self, x0, y0, x1, y1, shade=1.0) -> None:
        self.draw.rectangle([c for p in self._at([(x0, y0), (x1, y1)]) for c in p], fill=self.tone(shade))

    def line(self, points, width: float, shade=1.0) -> None:
        self.draw.line(self._at(points), fill=self.tone(shade), width=max(1, round(width * min(self.w, self.h))))


SKIN, DARK, GLASS, WOOD, STEEL = (224, 172, 135), (30, 30, 34), (150, 190, 215), (120, 78, 45), (128, 130, 136)


def _person(p: Pen) -> None:
    step = p.rng.uniform(0.05, 0.2)
    p.line([(0.45, 0.6), (0.5 - step, 0.98)], 0.2, DARK)
    p.line([(0.55, 0.6), (0.5 + step, 0.98)], 0.2, (60, 60, 90))
    p.poly([(0.25, 0.24), (0.75, 0.24), (0.72, 0.66), (0.28, 0.66)])
    p.line([(0.27, 0.28), (0.08, 0.52 + step)], 0.16, 0.8)
    p.line([(0.73, 0.28), (0.92, 0.56 - step)], 0.16, 0.8)
    p.ell(0.33, 0.02, 0.67, 0.22, SKIN)
    p.ell(0.33, 0.0, 0.67, 0.1, (70, 45, 30))


def _car(p: Pen) -> None:
    p.poly([(0.2, 0.45), (0.32, 0.08), (0.68, 0.08), (0.84, 0.45)], 0.85)
    p.poly([(0.27, 0.43), (0.35, 0.16), (0.49, 0.16), (0.49, 0.43)], GLASS)
    p.poly([(0.53, 0.43), (0.53, 0.16), (0.65, 0.16), (0.76, 0.43)], GLASS)
    p.poly([(0.0, 0.5), (0.12, 0.42), (0.9, 0.42), (1.0, 0.55), (1.0, 0.8), (0.0, 0.8)])
    for x in (0.2, 0.76):
        p.ell(x - 0.11, 0.6, x + 0.11, 1.0, DARK)
        p.ell(x - 0.05, 0.7, x + 0.05, 0.9, STEEL)
    p.rect(0.94, 0.55, 1.0, 0.64, (250, 240, 170))


def _bus(p: Pen) -> None:
    p.rect(0.0, 0.06, 1.0, 0.86)
    p.rect(0.0, 0.58, 1.0, 0.64, 1.6)
    for i in range(5):
        p.rect(0.05 + i * 0.16, 0.16, 0.17 + i * 0.16, 0.46, GLASS)
    p.rect(0.86, 0.16, 0.96, 0.84, (90, 120, 140))
    for x in (0.2, 0.74):
        p.ell(x - 0.08, 0.72, x + 0.08, 1.0, DARK)


def _airplane(p: Pen) -> None:
    p.poly([(0.02, 0.1), (0.12, 0.1), (0.26, 0.45), (0.1, 0.5)], 0.85)
    p.ell(0.05, 0.36, 1.0, 0.66)
    p.poly([(0.42, 0.5), (0.62, 0.5), (0.38, 0.98), (0.27, 0.98)], 0.7)
    p.poly([(0.45, 0.4), (0.6, 0.4), (0.42, 0.12), (0.34, 0.12)], 0.8)
    for i in range(5):
        p.ell(0.4 + i * 0.09, 0.44, 0.44 + i * 0.09, 0.52, DARK)


def _boat(p: Pen) -> None:
    p.line([(0.46, 0.0), (0.46, 0.75)], 0.05, WOOD)
    p.poly([(0.5, 0.04), (0.95, 0.64), (0.5, 0.64)], (235, 232, 220))
    p.poly([(0.42, 0.12), (0.42, 0.64), (0.12, 0.64)], 1.5)
    p.poly([(0.0, 0.7), (1.0, 0.7), (0.84, 1.0), (0.16, 1.0)])
    p.poly([(0.0, 0.7), (1.0, 0.7), (0.97, 0.78), (0.03, 0.78)], 0.65)


def _bird(p: Pen) -> None:
    lift = p.rng.uniform(0.0, 0.25)
    p.poly([(0.0, 0.62), (0.2, 0.5), (0.2, 0.72)], 0.75)
    p.ell(0.14, 0.42, 0.78, 0.86)
    p.ell(0.64, 0.28, 0.9, 0.6)
    p.poly([(0.88, 0.4), (1.0, 0.48), (0.88, 0.52)], (240, 170, 40))
    p.poly([(0.3, 0.6), (0.62, 0.55), (0.36, lift)], 0.7)
    p.ell(0.78, 0.38, 0.83, 0.44, DARK if sum(p.color) > 250 else (240, 240, 240))


def _cat(p: Pen) -> None:
    p.line([(0.2, 0.85), (0.05, 0.6), (0.12, 0.38)], 0.1, 0.8)
    p.ell(0.15, 0.42, 0.7, 1.0)
    p.rect(0.52, 0.62, 0.62, 0.98, 0.85)
    p.ell(0.42, 0.14, 0.9, 0.58)
    p.poly([(0.45, 0.3), (0.48, 0.0), (0.63, 0.18)])
    p.poly([(0.69, 0.18), (0.86, 0.0), (0.88, 0.32)])
    eye = (190, 230, 90)
    p.ell(0.54, 0.3, 0.62, 0.38, eye)
    p.ell(0.72, 0.3, 0.8, 0.38, eye)
    p.poly([(0.64, 0.42), (0.71, 0.42), (0.675, 0.47)], (230, 140, 150))


def _dog(p: Pen) -> None:
    p.line([(0.12, 0.42), (0.02, 0.16)], 0.09, 0.8)
    for x in (0.16, 0.3, 0.56, 0.68):
        p.rect(x, 0.6, x + 0.08, 1.0, 0.8)
    p.ell(0.08, 0.34, 0.78, 0.74)
    p.ell(0.62, 0.12, 0.92, 0.5)
    p.rect(0.84, 0.28, 1.0, 0.44, 0.9)
    p.ell(0.95, 0.27, 1.0, 0.34, DARK)
    p.ell(0.62, 0.14, 0.74, 0.46, 0.6)


def _umbrella(p: Pen) -> None:
    p.line([(0.5, 0.3), (0.5, 0.95), (0.62, 0.97)], 0.06, WOOD)
    p.draw.pieslice([0, 0, p.w - 1, round(p.h * 0.9)], 180, 360, fill=p.tone(1.0))
    p.draw.pieslice([round(p.w * 0.32), 0, round(p.w * 0.68), round(p.h * 0.9)], 180, 360, fill=p.tone(1.4))


def _kite(p: Pen) -> None:
    p.line([(0.5, 0.6), (0.4, 0.75), (0.6, 0.86), (0.45, 1.0)], 0.04, STEEL)
    p.poly([(0.5, 0.0), (0.95, 0.3), (0.5, 0.72), (0.05, 0.3)])
    p.poly([(0.5, 0.0), (0.95, 0.3), (0.5, 0.3)], 1.5)
    p.poly([(0.5, 0.3), (0.5, 0.72), (0.05, 0.3)], 0.7)


def _ball(p: Pen) -> None:
    p.ell(0.0, 0.0, 1.0, 1.0)
    p.ell(0.16, 0.1, 0.55, 0.46, 1.45)
    p.draw.arc(
        [round(p.w * 0.2), -p.h // 4, round(p.w * 1.3), round(p.h * 1.1)],
        80,
        260,
        fill=p.tone(0.55),
        width=max(1, p.w // 14),
    )


def _chair(p: Pen) -> None:
    p.rect(0.08, 0.0, 0.22, 1.0, 0.75)
    p.rect(0.08, 0.05, 0.3, 0.5)
    p.poly([(0.08, 0.5), (0.9, 0.5), (1.0, 0.64), (0.08, 0.64)])
    p.rect(0.84, 0.62, 0.96, 1.0, 0.75)
    p.rect(0.4, 0.62, 0.5, 0.94, 0.6)


def _plant(p: Pen) -> None:
    leaf = (45, 125 + p.rng.randrange(40), 55)
    for x, y in ((0.1, 0.25), (0.3, 0.0), (0.52, 0.02), (0.62, 0.26), (0.32, 0.28)):
        p.ell(x, y, x + 0.34, y + 0.42, leaf)
        leaf = (leaf[0] + 8, leaf[1] + 8, leaf[2])
    p.poly([(0.16, 0.58), (0.84, 0.58), (0.72, 1.0), (0.28, 1.0)])
    p.rect(0.12, 0.54, 0.88, 0.64, 0.75)


def _light(p: Pen) -> None:
    p.rect(0.42, 0.5, 0.58, 1.0, STEEL)
    p.rect(0.12, 0.0, 0.88, 0.6)
    on = p.rng.randrange(3)
    for i, c in enumerate([(235, 40, 40), (245, 200, 40), (50, 220, 90)]):
        p.ell(0.3, 0.04 + i * 0.18, 0.7, 0.2 + i * 0.18, c if i == on else tuple(v // 4 for v in c))


@dataclass(frozen=True)
class _Kind:
    """A thing that can be drawn: COCO name, words for one and for several, how, and where it belongs."""

    name: str
    names: tuple[str, ...]
    plurals: tuple[str, ...]
    draw: Callable[[Pen], None]
    aspect: float  # width / height
    height: tuple[int, int]  # pixels, smallest and largest
    place: str  # ground | sky | sea


_KINDS = (
    _Kind("person", ("person",), ("people",), _person, 0.42, (44, 92), "ground"),
    _Kind("car", ("car",), ("cars",), _car, 2.2, (24, 46), "ground"),
    _Kind("bus", ("bus",), ("buses",), _bus, 2.1, (36, 62), "ground"),
    _Kind("airplane", ("airplane", "plane"), ("airplanes", "planes"), _airplane, 1.9, (26, 48), "sky"),
    _Kind("boat", ("boat", "sailboat"), ("boats", "sailboats"), _boat, 1.05, (36, 70), "sea"),
    _Kind("bird", ("bird",), ("birds",), _bird, 1.3, (20, 40), "sky"),
    _Kind("cat", ("cat", "kitten"), ("cats", "kittens"), _cat, 0.95, (30, 58), "ground"),
    _Kind("dog", ("dog", "puppy"), ("dogs", "puppies"), _dog, 1.35, (30, 56), "ground"),
    _Kind("umbrella", ("umbrella", "parasol"), ("umbrellas", "parasols"), _umbrella, 1.05, (34, 64), "ground"),
    _Kind("kite", ("kite",), ("kites",), _kite, 0.78, (30, 58), "sky"),
    _Kind("sports ball", ("ball",), ("balls",), _ball, 1.0, (18, 36), "ground"),
    _Kind("chair", ("chair", "seat"), ("chairs", "seats"), _chair, 0.72, (36, 66), "ground"),
    _Kind("potted plant", ("potted plant", "plant"), ("potted plants", "plants"), _plant, 0.7, (36, 66), "ground"),
    _Kind("traffic light", ("traffic light",), ("traffic lights",), _light, 0.4, (44, 84), "ground"),
)
_STUFF_NAMES = {
    "sky-other-merged": "sky",
    "grass-merged": "grass",
    "sand": "sand",
    "road": "road",
    "snow": "snow",
    "sea": "sea",
    "mountain-merged": "mountains",
    "tree-merged": "trees",
}
_STUFF = list(_STUFF_NAMES.values())
THINGS = tuple(BY_NAME[k.name].index for k in _KINDS)
STUFFS = tuple(BY_NAME[n].index for n in _STUFF_NAMES)
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
    stuff: np.ndarray  # (H, W) uint8 index into _STUFF
    horizon: int
    ground: str
    sea_bottom: int | None  # where a beach's water ends


@dataclass
class _Object:
    kind: _Kind
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
    stuff = np.full((h, w), _STUFF.index("sky"), np.uint8)
    stuff[horizon:] = _STUFF.index(ground)
    _draw_sky(rng, draw, style, w, horizon)
    band, mask = _draw_band(rng, draw, style, (w, h), horizon)
    if band:
        stuff[mask & (np.arange(h)[:, None] < horizon)] = _STUFF.index(band)
    color = _jitter(rng, rng.choice(palette[ground]))
    draw.rectangle([0, horizon * SCALE, w * SCALE, h * SCALE], fill=color)
    back = _Background(canvas, stuff, horizon, ground, None)
    if ground == "sand" and rng.random() < 0.7:
        back.sea_bottom = horizon + round((h - horizon) * rng.uniform(0.25, 0.45))
        water = _jitter(rng, rng.choice(palette["sea"]))
        draw.rectangle([0, horizon * SCALE, w * SCALE, back.sea_bottom * SCALE], fill=water)
        stuff[horizon : back.sea_bottom] = _STUFF.index("sea")
    _draw_texture(rng, back, draw, w, h)
    return back


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Shared area of two (x, y, w, h) boxes over the smaller one's area."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, w) * max(0, h) / min(a[2] * a[3], b[2] * b[3])


def _position(rng: random.Random, kind: _Kind, back: _Background, size: tuple[int, int], object_size: tuple[int, int]):
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
    kinds = [k for k in _KINDS if (k.place != "sea" or water) and not (k.place == "ground" and back.ground == "sea")]
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
        pen = Pen(ow * SCALE, oh * SCALE, _jitter(rng, _RGB[COLORS[o.color]], 16), rng)
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
    captions, facts = _describe(segments, rng)
    return Scene(image, panoptic, segments, captions, facts)


# Captions. Every sentence is built from facts, which are kept beside it.

_NUMBERS = {2: ("two", "a pair of"), 3: ("three",)}
_PLACES = {
    "sky": ("under the sky", "below an open sky"),
    "grass": ("on the grass", "in a meadow", "on a green field"),
    "sand": ("on the sand", "on a beach"),
    "road": ("on the road", "on a street"),
    "snow": ("on the snow", "in a snowy place"),
    "sea": ("by the sea", "near the water"),
    "mountains": ("with mountains behind", "in front of mountains"),
    "trees": ("with trees behind", "in front of some trees"),
}
_PAIR = ("{a} and {b} {place}", "{place} there are {a} and {b}", "{a} next to {b}", "a photo of {a} with {b}")
_SINGLE = ("{a} {place}", "there {be} {a} {place}", "a picture of {a} {place}", "{place}, {a}")
_TRIPLE = ("{a}, {b} and {c}", "a scene with {a}, {b} and {c}", "{a} and {b}, and also {c}")
_EMPTY = ("a quiet view {place}", "nobody is there, {place}", "an empty scene {place}")
SEEN = 0.45  # captions speak of objects of which at least this share is visible


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _describe(segments: list[dict], rng: random.Random) -> tuple[list[str], list[list[tuple]]]:
    """Five captions and their facts."""
    groups: dict[int, list[dict]] = {}
    for s in segments:
        if s["is_thing"] and s["visible"] >= SEEN:
            groups.setdefault(s["category"], []).append(s)
    stuff = [s["category"] for s in segments if not s["is_thing"] and s["area"] >= 300]
    places = [c for c in stuff if _STUFF[STUFFS.index(c)] != "sky"] or stuff
    captions, facts = [], []
    for number in range(5):
        sentence, claims = _sentence(number, groups, places, rng)
        captions.append(sentence)
        facts.append(claims)
    return captions, facts


def _phrase(members: list[dict], claims: list[tuple], rng: random.Random) -> str:
    """`two red cars`, `a small dog`: some details are left out now and then, as people do."""
    first = members[0]
    kind = _KINDS[THINGS.index(first["category"])]
    color = first["color"] if rng.random() < 0.6 else None
    size = (first["size"] or None) if len(members) == 1 and rng.random() < 0.3 else None
    claims.append(("group", first["category"], color, len(members), size))
    words = [w for w in (size, COLORS[color] if color is not None else None) if w]
    if len(members) == 1:
        return _article(" ".join([*words, rng.choice(kind.names)]))
    return " ".join([rng.choice(_NUMBERS[len(members)]), *words, rng.choice(kind.plurals)])


def _relation(one: dict, two: dict) -> str | None:
    (x0, y0, x1, y1), (u0, v0, u1, v1) = one["bbox"], two["bbox"]
    dx, dy = (u0 + u1 - x0 - x1) / 2, (v0 + v1 - y0 - y1) / 2
    if abs(dx) > 30 and abs(dx) >= abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    if y1 <= v0:
        return "above"
    if v1 <= y0:
        return "below"
    return None


def _sentence(number: int, groups: dict[int, list[dict]], places: list[int], rng: random.Random):
    claims: list[tuple] = []
    order = list(groups.values())
    rng.shuffle(order)
    place_category = rng.choice(places)

    def place() -> str:
        claims.append(("stuff", place_category))
        return rng.choice(_PLACES[_STUFF[STUFFS.index(place_category)]])

    if not order:
        return rng.choice(_EMPTY).format(place=place()), claims
    if len(order) == 1 or number in (0, 1):
        be = "is" if len(order[0]) == 1 else "are"
        return rng.choice(_SINGLE).format(a=_phrase(order[0], claims, rng), place=place(), be=be), claims
    if number == 2 and len(order[0]) == len(order[1]) == 1:
        relation = _relation(order[0][0], order[1][0])
        if relation:
            claims.append(("relation", order[0][0]["category"], relation, order[1][0]["category"]))
            return f"{_phrase(order[0], claims, rng)} {relation} {_phrase(order[1], claims, rng)}", claims
    if number == 4 and len(order) > 2:
        a, b, c = (_phrase(members, claims, rng) for members in order[:3])
        return rng.choice(_TRIPLE).format(a=a, b=b, c=c), claims
    a, b = (_phrase(members, claims, rng) for members in order[:2])
    template = rng.choice(_PAIR)
    return template.format(a=a, b=b, place=place() if "{place}" in template else ""), claims
