"""The embedded dataset: small captioned scenes in COCO's vocabulary, drawn from a seed with exact ground truth."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from catalog.categories import BY_NAME

STYLES = ("day", "dusk")
DETECTOR_SEED = 424_242  # the embedded detectors learn from this seed; datasets must use another
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
_RGB = {
    "red": (200, 40, 38), "orange": (236, 128, 28), "yellow": (240, 212, 50), "green": (40, 150, 60),
    "blue": (45, 85, 205), "purple": (130, 58, 165), "white": (238, 238, 236), "black": (38, 36, 40),
}  # fmt: skip
SCALE = 2  # drawn at twice the size, then averaged down


class Pen:
    """Draws one object in unit coordinates on its own transparent patch of (w, h) pixels."""

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
    p.draw.arc([round(p.w * 0.2), -p.h // 4, round(p.w * 1.3), round(p.h * 1.1)], 80, 260, fill=p.tone(0.55), width=max(1, p.w // 14))


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
    name: str
    noun: str
    plural: str
    draw: Callable[[Pen], None]
    aspect: float  # width / height
    height: tuple[int, int]  # pixels
    place: str  # ground | sky | sea


_KINDS = (
    _Kind("person", "person", "people", _person, 0.42, (44, 92), "ground"),
    _Kind("car", "car", "cars", _car, 2.2, (24, 46), "ground"),
    _Kind("bus", "bus", "buses", _bus, 2.1, (36, 62), "ground"),
    _Kind("airplane", "airplane", "airplanes", _airplane, 1.9, (26, 48), "sky"),
    _Kind("boat", "boat", "boats", _boat, 1.05, (36, 70), "sea"),
    _Kind("bird", "bird", "birds", _bird, 1.3, (20, 40), "sky"),
    _Kind("cat", "cat", "cats", _cat, 0.95, (30, 58), "ground"),
    _Kind("dog", "dog", "dogs", _dog, 1.35, (30, 56), "ground"),
    _Kind("umbrella", "umbrella", "umbrellas", _umbrella, 1.05, (34, 64), "ground"),
    _Kind("kite", "kite", "kites", _kite, 0.78, (30, 58), "sky"),
    _Kind("sports ball", "ball", "balls", _ball, 1.0, (18, 36), "ground"),
    _Kind("chair", "chair", "chairs", _chair, 0.72, (36, 66), "ground"),
    _Kind("potted plant", "potted plant", "potted plants", _plant, 0.7, (36, 66), "ground"),
    _Kind("traffic light", "traffic light", "traffic lights", _light, 0.4, (44, 84), "ground"),
)
_STUFF_NAMES = {
    "sky-other-merged": "sky", "grass-merged": "grass", "sand": "sand", "road": "road", "snow": "snow", "sea": "sea",
    "mountain-merged": "mountains", "tree-merged": "trees",
}  # fmt: skip
THINGS = tuple(BY_NAME[k.name].index for k in _KINDS)
STUFFS = tuple(BY_NAME[n].index for n in _STUFF_NAMES)

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
    """One scene: `image` uint8 (H, W, 3) RGB; `panoptic` uint16 (H, W) segment ids; `segments` dicts with id, category
    (0..132), is_thing, bbox (x0, y0, x1, y1), area, color (index into COLORS or None), size; `captions` five sentences;
    `facts` what each caption claims."""

    image: np.ndarray
    panoptic: np.ndarray
    segments: list[dict]
    captions: list[str]
    facts: list[list[tuple]] = field(default_factory=list)


def _mountain(rng, w, top, bottom):
    x, points = 0, [(0, bottom)]
    while x < w:
        points.append((x, rng.randint(top, (top + bottom) // 2 + (bottom - top) // 4)))
        x += rng.randint(w // 7, w // 3)
    return [*points, (w, rng.randint(top, bottom)), (w, bottom)]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Shared area of two (x, y, w, h) boxes over the smaller one's area."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, w) * max(0, h) / min(a[2] * a[3], b[2] * b[3])


def render_scene(seed: int, index: int, style: str = "day") -> Scene:
    """Draw scene `index` of `seed`; the same arguments give the same pixels and captions everywhere."""
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(STYLES)}")
    rng = random.Random(f"{seed}/{index}/{style}")
    palette = _PALETTES[style]
    short, long = rng.randint(150, 180), rng.randint(180, 240)
    w, h = (long, short) if rng.random() < 0.65 else ((short, long) if rng.random() < 0.7 else (short, short))
    jitter = lambda c, a=14: tuple(max(0, min(255, v + rng.randint(-a, a))) for v in c)  # noqa: E731
    canvas = Image.new("RGB", (w * SCALE, h * SCALE), jitter(rng.choice(palette["sky"])))
    draw = ImageDraw.Draw(canvas)
    stuff = np.zeros((h, w), np.uint8)  # index into _STUFF_NAMES
    names = list(_STUFF_NAMES.values())

    # Background: sky, an optional band of mountains or trees, optional sea, ground.
    horizon = round(h * rng.uniform(0.34, 0.58))
    ground = rng.choice(["grass", "sand", "road", "snow", "grass", "sea"] if style == "day" else ["road", "sand", "sea", "grass", "road", "snow"])
    stuff[horizon:] = names.index(ground)
    top = jitter(rng.choice(palette["sky"]))
    bottom = tuple((a + 255) // 2 for a in top) if style == "day" else tuple(min(255, a + 45) for a in top)
    for y in range(0, horizon * SCALE, 4):
        t = y / (horizon * SCALE)
        draw.rectangle([0, y, w * SCALE, y + 4], fill=tuple(round(a + (b - a) * t) for a, b in zip(top, bottom)))
    band = rng.choice(["mountains", "trees", None])
    mask = Image.new("L", (w, h), 0)
    if band == "mountains":
        points = _mountain(rng, w, max(4, horizon - h // 4), horizon)
        draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=jitter(rng.choice(palette[band])))
        ImageDraw.Draw(mask).polygon(points, fill=255)
    elif band == "trees":
        x, base = -6, rng.choice(palette[band])
        pen = ImageDraw.Draw(mask)
        while x < w:
            r = rng.randint(9, 20)
            box = [x, horizon - r - rng.randint(4, 14), x + 2 * r, horizon + 3]
            draw.ellipse([v * SCALE for v in box], fill=jitter(base, 18))
            pen.ellipse(box, fill=255)
            x += r + rng.randint(0, 6)
    if band:
        stuff[(np.asarray(mask) > 0) & (np.arange(h)[:, None] < horizon)] = names.index(band)
    color = jitter(rng.choice(palette[ground]))
    draw.rectangle([0, horizon * SCALE, w * SCALE, h * SCALE], fill=color)
    sea_bottom = None
    if ground == "sand" and rng.random() < 0.7:
        sea_bottom = horizon + round((h - horizon) * rng.uniform(0.25, 0.45))
        draw.rectangle([0, horizon * SCALE, w * SCALE, sea_bottom * SCALE], fill=jitter(rng.choice(palette["sea"])))
        stuff[horizon:sea_bottom] = names.index("sea")
    # Texture of the ground: strokes whose length and direction belong to the material.
    for _ in range(140):
        x, y = rng.randrange(w * SCALE), rng.randrange(horizon * SCALE, h * SCALE)
        kind = "sea" if ground == "sea" or (sea_bottom and y < sea_bottom * SCALE) else ground
        shade = rng.uniform(0.8, 1.2)
        base = canvas.getpixel((x, y))
        tone = tuple(max(0, min(255, round(v * shade))) for v in base)
        if kind == "grass":
            draw.line([x, y, x + rng.randint(-3, 3), y - rng.randint(4, 10)], fill=tone, width=2)
        elif kind == "sea":
            draw.arc([x - 12, y - 3, x + 12, y + 5], 190, 350, fill=tuple(min(255, v + 40) for v in base), width=2)
        elif kind == "snow":
            draw.ellipse([x - 8, y - 2, x + 8, y + 2], fill=tone)
        else:
            draw.point([x, y, x + 1, y], fill=tone)
            draw.ellipse([x, y, x + 2, y + 2], fill=tone)
    if ground == "road":
        y = (horizon + h) // 2 * SCALE
        for x in range(rng.randrange(30), w * SCALE, 70):
            draw.rectangle([x, y, x + 36, y + 5], fill=(228, 222, 190))

    # Objects: groups share kind and colour.
    water = ground == "sea" or sea_bottom is not None
    kinds = [k for k in _KINDS if (k.place != "sea" or water) and not (k.place == "ground" and ground == "sea")]
    placed: list[dict] = []
    target = rng.randint(2, 6)
    attempts = 0
    while len(placed) < target and attempts < 14:
        attempts += 1
        kind = rng.choice(kinds)
        color_index = rng.randrange(len(COLORS))
        size = rng.choice(["small", "", "large"])
        if any(o["kind"] is kind for o in placed):
            continue
        for _ in range(min(target - len(placed), rng.choice([1, 1, 1, 1, 2, 3]))):
            low, high = kind.height
            span = (high - low) / 3
            start = {"small": low, "": low + span, "large": low + 2 * span}[size]
            oh = round(start + rng.random() * span)
            ow = max(8, round(oh * kind.aspect * rng.uniform(0.92, 1.08)))
            for _ in range(8):
                x = rng.randint(-ow // 8, max(1, w - ow * 7 // 8))
                if kind.place == "sky":
                    y = rng.randint(0, max(1, horizon - oh // 2))
                elif kind.place == "sea":
                    low_y, high_y = horizon, (h if ground == "sea" else sea_bottom)
                    y = rng.randint(low_y, high_y) - oh + (4 if ground != "sea" else 0)
                else:
                    first = horizon + (h - horizon) // 6 if sea_bottom is None else min(h - 2, sea_bottom + 4)
                    y = rng.randint(first, h) - oh
                if all(_overlap((x, y, ow, oh), o["box"]) <= 0.4 for o in placed):
                    break
            else:
                continue  # no room: objects may hide each other in part, not wholly
            placed.append({"kind": kind, "color": color_index, "size": size, "box": (x, y, ow, oh), "flip": rng.random() < 0.5})
    placed.sort(key=lambda o: (o["kind"].place == "ground", o["box"][1] + o["box"][3]))
    owner = np.zeros((h, w), np.int32)  # 0 background, else index + 1
    whole = []
    for i, o in enumerate(placed):
        x, y, ow, oh = o["box"]
        pen = Pen(ow * SCALE, oh * SCALE, jitter(_RGB[COLORS[o["color"]]], 16), rng)
        o["kind"].draw(pen)
        patch = pen.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if o["flip"] else pen.image
        canvas.paste(patch.convert("RGB"), (x * SCALE, y * SCALE), patch.getchannel("A"))
        alpha = np.asarray(patch.getchannel("A").reduce(SCALE)) >= 128
        full = int(alpha.sum())
        x0, y0, x1, y1 = max(0, x), max(0, y), min(w, x + ow), min(h, y + oh)
        if x1 <= x0 or y1 <= y0:
            whole.append(full)
            continue
        region = owner[y0:y1, x0:x1]
        region[alpha[y0 - y : y1 - y, x0 - x : x1 - x]] = i + 1
        whole.append(full)

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
    array = np.clip(np.rint(array), 0, 255).astype(np.uint8)

    panoptic = np.zeros((h, w), np.uint16)
    segments: list[dict] = []

    def add(mask: np.ndarray, **facts) -> None:
        ys, xs = np.nonzero(mask)
        segment = {"id": len(segments) + 1, **facts, "area": len(ys),
                   "bbox": [float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)]}  # fmt: skip
        panoptic[mask] = segment["id"]
        segments.append(segment)

    for name_index, category in enumerate(STUFFS):
        mask = (stuff == name_index) & (owner == 0)
        if mask.any():
            add(mask, category=category, is_thing=False, color=None, size=None)
    visible = []
    for i, (o, full) in enumerate(zip(placed, whole, strict=True)):
        mask = owner == i + 1
        if mask.any():
            o["visible"] = float(mask.sum()) / full
            add(mask, category=BY_NAME[o["kind"].name].index, is_thing=True, color=o["color"], size=o["size"])
            o["segment"] = segments[-1]
            if o["visible"] >= 0.45:
                visible.append(o)
    return Scene(array, panoptic, segments, _captions(visible, [names[i] for i in np.unique(stuff[owner == 0])], style, rng))


_NUMBERS = {1: "a", 2: "two", 3: "three"}


def _captions(objects: list[dict], backgrounds: list[str], style: str, rng: random.Random) -> list[str]:
    groups: dict[tuple, list[dict]] = {}
    for o in objects:
        groups.setdefault((o["kind"].noun, o["color"]), []).append(o)

    def article(text: str) -> str:
        return ("an " if text[0] in "aeiou" else "a ") + text

    def phrase(key, with_size=False) -> str:
        noun, color = key
        members = groups[key]
        if len(members) > 1:
            return f"{_NUMBERS.get(len(members), str(len(members)))} {COLORS[color]} {members[0]['kind'].plural}"
        size = members[0]["size"] if with_size else ""
        return article(f"{size} {COLORS[color]} {noun}".strip())

    keys = list(groups)
    scenery = [b for b in backgrounds if b != "sky"] or ["sky"]
    result: list[str] = []
    for k in range(5):
        rng.shuffle(keys)
        place = rng.choice(scenery)
        where = {"sea": "near the sea", "mountains": "with mountains behind", "trees": "with trees behind", "road": "on a road",
                 "sky": "under the sky"}.get(place, f"on the {place}")  # fmt: skip
        a = phrase(keys[0], True) if keys else "nothing"
        b = phrase(keys[1]) if len(keys) > 1 else None
        if not keys:
            result.append(rng.choice(["an empty scene {}", "a quiet view {}", "nobody is there {}"]).format(where))
            continue
        if b is None or k == 0:
            result.append(rng.choice(["{} {}", "there is {} {}", "a picture of {} {}"]).format(a, where))
            continue
        one, two = groups[keys[0]][0], groups[keys[1]][0]
        single = len(groups[keys[0]]) == 1 and len(groups[keys[1]]) == 1
        relation = None
        if single:
            (x0, y0, x1, y1), (u0, v0, u1, v1) = one["segment"]["bbox"], two["segment"]["bbox"]
            dx, dy = (u0 + u1 - x0 - x1) / 2, (v0 + v1 - y0 - y1) / 2
            if abs(dx) > 30 and abs(dx) >= abs(dy):
                relation = "to the left of" if dx > 0 else "to the right of"
            elif y1 <= v0:
                relation = "above"
            elif v1 <= y0:
                relation = "below"
        if relation and k in (1, 2):
            result.append(f"{a} {relation} {b}")
        elif len(keys) > 2 and k >= 3:
            result.append(rng.choice(["{}, {} and {}", "a scene with {}, {} and {}"]).format(phrase(keys[0]), b, phrase(keys[2])))
        else:
            result.append(rng.choice(["{a} and {b} {w}", "{a} together with {b}", "{w}, {a} and {b}"]).format(a=a, b=b, w=where))
    return result
