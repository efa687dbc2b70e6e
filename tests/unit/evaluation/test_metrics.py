from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from core.console import UserError
from evaluation import metrics as module
from evaluation.embeddings import Embeddings, read_embeddings, write_embeddings
from evaluation.metrics import (
    all_metrics,
    chance_metrics,
    control_metrics,
    fold_metrics,
    retrieval_metrics,
    retrieval_metrics_from_similarity,
)


def unit_rows(generator, rows, width, integers=False):
    """Random embeddings; small integers give many exactly equal scores."""
    values = generator.integers(-2, 3, (rows, width)) if integers else generator.normal(size=(rows, width))
    return values.astype(np.float32)


def naive_metrics(similarity, caption_image):
    """Python loops over the definition: the rank is 1 + the number of wrong items that score at least as high."""
    images, captions = similarity.shape
    i2t, t2i = [], []
    for image in range(images):
        own = [similarity[image, caption] for caption in range(captions) if caption_image[caption] == image]
        wrong = [similarity[image, caption] for caption in range(captions) if caption_image[caption] != image]
        i2t.append(1 + sum(score >= max(own) for score in wrong))
    for caption in range(captions):
        own = similarity[caption_image[caption], caption]
        wrong = [similarity[image, caption] for image in range(images) if image != caption_image[caption]]
        t2i.append(1 + sum(score >= own for score in wrong))

    def summary(ranks):
        recalls = {f"r{k}": 100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        return recalls | {"medr": np.floor(np.median(np.array(ranks) - 1)) + 1, "meanr": np.mean(ranks)}

    result = {"i2t": summary(i2t), "t2i": summary(t2i)}
    return result | {"rsum": sum(result[d][k] for d in ("i2t", "t2i") for k in ("r1", "r5", "r10"))}


def assert_same_scores(actual, expected):
    for direction in ("i2t", "t2i"):
        assert actual[direction] == pytest.approx(dict(expected[direction]))
    assert actual["rsum"] == pytest.approx(expected["rsum"])


@pytest.mark.parametrize("integers", [False, True], ids=["distinct", "ties"])
def test_metrics_agree_with_naive_loops(integers):
    generator = np.random.default_rng(3)
    images, captions = unit_rows(generator, 23, 6, integers), unit_rows(generator, 71, 6, integers)
    # Every image has a caption, their numbers differ, and the captions are not grouped by image.
    caption_image = generator.permutation(np.concatenate([np.arange(23), generator.integers(0, 23, 48)]))
    captions += images[caption_image]
    expected = naive_metrics(images @ captions.T, caption_image)
    assert 0 < expected["rsum"] < 600
    actual = retrieval_metrics(images, captions, caption_image)
    assert_same_scores(actual, expected)
    assert_same_scores(retrieval_metrics_from_similarity(images @ captions.T, caption_image), expected)
    assert (actual["images"], actual["captions"], actual["protocol"]) == (23, 71, "standard")
    assert json.loads(json.dumps(actual)) == actual


def test_a_perfect_model_and_a_constant_model():
    caption_image = np.repeat(np.arange(20), 5)
    perfect = retrieval_metrics(
        np.eye(20, dtype=np.float32), np.eye(20, dtype=np.float32)[caption_image], caption_image
    )
    assert perfect["rsum"] == 600
    assert perfect["i2t"] == {"r1": 100, "r5": 100, "r10": 100, "medr": 1, "meanr": 1}
    row = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    constant = retrieval_metrics(row.repeat(20, 0), row.repeat(100, 0), caption_image)
    assert constant["rsum"] == 0
    assert constant["t2i"]["medr"] == 20


def test_tensors_are_taken():
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    images, caption_image = unit_rows(generator, 6, 4), np.repeat(np.arange(6), 2)
    captions = unit_rows(generator, 12, 4)
    tensors = torch.from_numpy(images).requires_grad_(), torch.from_numpy(captions), torch.from_numpy(caption_image)
    assert retrieval_metrics(*tensors) == retrieval_metrics(images, captions, caption_image)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_raise(value):
    images, captions = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    captions[2, 1] = value
    with pytest.raises(ValueError, match="row 2"):
        retrieval_metrics(images, captions, np.arange(4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        retrieval_metrics_from_similarity(captions, np.arange(4))


def test_folds_are_means_over_consecutive_images():
    generator = np.random.default_rng(1)
    caption_image = np.repeat(np.arange(22), 3)
    images = unit_rows(generator, 22, 5)
    captions = unit_rows(generator, 66, 5) + images[caption_image]
    folds = fold_metrics(images, captions, caption_image, 4)
    assert (folds["count"], folds["images_per_fold"], folds["images_left_out"]) == (4, 5, 2)
    parts = [
        naive_metrics(images[s : s + 5] @ captions[3 * s : 3 * s + 15].T, np.repeat(np.arange(5), 3))
        for s in (0, 5, 10, 15)
    ]
    mean = {d: {k: np.mean([part[d][k] for part in parts]) for k in parts[0][d]} for d in ("i2t", "t2i")}
    assert_same_scores(folds, mean | {"rsum": np.mean([part["rsum"] for part in parts])})


def test_more_folds_than_images_is_an_error():
    with pytest.raises(UserError, match="5 folds of 3 images"):
        fold_metrics(np.eye(3), np.eye(3), np.arange(3), 5)


def test_the_control_of_a_perfect_model_is_at_chance_and_seeded():
    caption_image = np.repeat(np.arange(100), 5)
    generator = np.random.default_rng(5)
    images = unit_rows(generator, 100, 16)
    captions = images[caption_image] + 0.1 * unit_rows(generator, 500, 16)
    control = control_metrics(images, captions, caption_image, seed=7)
    chance = chance_metrics(np.full(100, 5))
    assert control["shuffles"] == 20
    assert control["t2i"]["r1"] == pytest.approx(chance["t2i"]["r1"], abs=1.0)
    assert control["t2i"]["r10"] == pytest.approx(chance["t2i"]["r10"], abs=2.5)
    assert control["i2t"]["r1"] < 3
    assert control == control_metrics(images, captions, caption_image, seed=7)
    assert control != control_metrics(images, captions, caption_image, seed=8)
    assert retrieval_metrics(images, captions, caption_image)["rsum"] > 590
    assert control_metrics(images[:1], captions[:5], caption_image[:5], seed=0) is None


def test_chance_is_what_random_orders_give():
    generator = np.random.default_rng(0)
    counts = np.array([1, 2, 5, 5, 7, 3])
    caption_image = np.repeat(np.arange(6), counts)
    trials = [
        naive_metrics(np.argsort(generator.random((6, 23)), axis=1).astype(float), caption_image) for _ in range(400)
    ]
    random_i2t = {key: np.mean([trial["i2t"][key] for trial in trials]) for key in ("r1", "r5", "r10", "meanr")}
    random_columns = [
        naive_metrics(np.argsort(generator.random((6, 23)), axis=0).astype(float), caption_image)["t2i"]
        for _ in range(400)
    ]
    random_t2i = {key: np.mean([trial[key] for trial in random_columns]) for key in ("r1", "r5", "r10", "meanr")}
    chance = chance_metrics(counts)
    for key, tolerance in (("r1", 2.5), ("r5", 2.5), ("r10", 2.5), ("meanr", 0.3)):
        assert chance["i2t"][key] == pytest.approx(random_i2t[key], abs=tolerance)
        assert chance["t2i"][key] == pytest.approx(random_t2i[key], abs=tolerance)


def test_chance_in_closed_form():
    chance = chance_metrics(np.full(100, 5))
    assert chance["t2i"] == pytest.approx({"r1": 1, "r5": 5, "r10": 10, "medr": 50, "meanr": 50.5})
    assert chance["i2t"]["r1"] == pytest.approx(1.0)
    assert chance["i2t"]["meanr"] == pytest.approx(501 / 6)
    # Small galleries: no more than everything can be found.
    assert chance_metrics([1, 1])["t2i"] == pytest.approx({"r1": 50, "r5": 100, "r10": 100, "medr": 1, "meanr": 1.5})
    assert chance_metrics([2])["i2t"] == pytest.approx({"r1": 100, "r5": 100, "r10": 100, "medr": 1, "meanr": 1})


def make_embeddings(seed=0, images=12, captions_per_image=2, width=8, run="tiny"):
    generator = np.random.default_rng(seed)
    caption_image = np.repeat(np.arange(images, dtype=np.int32), captions_per_image)
    image_rows = unit_rows(generator, images, width)
    caption_rows = image_rows[caption_image] + unit_rows(generator, len(caption_image), width)
    return Embeddings(
        images=image_rows / np.linalg.norm(image_rows, axis=1, keepdims=True),
        captions=caption_rows / np.linalg.norm(caption_rows, axis=1, keepdims=True),
        caption_image=caption_image,
        image_ids=np.array([f"image-{row}" for row in range(images)]),
        caption_ids=np.array([f"caption-{row}" for row in range(len(caption_image))]),
        attributes={"run": run, "split": "test", "index_digest": "abc"},
    )


def run_main(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, arguments)])
    main()


def test_command_line(tmp_path, monkeypatch):
    embeddings = make_embeddings()
    write_embeddings(tmp_path / "e.zarr", embeddings)
    output = tmp_path / "out" / "metrics.json"
    run_main(monkeypatch, module.main, "--embeddings", tmp_path / "e.zarr", "--folds", 3, "--output", output)
    metrics = json.loads(output.read_text())
    assert {"i2t", "t2i", "rsum", "images", "captions", "protocol", "folds", "control", "chance"} <= metrics.keys()
    assert metrics["folds"]["images_per_fold"] == 4
    assert (metrics["run"], metrics["split"], metrics["index_digest"]) == ("tiny", "test", "abc")
    assert_same_scores(metrics, naive_metrics(embeddings.images @ embeddings.captions.T, embeddings.caption_image))
    first = output.read_bytes()
    run_main(monkeypatch, module.main, "--embeddings", tmp_path / "e.zarr", "--folds", 3, "--output", output)
    assert output.read_bytes() == first


def test_images_without_captions_are_left_out_and_counted(capsys):
    whole = make_embeddings()
    kept = np.flatnonzero(~np.isin(whole.caption_image, (0, 5)))
    embeddings = Embeddings(
        whole.images, whole.captions[kept], whole.caption_image[kept], whole.image_ids, whole.caption_ids[kept]
    )
    metrics = all_metrics(embeddings, folds=0, seed=0)
    rows = np.setdiff1d(np.arange(12), (0, 5))
    expected = naive_metrics(whole.images[rows] @ whole.captions[kept].T, np.repeat(np.arange(10), 2))
    assert_same_scores(metrics, expected)
    assert (metrics["images"], metrics["images_without_captions"]) == (10, 2)
    assert "folds" not in metrics
    assert "2 images have no caption" in capsys.readouterr().err


def test_nothing_to_score_is_an_error():
    whole = make_embeddings()
    none = np.zeros(0, dtype=int)
    embeddings = Embeddings(
        whole.images, whole.captions[none], whole.caption_image[none], whole.image_ids, whole.caption_ids[none]
    )
    with pytest.raises(UserError, match="12 images and 0 captions"):
        all_metrics(embeddings, folds=0, seed=0)


class TestEmbeddingsFile:
    def test_round_trip_and_equal_bytes(self, tmp_path):
        embeddings = make_embeddings()
        embeddings.image_ids[3] = "ünï/côde ☃"
        write_embeddings(tmp_path / "a.zarr", embeddings)
        read = read_embeddings(tmp_path / "a.zarr")
        for name in ("images", "captions", "caption_image", "image_ids", "caption_ids"):
            np.testing.assert_array_equal(getattr(read, name), getattr(embeddings, name))
        assert read.images.dtype == np.float32
        assert read.caption_image.dtype == np.int32
        assert read.attributes["run"] == "tiny"
        write_embeddings(tmp_path / "b.zarr", make_embeddings(seed=9))
        write_embeddings(tmp_path / "b.zarr", embeddings)
        files = [
            {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in (tmp_path / "a.zarr", tmp_path / "b.zarr")
        ]
        assert files[0] == files[1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]

    def test_a_failed_write_leaves_the_old_group(self, tmp_path, monkeypatch):
        import zarr

        embeddings = make_embeddings()
        write_embeddings(tmp_path / "a.zarr", embeddings)
        monkeypatch.setattr(zarr.Group, "create_array", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_embeddings(tmp_path / "a.zarr", make_embeddings(seed=1))
        np.testing.assert_array_equal(read_embeddings(tmp_path / "a.zarr").images, embeddings.images)
        assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]

    def test_bad_groups_are_user_errors(self, tmp_path):
        import zarr

        with pytest.raises(UserError, match="no embeddings at"):
            read_embeddings(tmp_path / "missing.zarr")
        embeddings = make_embeddings()
        embeddings.captions[4] = np.nan
        write_embeddings(tmp_path / "nan.zarr", embeddings)
        with pytest.raises(UserError, match="'caption-4'"):
            read_embeddings(tmp_path / "nan.zarr")
        write_embeddings(tmp_path / "new.zarr", make_embeddings())
        zarr.open_group(str(tmp_path / "new.zarr")).attrs["embeddings_version"] = 2
        with pytest.raises(UserError, match="version 2"):
            read_embeddings(tmp_path / "new.zarr")
