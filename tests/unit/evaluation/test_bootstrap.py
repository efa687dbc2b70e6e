from __future__ import annotations

import numpy as np
import pytest

from evaluation import bootstrap
from evaluation.bootstrap import interval, resample_means, resample_ranks
from evaluation.metrics import rank_intervals
from model.ranking import recalls

KEYS = ("r1", "r5", "r10", "medr", "meanr")


def case(seed=0, images=17, most=6):
    generator = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), generator.integers(1, most, images))
    ranks = generator.geometric(0.1, len(image)) - 1
    order = generator.permutation(len(image))
    return ranks[order], image[order], images


def naive(ranks, image, images, resamples, seed):
    """Every resample written out: the drawn images one after the other, each with all its queries."""
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(resamples):
        drawn = generator.integers(0, images, (1, images))[0]
        samples.append(recalls(np.concatenate([ranks[image == one] for one in drawn])))
    return {key: np.array([sample[key] for sample in samples]) for key in KEYS}


def test_resamples_are_those_written_out():
    ranks, image, images = case()
    expected = naive(ranks, image, images, 50, seed=3)
    actual = resample_ranks(ranks, image, images, resamples=50, seed=3)
    for key in KEYS:
        np.testing.assert_allclose(actual[key], expected[key], err_msg=key)
    assert len(set(expected["medr"])) > 2, "the case must move the median"


def test_the_size_of_the_blocks_changes_nothing(monkeypatch):
    ranks, image, images = case()
    whole = resample_ranks(ranks, image, images, resamples=40, seed=1)
    monkeypatch.setattr(bootstrap, "_WEIGHTS_AT_ONCE", 100)
    blocked = resample_ranks(ranks, image, images, resamples=40, seed=1)
    for key in KEYS:
        np.testing.assert_array_equal(whole[key], blocked[key])


def test_queries_of_no_drawn_image_are_left_out():
    values, image = np.array([[10.0], [30.0]]), np.array([0, 0])
    samples = resample_means(values, image, 3, resamples=200, seed=0)[:, 0]
    # Image 0 is the only one with a query: a resample without it has no value.
    assert 20 < np.isnan(samples).sum() < 120
    assert interval(samples) == [20.0, 20.0]


def test_intervals_cover_the_true_value_as_often_as_they_say():
    """Images whose captions stand or fall together: resampling single captions would cover far less often."""
    generator = np.random.default_rng(0)
    covered = {"grouped": 0, "single": 0}
    for trial in range(150):
        hit = np.repeat(generator.random(120) < 0.4, 5)
        ranks = np.where(hit, 0, 20)
        for name, image, images in (("grouped", np.repeat(np.arange(120), 5), 120), ("single", np.arange(600), 600)):
            low, high = interval(resample_ranks(ranks, image, images, resamples=200, seed=trial)["r1"])
            covered[name] += low <= 40 <= high
    assert 0.88 < covered["grouped"] / 150 <= 1
    assert covered["single"] / 150 < 0.75


def test_intervals_of_all_metrics_hold_the_metrics():
    generator = np.random.default_rng(1)
    owner = np.repeat(np.arange(200), 5)
    to_caption, to_image = generator.geometric(0.2, 200) - 1, generator.geometric(0.1, 1000) - 1
    found = rank_intervals([(to_caption, to_image, owner)], resamples=300, seed=0)
    assert (found["level"], found["resamples"], found["seed"]) == (0.95, 300, 0)
    for direction, ranks in (("i2t", to_caption), ("t2i", to_image)):
        for key, value in recalls(ranks).items():
            low, high = found[direction][key]
            assert low <= value <= high, (direction, key)
    total = sum(recalls(ranks)[key] for ranks in (to_caption, to_image) for key in ("r1", "r5", "r10"))
    assert found["rsum"][0] < total < found["rsum"][1]
    # Five independent galleries tell more than one of them.
    five = rank_intervals([(to_caption, to_image, owner)] * 5, resamples=300, seed=0)
    ratio = np.diff(found["i2t"]["r1"])[0] / np.diff(five["i2t"]["r1"])[0]
    assert ratio == pytest.approx(np.sqrt(5), rel=0.25)
