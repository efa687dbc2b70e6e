"""What can stand in an embedded scene: things, each with its drawing and its words, and the stuff around them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from catalog.categories import BY_NAME

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
RGB = {
    "red": (200, 40, 38), "orange": (236, 128, 28), "yellow": (240, 212, 50), "green": (40, 150, 60),
    "blue": (45, 85, 205), "purple": (130, 58, 165), "white": (238, 238, 236), "black": (38, 36, 40),
}  # fmt: skip


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
class Kind:
    """A thing that can be drawn: COCO name, words for one and for several, how, and where it belongs."""

    name: str
    names: tuple[str, ...]
    plurals: tuple[str, ...]
    draw: Callable[[Pen], None]
    aspect: float  # width / height
    height: tuple[int, int]  # pixels, smallest and largest
    place: str  # ground | sky | sea


KINDS = (
    Kind("person", ("person",), ("people",), _person, 0.42, (44, 92), "ground"),
    Kind("car", ("car",), ("cars",), _car, 2.2, (24, 46), "ground"),
    Kind("bus", ("bus",), ("buses",), _bus, 2.1, (36, 62), "ground"),
    Kind("airplane", ("airplane", "plane"), ("airplanes", "planes"), _airplane, 1.9, (26, 48), "sky"),
    Kind("boat", ("boat", "sailboat"), ("boats", "sailboats"), _boat, 1.05, (36, 70), "sea"),
    Kind("bird", ("bird",), ("birds",), _bird, 1.3, (20, 40), "sky"),
    Kind("cat", ("cat", "kitten"), ("cats", "kittens"), _cat, 0.95, (30, 58), "ground"),
    Kind("dog", ("dog", "puppy"), ("dogs", "puppies"), _dog, 1.35, (30, 56), "ground"),
    Kind("umbrella", ("umbrella", "parasol"), ("umbrellas", "parasols"), _umbrella, 1.05, (34, 64), "ground"),
    Kind("kite", ("kite",), ("kites",), _kite, 0.78, (30, 58), "sky"),
    Kind("sports ball", ("ball",), ("balls",), _ball, 1.0, (18, 36), "ground"),
    Kind("chair", ("chair", "seat"), ("chairs", "seats"), _chair, 0.72, (36, 66), "ground"),
    Kind("potted plant", ("potted plant", "plant"), ("potted plants", "plants"), _plant, 0.7, (36, 66), "ground"),
    Kind("traffic light", ("traffic light",), ("traffic lights",), _light, 0.4, (44, 84), "ground"),
)
STUFF_NAMES = {
    "sky-other-merged": "sky",
    "grass-merged": "grass",
    "sand": "sand",
    "road": "road",
    "snow": "snow",
    "sea": "sea",
    "mountain-merged": "mountains",
    "tree-merged": "trees",
}
STUFF = list(STUFF_NAMES.values())
THINGS = tuple(BY_NAME[k.name].index for k in KINDS)
STUFFS = tuple(BY_NAME[n].index for n in STUFF_NAMES)
