"""Which queries the gallery shows and what each system found for them. Only a sample of queries is ever ranked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.scores import Scored

FOUND = 5  # results shown per query, and the rank up to which the right one counts as found
_CANDIDATES = 240  # captions (and images) tried as queries, so that a large test set costs little


@dataclass(frozen=True)
class Hit:
    """One result: `row` of the image or caption in the embeddings, its place from 1, its score, and if it is right."""

    row: int
    place: int
    score: float
    right: bool


@dataclass(frozen=True)
class Answer:
    """What a system found for a query: the first hits, the right item's rank from 1, that item if not among them."""

    hits: tuple[Hit, ...]
    rank: int
    missed: Hit | None

    @property
    def outcome(self) -> str:
        """`first`, `found` (within the first five) or `missed`."""
        return "first" if self.rank == 1 else "found" if self.rank <= FOUND else "missed"


def image_scores(members: Sequence[Scored], caption_rows: np.ndarray) -> np.ndarray:
    """(Q, N) mean similarity of the given captions with every image, over the members of an ensemble."""
    return sum(member.of_captions(caption_rows) for member in members) / len(members)


def caption_scores(members: Sequence[Scored], image_rows: np.ndarray) -> np.ndarray:
    """(Q, M) mean similarity of the given images with every caption, over the members of an ensemble."""
    return sum(member.of_images(image_rows) for member in members) / len(members)


def rank_of(scores: np.ndarray, right: np.ndarray) -> int:
    """1 + the number of wrong items that score at least as high as the best right one: a tie counts as a miss."""
    return 1 + int((scores[~right] >= scores[right].max()).sum())


def answer(scores: np.ndarray, right: np.ndarray) -> Answer:
    """The results for one query.

    Args:
        scores: (items,) floats. right: (items,) bool, at least one true.
    """
    # Among equal scores the wrong ones come first, as the rank says.
    order = np.lexsort((right, -scores))
    places = [Hit(int(row), place, float(scores[row]), bool(right[row])) for place, row in enumerate(order[:FOUND], 1)]
    rank = rank_of(scores, right)
    missed = None
    if not any(hit.right for hit in places):
        place = int(np.flatnonzero(right[order])[0])
        row = int(order[place])
        missed = Hit(row, place + 1, float(scores[row]), True)
    return Answer(tuple(places), rank, missed)


def choose(
    ranks: Mapping[int, int], groups: Mapping[int, Hashable], count: int, generator: np.random.Generator
) -> list[int]:
    """Queries for show: about half found first, a quarter found later among the five and a quarter missed.

    Args:
        ranks: query -> rank of the right item. groups: query -> what must not occur twice, such as the caption's image.
        count: how many. generator: decides among equals.

    Returns:
        at most `count` queries, by rank. Where a kind is rare, others take its place.
    """
    shuffled = [int(query) for query in generator.permutation(np.array(sorted(ranks), dtype=np.int64))]
    kinds = {"first": [], "found": [], "missed": []}
    for query in shuffled:
        kinds["first" if ranks[query] == 1 else "found" if ranks[query] <= FOUND else "missed"].append(query)
    wanted = {"found": count // 4 or int(count > 2), "missed": count // 4 or int(count > 1)}
    wanted["first"] = count - sum(wanted.values())
    chosen: list[int] = []
    seen: set[Hashable] = set()

    def take(queries: Sequence[int], limit: int) -> None:
        for query in queries:
            if limit <= 0:
                return
            if query not in chosen and groups[query] not in seen:
                chosen.append(query)
                seen.add(groups[query])
                limit -= 1

    for kind, queries in kinds.items():
        take(queries, wanted[kind])
    take(shuffled, count - len(chosen))
    return sorted(chosen, key=lambda query: (ranks[query], query))


@dataclass(frozen=True)
class Queries:
    """Rows (in the embeddings) of the captions and of the images shown as queries on one test set."""

    captions: list[int]
    images: list[int]


def choose_queries(members: Sequence[Scored], count: int, seed: int) -> Queries:
    """Queries of both directions, chosen by what the given system makes of a random sample of the test set.

    Args:
        members: of one system, all of the same items. count: queries per direction. seed: of sample and choice.
    """
    first = members[0]
    generator = np.random.default_rng(seed)
    captions, images = len(first.caption_ids), len(first.image_ids)
    owner = first.caption_image
    rows = np.sort(generator.choice(captions, min(captions, _CANDIDATES), replace=False))
    scores = image_scores(members, rows)
    ranks = {}
    for row, line in zip(rows, scores, strict=True):
        right = np.zeros(images, dtype=bool)
        right[owner[row]] = True
        ranks[int(row)] = rank_of(line, right)
    chosen_captions = choose(ranks, {row: int(owner[row]) for row in ranks}, count, generator)
    # Other images than those whose captions have just been chosen: more to see.
    shown = {int(owner[row]) for row in chosen_captions}
    captioned = np.unique(owner)
    others = np.array([row for row in captioned if row not in shown])
    pool = others if len(others) >= count else captioned
    rows = np.sort(generator.choice(pool, min(len(pool), _CANDIDATES), replace=False))
    scores = caption_scores(members, rows)
    ranks = {int(row): rank_of(line, owner == row) for row, line in zip(rows, scores, strict=True)}
    return Queries(chosen_captions, choose(ranks, {row: row for row in ranks}, count, generator))
