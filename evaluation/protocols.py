"""Crisscrossed Captions and ECCV Caption: metrics of COCO's 5K test set with more right answers than the original pairs.

CxC: R@1/5/10 of four retrievals, image to text and text to image, image to image and text to text; in the last two the
query itself is not in the gallery, and for text the captions of the same image are right answers too (Parekh et al. 2021,
as evaluated by VSE-infinity). ECCV Caption: mAP@R, R-precision and R@1 in both directions (Chun et al. 2022; Musgrave
et al. 2020 for mAP@R). A query has several right answers: its rank is that of the best. Queries without one are left
out. A tie counts as a miss, as everywhere. Scores are compared block by block and never held together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core.console import UserError
from core.scores import SUMMED
from evaluation.bootstrap import LEVEL, interval, resample_means, resample_ranks
from evaluation.positives import Positives, item_key
from evaluation.scores import PairScores, Scored
from model.ranking import DEFAULT_BLOCK, equal_rows, recalls

DIRECTIONS = {"i2t": ("images", "captions"), "t2i": ("captions", "images")}
DIRECTIONS |= {"i2i": ("images", "images"), "t2t": ("captions", "captions")}


def places_of_positives(
    queries: np.ndarray,
    gallery: np.ndarray,
    positives: Sequence[np.ndarray],
    *,
    own: np.ndarray | None = None,
    most: int | None = None,
    block: int = DEFAULT_BLOCK,
) -> np.ndarray:
    """The places at which each query's right answers are retrieved, scored by inner product.

    Args:
        queries: (Q, E) floats. gallery: (M, E) floats.
        positives: per query, the gallery rows of its right answers: at least one, without repeats.
        own: (Q,) the gallery row that is the query itself and is not retrieved; None for none.
        most: only the first so many right answers are needed. block: the most scores held at a time.

    Returns:
        (Q, P) int64, 0 is first and each row ascends; P is the largest number of right answers (or `most`). A query with
        fewer has M in the rest. Wrong items that score equal are placed before right ones.

    Raises:
        ValueError: NaN or infinite embeddings.
    """
    for name, values in (("queries", queries), ("gallery", gallery)):
        if not np.isfinite(values.sum(axis=1, dtype=np.float64)).all():
            raise ValueError(f"{name} holds NaN or infinite values; the model that made them has diverged")
    # Matrix products may round equal rows differently; scored once, they tie exactly.
    column = equal_rows(gallery)
    distinct = gallery if column is None else gallery[np.unique(column, return_index=True)[1]]

    def scores_of(rows: slice) -> np.ndarray:
        scores = queries[rows] @ distinct.T
        return scores if column is None else scores[:, column]

    return _places(scores_of, len(queries), len(gallery), positives, own=own, most=most, block=block)


def _places(
    scores_of: Callable[[slice], np.ndarray],
    queries: int,
    gallery: int,
    positives: Sequence[np.ndarray],
    *,
    own: np.ndarray | None = None,
    most: int | None = None,
    block: int = DEFAULT_BLOCK,
) -> np.ndarray:
    """`places_of_positives` by the (q, M) scores, to be changed at will, of a slice of the queries."""
    counts = np.array([len(rows) for rows in positives])
    width = int(counts.max()) if most is None else min(most, int(counts.max()))
    places = np.full((queries, width), gallery, dtype=np.int64)
    step = max(1, block // max(1, gallery))
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        scores = scores_of(slice(start, stop))
        local = np.arange(stop - start)
        if own is not None:
            scores[local, own[start:stop]] = -np.inf
        rows = np.repeat(local, counts[start:stop])
        columns = np.concatenate(positives[start:stop])
        each = counts[start:stop]
        right = np.full((stop - start, each.max()), -np.inf, dtype=scores.dtype)
        right[rows, np.arange(len(rows)) - np.repeat(np.cumsum(each) - each, each)] = scores[rows, columns]
        right = -np.sort(-right, axis=1)
        # Only wrong items are counted below; the right ones before it are known.
        scores[rows, columns] = -np.inf
        for k in range(min(width, right.shape[1])):
            wrong = np.count_nonzero(scores >= right[:, k, None], axis=1)
            places[start:stop, k] = np.where(k < each, wrong + k, gallery)
    return places


def protocol_metrics(embeddings: Scored, positives: Positives, *, resamples: int = 0, seed: int = 0) -> dict[str, Any]:
    """The metrics of one protocol on embeddings of its test set.

    Returns:
        Per retrieval `{queries, ...}` with, for CxC, `r1, r5, r10, medr, meanr` as `model.ranking.recalls` and, for ECCV
        Caption, `map_at_r, r_precision, r1` in %; for CxC `rsum` of image to text and text to image; and `source`, the
        files of the positives; of pair scores also `not_defined`, the retrievals that they know nothing of. With `resamples`, also `intervals`: see `evaluation.bootstrap`.

    Raises:
        UserError: the test set is not the one that the protocol was made for.
    """
    rows = _rows_by_key(embeddings, positives)
    owner = embeddings.caption_image.astype(np.int64)
    images = len(embeddings.image_ids)
    images_of = {"images": np.arange(images), "captions": owner}
    result: dict[str, Any] = {"source": positives.source}
    intervals: dict[str, Any] = {}
    sums: list[np.ndarray] = []
    for direction, answers in positives.retrievals.items():
        kinds = DIRECTIONS[direction]
        most = 1 if positives.protocol == "cxc" else None
        if isinstance(embeddings, PairScores) and kinds[0] == kinds[1]:
            result.setdefault("not_defined", []).append(direction)  # a pair is an image and a caption
            continue
        query_rows, answer_rows, listed = _as_rows(answers, *(rows[kind] for kind in kinds))
        if direction == "t2t":
            query_rows, answer_rows = _with_captions_of_one_image(query_rows, answer_rows, owner)
        if not len(query_rows):
            continue
        if isinstance(embeddings, PairScores):
            places = _pair_places(embeddings, direction, query_rows, answer_rows, most)
        else:
            places = places_of_positives(
                getattr(embeddings, kinds[0])[query_rows],
                getattr(embeddings, kinds[1]),
                answer_rows,
                own=query_rows if kinds[0] == kinds[1] else None,
                most=most,
            )
        image, draws = images_of[kinds[0]][query_rows], {"resamples": resamples, "seed": seed}
        if positives.protocol == "cxc":
            result[direction] = {"queries": len(query_rows)} | recalls(places[:, 0])
            samples = resample_ranks(places[:, 0], image, images, **draws) if resamples else {}
        else:
            values = precision_scores(places, listed)
            result[direction] = {"queries": len(query_rows)} | {k: float(v.mean()) for k, v in values.items()}
            samples = {}
            if resamples:
                means = resample_means(np.stack(list(values.values()), 1), image, images, **draws)
                samples = dict(zip(values, means.T, strict=True))
        intervals[direction] = {name: interval(drawn) for name, drawn in samples.items()}
        if positives.protocol == "cxc" and direction in ("i2t", "t2i"):
            result["rsum"] = result.get("rsum", 0.0) + sum(result[direction][name] for name in SUMMED)
            sums += [samples[name] for name in SUMMED] if samples else []
    if sums:
        intervals["rsum"] = interval(sum(sums))
    if resamples:
        result["intervals"] = {"level": LEVEL, "resamples": resamples, "seed": seed, **intervals}
    return result


def _pair_places(
    scores: PairScores, direction: str, query_rows: np.ndarray, answer_rows: list[np.ndarray], most: int | None
) -> np.ndarray:
    of = scores.of_images if direction == "i2t" else scores.of_captions
    gallery = scores.similarity.shape[direction == "i2t"]
    return _places(lambda rows: of(query_rows[rows]).copy(), len(query_rows), gallery, answer_rows, most=most)


def precision_scores(places: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """`map_at_r`, `r_precision` and `r1` of every query, in %, each (Q,) float64.

    Args:
        places: (Q, P) of all right answers, see `places_of_positives`.
        right: (Q,) how many each query has: its R. Those that are not in the gallery count as not found.

    With p_1 < p_2 < ... the places from 1: AP@R = 1/R sum over the p_i <= R of i / p_i, R-precision = the share of R
    that the p_i <= R make up.
    """
    right = np.asarray(right)
    found = places < right[:, None]
    precision = np.arange(1, places.shape[1] + 1) / (places + 1)
    return {
        "map_at_r": 100.0 * (precision * found).sum(axis=1) / right,
        "r_precision": 100.0 * found.sum(axis=1) / right,
        "r1": 100.0 * (places[:, 0] == 0),
    }


def _rows_by_key(embeddings: Scored, positives: Positives) -> dict[str, dict[str, int]]:
    """Rows of the test set's images and captions by `item_key`; the gallery must be the protocol's, whole and alone."""
    rows, problems = {}, []
    for kind, ids, expected in (
        ("images", embeddings.image_ids, positives.images),
        ("captions", embeddings.caption_ids, positives.captions),
    ):
        rows[kind] = {item_key(item): row for row, item in enumerate(ids)}
        if len(rows[kind]) < len(ids):
            problems.append(f"{len(ids) - len(rows[kind])} of its {len(ids)} {kind} have the same id as another one")
        for what, names in (
            (
                f"of the {len(expected)} {kind} of {positives.protocol!r} are not in the test set",
                expected - rows[kind].keys(),
            ),
            (f"of its {len(ids)} {kind} are not among those of {positives.protocol!r}", rows[kind].keys() - expected),
        ):
            if names:
                shown = ", ".join(sorted(names, key=lambda name: (len(name), name))[:5])
                problems.append(f"{len(names)} {what}: {shown}{', ...' if len(names) > 5 else ''}")
    if problems:
        raise UserError(
            f"the protocol {positives.protocol!r} cannot score this test set:\n  "
            + "\n  ".join(problems)
            + "\nit is made for all of COCO's 5K test split, with COCO's image ids and, as caption ids, COCO's annotation "
            "ids (Karpathy's cocoid and sentid); take the protocol out of the test set's `protocols`, or index that split"
        )
    return rows


def _as_rows(
    answers: Mapping[str, Sequence[str]], query_row: Mapping[str, int], gallery_row: Mapping[str, int]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Queries in the order of their rows, the gallery rows of their right answers, and how many were listed.

    ECCV Caption lists two captions that are not among the five of their images: they cannot be found but count.
    """
    found = [
        (query_row[query], np.array([gallery_row[answer] for answer in right if answer in gallery_row]), len(right))
        for query, right in answers.items()
        if query in query_row
    ]
    found = sorted((entry for entry in found if len(entry[1])), key=lambda entry: entry[0])
    rows, right, listed = zip(*found, strict=True) if found else ((), (), ())
    return np.array(rows, dtype=np.int64), list(right), np.array(listed, dtype=np.int64)


def _with_captions_of_one_image(
    query_rows: np.ndarray, answer_rows: list[np.ndarray], owner: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Text to text: every caption is a query, and the other captions of its image are right answers beside those given."""
    given = dict(zip(query_rows.tolist(), answer_rows, strict=True))
    order = np.argsort(owner, kind="stable")
    of_image = np.split(order, np.cumsum(np.bincount(owner))[:-1])
    none = np.zeros(0, dtype=np.int64)
    everything = [
        np.setdiff1d(np.union1d(of_image[image], given.get(caption, none)), [caption])
        for caption, image in enumerate(owner.tolist())
    ]
    asked = [caption for caption, right in enumerate(everything) if len(right)]
    return np.array(asked, dtype=np.int64), [everything[caption] for caption in asked]
