from __future__ import annotations

import numpy as np
import pytest

from evaluation.embeddings import Embeddings
from model.ranking import ranks_from_embeddings
from reporting.gallery import Hit, answer, caption_scores, choose, choose_queries, image_scores, rank_of


def make(seed, images=30, noise=1.5, width=8):
    generator = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images, dtype=np.int32), 5)
    rows = generator.normal(size=(images, width)).astype(np.float32)
    texts = (rows[owner] + noise * generator.normal(size=(len(owner), width))).astype(np.float32)
    ids = [np.array([f"{kind}{row}" for row in range(n)]) for kind, n in (("i", images), ("c", len(owner)))]
    return Embeddings(rows, texts, owner, *ids)


def test_ranks_are_those_of_the_metrics():
    one = make(0)
    to_caption, to_image = ranks_from_embeddings(one.images, one.captions, one.caption_image)
    by_caption = image_scores([one], np.arange(150))
    by_image = caption_scores([one], np.arange(30))
    for caption in range(150):
        right = np.arange(30) == one.caption_image[caption]
        assert rank_of(by_caption[caption], right) == to_image[caption] + 1
    for image in range(30):
        assert rank_of(by_image[image], one.caption_image == image) == to_caption[image] + 1


def test_an_ensemble_scores_by_the_mean():
    a, b = make(0), make(1)
    np.testing.assert_allclose(
        image_scores([a, b], np.array([3, 7])), (a.captions[[3, 7]] @ a.images.T + b.captions[[3, 7]] @ b.images.T) / 2
    )


def test_answer_in_order():
    scores = np.array([0.1, 0.9, 0.5, 0.7, 0.3, 0.2, 0.0])
    right = np.arange(7) == 3
    found = answer(scores, right)
    assert [hit.row for hit in found.hits] == [1, 3, 2, 4, 5]
    assert found.hits[1] == Hit(3, 2, 0.7, True)
    assert (found.rank, found.missed, found.outcome) == (2, None, "found")
    late = answer(scores, np.arange(7) == 6)
    assert (late.rank, late.outcome) == (7, "missed")
    assert late.missed == Hit(6, 7, 0.0, True)


def test_a_tie_puts_the_right_item_last():
    found = answer(np.ones(8), np.arange(8) == 0)
    assert found.rank == 8
    assert not any(hit.right for hit in found.hits)
    assert found.missed.place == 8


def test_choice_mixes_right_and_wrong():
    generator = np.random.default_rng(0)
    ranks = {query: 1 + query % 20 for query in range(200)}
    chosen = choose(ranks, {query: query for query in ranks}, 8, generator)
    assert len(set(chosen)) == 8
    kinds = [ranks[query] for query in chosen]
    assert kinds == sorted(kinds)
    assert sum(rank == 1 for rank in kinds) == 4
    assert sum(1 < rank <= 5 for rank in kinds) == 2
    assert sum(rank > 5 for rank in kinds) == 2


def test_choice_fills_up_where_a_kind_is_rare_and_shows_each_group_once():
    ranks = dict.fromkeys(range(40), 1)
    chosen = choose(ranks, {query: query // 5 for query in ranks}, 6, np.random.default_rng(0))
    assert len(chosen) == len({query // 5 for query in chosen}) == 6
    few = choose(ranks, dict.fromkeys(ranks, 0), 6, np.random.default_rng(0))
    assert len(few) == 1
    assert choose({}, {}, 6, np.random.default_rng(0)) == []


@pytest.mark.parametrize("images", [3, 30, 400])
def test_queries_are_seeded_and_fit_any_size(images):
    one = make(0, images=images)
    queries = choose_queries([one], 4, seed=3)
    assert queries == choose_queries([one], 4, seed=3)
    assert len(queries.images) == min(4, images)
    owners = [int(one.caption_image[row]) for row in queries.captions]
    assert len(set(owners)) == len(owners) == min(4, images)
    if images > 3:
        assert queries != choose_queries([one], 4, seed=4)
        assert not set(owners) & set(queries.images)
