from __future__ import annotations

import numpy as np
import pytest

from core.console import UserError
from evaluation.bootstrap import interval
from evaluation.compare import compare
from evaluation.embeddings import Embeddings
from evaluation.ensemble import ensemble_ranks
from evaluation.metrics import all_metrics, metrics_and_ranks
from evaluation.ranks import Ranked, items_digest, read_ranks, write_ranks
from evaluation.scores import PairScores
from model.ranking import recalls


def ranked(seed=0, images=40, each=3, rate=0.1, items="same") -> Ranked:
    """Ranks of a made-up system; the same `seed` makes the same images hard, whatever the `rate`."""
    hard, own = np.random.default_rng(9), np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), each)
    difficulty = hard.exponential(size=images)

    def draw(image):
        return np.floor(difficulty[image] * own.exponential(size=len(image)) / rate).astype(np.int32)

    return Ranked(draw(np.arange(images)), draw(owner), owner.astype(np.int32), items)


def rsum(one: Ranked, drawn: np.ndarray) -> float:
    captions = np.concatenate([one.captions[one.caption_image == image] for image in drawn])
    parts = [recalls(one.images[drawn]), recalls(captions)]
    return sum(part[key] for part in parts for key in ("r1", "r5", "r10"))


def test_differences_are_those_written_out():
    systems = {"one": ranked(1), "two": ranked(2, rate=0.4), "three": ranked(3, rate=0.2)}
    found = compare(systems, resamples=60, seed=4)
    assert [{one.better, one.other} for one in found] == [{"one", "two"}, {"one", "three"}, {"two", "three"}]
    generator = np.random.default_rng(4)
    draws = [generator.integers(0, 40, (1, 40))[0] for _ in range(60)]
    for one in found:
        pair = systems[one.better], systems[one.other]
        whole = [rsum(system, np.arange(40)) for system in pair]
        assert one.rsum == pytest.approx(whole[0] - whole[1]) and one.rsum >= 0
        expected = interval(np.array([rsum(pair[0], drawn) - rsum(pair[1], drawn) for drawn in draws]))
        assert [one.low, one.high] == pytest.approx(expected)


def test_of_equals_about_one_in_twenty_is_told_apart_and_a_better_one_is_seen():
    equal = [compare({"a": ranked(2 * n), "b": ranked(2 * n + 1)}, resamples=200)[0] for n in range(200)]
    assert 2 <= sum(one.told_apart for one in equal) <= 24
    better = [compare({"a": ranked(n, rate=0.1), "b": ranked(n + 99, rate=0.5)}, resamples=200)[0] for n in range(20)]
    assert all(one.better == "b" and one.told_apart for one in better)


def test_the_paired_interval_is_narrower_than_that_of_two_separate_samples():
    systems = {"a": ranked(1, images=200), "b": ranked(2, images=200)}
    paired = compare(systems, resamples=400)[0]
    one, two = (np.random.default_rng(n) for n in (5, 6))
    draws = [(one.integers(0, 200, 200), two.integers(0, 200, 200)) for _ in range(400)]
    apart = interval(np.array([rsum(systems["a"], a) - rsum(systems["b"], b) for a, b in draws]))
    assert paired.high - paired.low < 0.8 * (apart[1] - apart[0])


def test_only_systems_of_the_same_images_are_compared():
    systems = {"a": ranked(1), "b": ranked(2, images=39, items="fewer"), "c": ranked(3)}
    assert [{one.better, one.other} for one in compare(systems, resamples=10)] == [{"a", "c"}]
    assert compare({"a": systems["a"]}) == [] == compare({})


@pytest.fixture
def embeddings() -> Embeddings:
    """Seven images, of which the fourth has no caption."""
    generator = np.random.default_rng(0)
    owner = np.array([0, 0, 1, 2, 2, 4, 5, 6, 6], dtype=np.int32)
    floats = [generator.normal(size=(n, 5)).astype(np.float32) for n in (7, len(owner))]
    ids = [np.array([f"{kind}{n}" for n in range(n)]) for kind, n in (("i", 7), ("c", len(owner)))]
    return Embeddings(*floats, owner, *ids)


def test_ranks_are_kept_whatever_the_scores_come_from(embeddings, tmp_path):
    metrics, kept = metrics_and_ranks(embeddings, folds=0, seed=0, resamples=0)
    assert metrics == all_metrics(embeddings, folds=0, seed=0, resamples=0)
    assert len(kept.images) == 6 and kept.caption_image.max() == 5
    for direction, ranks in (("i2t", kept.images), ("t2i", kept.captions)):
        assert recalls(ranks) == metrics[direction]
    items = (embeddings.caption_image, embeddings.image_ids, embeddings.caption_ids)
    pairs = PairScores(embeddings.images @ embeddings.captions.T, *items)
    for other in (
        metrics_and_ranks(pairs, folds=0, seed=0, resamples=0)[1],
        ensemble_ranks([embeddings, embeddings], ["a", "b"], resamples=0)[1],
    ):
        assert other.items == kept.items
        assert np.array_equal(other.images, kept.images) and np.array_equal(other.captions, kept.captions)
    for name in ("one", "two"):
        write_ranks(tmp_path / name, kept)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = read_ranks(tmp_path / "one")
    assert np.array_equal(read.captions, kept.captions) and read.items == kept.items


def test_other_items_have_another_digest(embeddings):
    items = [embeddings.image_ids, embeddings.caption_ids, embeddings.caption_image]
    others = [[items[0][::-1], *items[1:]], [items[0], items[1][::-1], items[2]], [*items[:2], items[2][::-1]]]
    assert len({items_digest(*one) for one in [items, *others]}) == 4


def test_what_holds_no_ranks_is_told(tmp_path, monkeypatch):
    path = tmp_path / "ranks.safetensors"
    for content in (None, b"", b"not ranks at all"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match="holds no ranks.*run the evaluation again"):
            read_ranks(path)
    monkeypatch.setattr("evaluation.ranks.RANKS_VERSION", "0")
    write_ranks(path, ranked())
    monkeypatch.undo()
    with pytest.raises(UserError, match="has ranks version 0, this program reads 1"):
        read_ranks(path)
