"""Scores of pairs in place of embeddings: the same numbers wherever both say the same, and damage is noticed."""

import dataclasses
import warnings

import numpy as np
import pytest
import zarr

from core.console import UserError
from evaluation.embeddings import Embeddings, write_embeddings
from evaluation.ensemble import ensemble_metrics
from evaluation.metrics import all_metrics
from evaluation.positives import Positives
from evaluation.protocols import protocol_metrics
from evaluation.scores import PairScores, read_scored, write_scores


@pytest.fixture
def both():
    """Embeddings, and the scores that they give."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((12, 6)).astype(np.float32)
    owner = np.repeat(np.arange(12), 3).astype(np.int32)
    captions = images[owner] + generator.standard_normal((36, 6)).astype(np.float32)
    ids = {"image_ids": np.arange(12).astype(str), "caption_ids": np.arange(36).astype(str), "caption_image": owner}
    return Embeddings(images, captions, **ids), PairScores(images @ captions.T, **ids)


def test_the_metrics_are_those_of_the_embeddings(both):
    embeddings, scores = (all_metrics(one, folds=3, seed=1, resamples=20) for one in both)
    for key in ("i2t", "t2i", "rsum", "folds", "intervals", "chance"):
        assert scores[key] == embeddings[key]
    for way in ("i2t", "t2i"):
        assert scores["control"][way] == pytest.approx(embeddings["control"][way])


def test_an_ensemble_of_both_is_the_mean_of_the_similarities(both):
    embeddings, scores = both
    names = ["a", "b"]
    other = dataclasses.replace(scores, similarity=np.random.default_rng(1).standard_normal((12, 36)).astype("f4"))
    mixed = ensemble_metrics([embeddings, other], names, resamples=0)
    mean = PairScores(
        (scores.similarity + other.similarity) / 2, scores.caption_image, scores.image_ids, scores.caption_ids
    )
    assert mixed["i2t"] == all_metrics(mean, folds=0, seed=0, resamples=0)["i2t"]
    assert mixed["t2i"] == all_metrics(mean, folds=0, seed=0, resamples=0)["t2i"]
    with pytest.raises(UserError, match="same image"):
        ensemble_metrics([embeddings, dataclasses.replace(other, image_ids=other.image_ids[::-1])], names)


def test_protocols_score_pairs_and_say_what_is_not_defined(both):
    embeddings, scores = both
    right = {
        "i2t": {str(i): [str(3 * i), str(3 * i + 1)] for i in range(12)},
        "t2i": {str(c): [str(c // 3)] for c in range(36)},
        "i2i": {"0": ["1"]},
        "t2t": {"0": ["1"]},
    }
    positives = Positives("cxc", right, frozenset(map(str, range(12))), frozenset(map(str, range(36))), "test")
    by_pairs, by_vectors = protocol_metrics(scores, positives), protocol_metrics(embeddings, positives)
    assert by_pairs["i2t"] == by_vectors["i2t"] and by_pairs["t2i"] == by_vectors["t2i"]
    assert by_pairs["not_defined"] == ["i2i", "t2t"] and "i2i" not in by_pairs and "not_defined" not in by_vectors


def test_scores_are_written_read_and_checked(both, tmp_path):
    scores, path = both[1], tmp_path / "scores.zarr"
    with pytest.raises(UserError, match="no scores at"):
        read_scored(path)
    write_scores(path, scores)
    read = read_scored(path)
    for name in ("similarity", "caption_image", "image_ids", "caption_ids"):
        np.testing.assert_array_equal(getattr(read, name), getattr(scores, name))
    chunk = path / "similarity/c/0/0"
    content = bytearray(chunk.read_bytes())
    content[7] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_scored(path)
    similarity = scores.similarity.copy()
    similarity[3, 4] = np.nan
    write_scores(path, dataclasses.replace(scores, similarity=similarity))
    with pytest.raises(UserError, match="not finite"):
        read_scored(path)


def test_zarr_warns_of_nothing_beside_snakemakes_own_file(both, tmp_path):
    for write, one, name in zip((write_embeddings, write_scores), both, ("images", "similarity"), strict=True):
        path = tmp_path / f"{name}.zarr"
        write(path, one)
        (path / ".snakemake_timestamp").touch()  # as in every folder that is a rule's output
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = dict(zarr.open_group(path, mode="r").members())
        assert {name, "caption_image", "image_ids", "caption_ids"} <= found.keys()
        assert found["image_ids"][3] == "3"
