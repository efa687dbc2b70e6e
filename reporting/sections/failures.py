"""The most confident mistakes of the best system on each test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluation.scores import Scored
from reporting.artefacts import Artefacts
from reporting.gallery import image_scores, rank_of
from reporting.pictures import Picture, encode_pictures, indexed_pictures
from reporting.sections.gallery import MAX_GALLERIES, scored_systems
from reporting.words import MOST, shorten

TITLE = "Mistakes"
PICTURE_BYTES = 300_000  # of the encoded images together
_TRIED = 4_000  # sentences, so that a large test set costs little
_AT_ONCE = 500


@dataclass(frozen=True)
class Mistake:
    """A sentence for which another image scores higher than its own.

    Attributes:
        caption, wrong, right: rows in the embeddings. margin: by how much the wrong image scores higher. rank: of the right one.
    """

    caption: int
    wrong: int
    right: int
    score: float
    margin: float
    rank: int


def context(artefacts: Artefacts, queries: int, seed: int) -> dict[str, Any]:
    """`queries` mistakes of each test set, of sentences drawn by `seed`. Left out where there are none."""
    found, pictures = [], []
    for position, (testset, settings) in enumerate(list(artefacts.section("testsets").items())[:MAX_GALLERIES]):
        if queries and (one := _of(artefacts, testset, settings, queries, seed, f"e{position}-")):
            found.append(one)
            pictures += one.pop("pictures")
    if pictures:
        encode_pictures(pictures, PICTURE_BYTES)
    return {"failures": found, "failure_pictures": pictures, "shown": bool(found)}


def _of(
    artefacts: Artefacts, testset: str, settings: Mapping[str, Any], count: int, seed: int, prefix: str
) -> dict[str, Any] | None:
    scored = scored_systems(artefacts, testset, settings)
    if scored is None:
        return None
    index, systems, best = scored
    system, _, members = systems[best]
    mistakes, tried, wrong = most_confident(members, count, seed)
    if not mistakes:
        return None
    first = members[0]
    ids = list(dict.fromkeys(str(first.image_ids[row]) for m in mistakes for row in (m.wrong, m.right)))
    rows = pc.index_in(pa.array(ids, pa.string()), value_set=index.images["image_id"].combine_chunks())
    pictures = indexed_pictures(index, np.asarray(rows), prefix=prefix)
    by_id = {picture.image_id: picture for picture in pictures}
    captions = pa.array([str(first.caption_ids[m.caption]) for m in mistakes], pa.string())
    table = index.captions.filter(pc.is_in(index.captions["caption_id"], value_set=captions))
    texts = dict(zip(table["caption_id"].to_pylist(), table["text"].to_pylist(), strict=True))

    def picture(row: int) -> Picture:
        return by_id[str(first.image_ids[row])]

    return {
        "testset": testset,
        "dataset": settings.get("dataset"),
        "system": system.name,
        "share": 100 * wrong / tried,
        "tried": tried,
        "pictures": pictures,
        "mistakes": [
            {
                "text": shorten(texts.get(caption, ""), MOST),
                "mistake": mistake,
                "wrong": picture(mistake.wrong),
                "right": picture(mistake.right),
            }
            for mistake, caption in zip(mistakes, captions.to_pylist(), strict=True)
        ],
    }


def most_confident(members: Sequence[Scored], count: int, seed: int) -> tuple[list[Mistake], int, int]:
    """The mistakes of the largest margin, each image shown once.

    Args:
        members: of one system, all of the same items. count: how many at most. seed: of the sentences that are tried.

    Returns:
        the mistakes, how many sentences were tried, and of how many the first image is wrong.
    """
    first = members[0]
    total = len(first.caption_ids)
    rows = np.sort(np.random.default_rng(seed).choice(total, min(total, _TRIED), replace=False))
    found: list[Mistake] = []
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        for row, line in zip(part, image_scores(members, part), strict=True):
            right = int(first.caption_image[row])
            own = np.arange(len(line)) == right
            others = np.where(own, -np.inf, line)
            wrong = int(others.argmax())
            if len(line) > 1 and others[wrong] >= line[right]:
                margin = float(others[wrong] - line[right])
                found.append(Mistake(int(row), wrong, right, float(others[wrong]), margin, rank_of(line, own)))
    shown: list[Mistake] = []
    seen: set[int] = set()
    for mistake in sorted(found, key=lambda one: (-one.margin, one.caption)):
        if len(shown) < count and not {mistake.wrong, mistake.right} & seen:
            shown.append(mistake)
            seen |= {mistake.wrong, mistake.right}
    return shown, len(rows), len(found)
