"""Captions of embedded scenes. Every sentence is built from facts, which are kept beside it."""

from __future__ import annotations

import random

from catalog.scenes_things import COLORS, KINDS, STUFF, STUFFS, THINGS

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


def describe(segments: list[dict], rng: random.Random) -> tuple[list[str], list[list[tuple]]]:
    """Five captions and their facts."""
    groups: dict[int, list[dict]] = {}
    for s in segments:
        if s["is_thing"] and s["visible"] >= SEEN:
            groups.setdefault(s["category"], []).append(s)
    stuff = [s["category"] for s in segments if not s["is_thing"] and s["area"] >= 300]
    places = [c for c in stuff if STUFF[STUFFS.index(c)] != "sky"] or stuff
    captions, facts = [], []
    for number in range(5):
        sentence, claims = _sentence(number, groups, places, rng)
        captions.append(sentence)
        facts.append(claims)
    return captions, facts


def _phrase(members: list[dict], claims: list[tuple], rng: random.Random) -> str:
    """`two red cars`, `a small dog`: some details are left out now and then, as people do."""
    first = members[0]
    kind = KINDS[THINGS.index(first["category"])]
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
        return rng.choice(_PLACES[STUFF[STUFFS.index(place_category)]])

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
