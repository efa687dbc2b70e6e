from __future__ import annotations

import numpy as np
import pytest
import torch

from model import ranking


def naive_ranks(scores: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[int]]:
    """Plain loops over a score matrix (N, M), straight from the definition."""
    images, captions = scores.shape
    to_caption, to_image = [], []
    for i in range(images):
        best = max(scores[i, c] for c in range(captions) if owner[c] == i)
        to_caption.append(sum(1 for c in range(captions) if owner[c] != i and scores[i, c] >= best))
    for c in range(captions):
        own = scores[owner[c], c]
        to_image.append(sum(1 for i in range(images) if i != owner[c] and scores[i, c] >= own))
    return to_caption, to_image


def random_case(seed: int, images: int = 13, captions: int = 40, width: int = 4, integers: bool = True):
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(images), rng.integers(0, images, captions - images)])
    rng.shuffle(owner)
    # Small integers make many exact ties and exact float32 products.
    draw = (lambda n: rng.integers(-2, 3, (n, width))) if integers else (lambda n: rng.normal(size=(n, width)))
    return draw(images).astype(np.float32), draw(captions).astype(np.float32), owner


def both_ways(images: np.ndarray, captions: np.ndarray, owner: np.ndarray, block: int):
    """The ranks as arrays and as tensors give them."""
    yield ranking.ranks_from_embeddings(images, captions, owner, block=block)
    yield ranking.ranks_from_tensors(torch.from_numpy(images), torch.from_numpy(captions), owner, block=block)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [1, 7, 64, ranking.DEFAULT_BLOCK])
def test_ranks_equal_the_naive_loops(seed, block):
    images, captions, owner = random_case(seed, integers=seed % 2 == 0)
    expected = naive_ranks(images.astype(np.float64) @ captions.astype(np.float64).T, owner)
    found = ranking.ranks_from_embeddings(images, captions, owner, block=block)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    found = ranking.ranks_from_tensors(torch.from_numpy(images), torch.from_numpy(captions), owner, block=block)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    found = ranking.ranks_from_similarity(images @ captions.T, owner, block=block)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(ranking.image_to_caption_ranks(images, captions, owner), expected[0])
    np.testing.assert_array_equal(ranking.caption_to_image_ranks(images, captions, owner), expected[1])
    assert found[0].dtype == found[1].dtype == np.int64


def test_a_constant_model_scores_zero_recall():
    rng = np.random.default_rng(0)
    vector = rng.normal(size=(1, 257)).astype(np.float32)
    images, captions = np.repeat(vector, 50, axis=0), np.repeat(vector * 0.7, 250, axis=0)
    owner = np.repeat(np.arange(50), 5)
    for block in (100, 333, ranking.DEFAULT_BLOCK):
        for to_caption, to_image in both_ways(images, captions, owner, block):
            assert (to_caption == 245).all()
            assert (to_image == 49).all()


def test_equal_embeddings_tie_whatever_the_rounding():
    """Two copies of an image and of a caption, far apart in the matrix: each pushes the other down by exactly one."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(60, 129)).astype(np.float32)
    captions = images * 3
    images[59], captions[59] = images[0], captions[0]
    for block in (61, 1000, ranking.DEFAULT_BLOCK):
        for to_caption, to_image in both_ways(images, captions, np.arange(60), block):
            assert to_caption[[0, 59]].tolist() == [1, 1] and to_image[[0, 59]].tolist() == [1, 1]
            assert to_caption[1:59].sum() == 0


def test_equal_rows_are_found_by_value():
    values = np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32)
    assert ranking.equal_rows(values) is None and ranking._equal_tensor_rows(torch.from_numpy(values)) is None
    values[[3, 7, 9]] = values[0]
    values[11], values[12] = 0.0, -0.0
    for labels in (ranking.equal_rows(values), ranking._equal_tensor_rows(torch.from_numpy(values)).numpy()):
        same = labels[:, None] == labels[None]
        np.testing.assert_array_equal(same, (values[:, None] == values[None]).all(axis=2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_are_ranked_there():
    images, captions, owner = random_case(4, images=300, captions=1500, width=64)
    on_gpu = (torch.from_numpy(part).cuda() for part in (images, captions))
    for found, expected in zip(
        ranking.ranks_from_embeddings(*on_gpu, owner, block=10_000),
        ranking.ranks_from_embeddings(images, captions, owner),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_rows_are_found(dtype):
    values = np.random.default_rng(0).integers(-1, 2, (60, 3)).astype(dtype)
    values[values == 0] *= np.random.default_rng(1).choice([-1, 1], (values == 0).sum())  # both zeros are one number
    labels = ranking.equal_rows(values)
    np.testing.assert_array_equal(labels[:, None] == labels, (values[:, None] == values).all(axis=2))
    assert ranking.equal_rows(np.unique(values, axis=0)) is None


def test_recalls_follow_the_fields_convention():
    result = ranking.recalls(np.array([0, 0, 3, 7, 20, 101]))
    assert result == {
        "r1": pytest.approx(100 * 2 / 6),
        "r5": pytest.approx(50.0),
        "r10": pytest.approx(100 * 4 / 6),
        "medr": 6.0,  # floor(5.0) + 1
        "meanr": pytest.approx(131 / 6 + 1),
    }
    scores = ranking.retrieval_scores(np.array([0, 4]), np.array([9, 10, 0, 0]))
    assert scores["rsum"] == pytest.approx(50 + 100 + 100 + 50 + 50 + 75)


def test_bad_input_is_named():
    images, captions, owner = random_case(3)
    broken = captions.copy()
    broken[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"caption_emb.*row 7"):
        ranking.ranks_from_embeddings(images, broken, owner)
    with pytest.raises(ValueError, match=r"caption_emb.*1 of 40 rows.*row 7"):
        ranking.ranks_from_tensors(torch.from_numpy(images), torch.from_numpy(broken), owner)
    with pytest.raises(ValueError, match="NaN"):
        ranking.ranks_from_similarity(images @ broken.T, owner)
    lonely = np.where(owner == 5, 4, owner)
    with pytest.raises(ValueError, match=r"1 of 13 images have no caption \(rows 5\)"):
        ranking.ranks_from_embeddings(images, captions, lonely)
    with pytest.raises(ValueError, match=r"0..13; there are 13 images"):
        ranking.ranks_from_similarity(images @ captions.T, np.where(owner == 12, 13, owner))
    with pytest.raises(ValueError, match="width 4 but caption_emb has 3"):
        ranking.ranks_from_embeddings(images, captions[:, :3], owner)
    with pytest.raises(ValueError, match="no ranks"):
        ranking.recalls(np.array([]))
