"""CxC and ECCV Caption: on hand-made positives against naive loops, and on COCO's real ids against the field's package."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from core.console import UserError
from evaluation import metrics as module
from evaluation.embeddings import Embeddings, write_embeddings
from evaluation.positives import item_key, positives_files, read_positives
from evaluation.protocols import places_of_positives, precision_scores, protocol_metrics

COCO_IMAGE, COCO_CAPTION = "COCO_val2014_{:012d}.jpg", "COCO_val2014:sentid:{}"
IMAGES = [42, 7, 100, 9, 581929]
CAPTIONS = [[10 * image, 10 * image + 1, 10 * image + 2] for image in IMAGES]
# Ratings beside the original pairs, some below the threshold of their kind.
SITS = [(420, 7, 3.0), (70, 42, 2.99), (1001, 9, 4.2), (1001, 42, 3.5)]
SIS = [(42, 7, 2.5), (7, 42, 1.0), (9, 100, 2.49), (100, 42, 4.0)]
STS = [(420, 71, 3.0), (70, 1000, 2.9), (1002, 90, 5.0)]
LOW_ORIGINAL = (91, 9)


def original_pairs():
    return [(caption, image) for image, own in zip(IMAGES, CAPTIONS, strict=True) for caption in own]


def write_ratings(folder: Path) -> None:
    """The tables of the CxC repository."""
    rated = [(c, i, 1.5 if (c, i) == LOW_ORIGINAL else 4.5, "c2i_original") for c, i in original_pairs()]
    tables = {
        "sits": [(COCO_CAPTION.format(c), COCO_IMAGE.format(i), *rest) for c, i, *rest in rated]
        + [(COCO_CAPTION.format(c), COCO_IMAGE.format(i), s, "c2i_intrasim") for c, i, s in SITS],
        "sis": [(COCO_IMAGE.format(a), COCO_IMAGE.format(b), s, "i2i_csim") for a, b, s in SIS],
        "sts": [(COCO_CAPTION.format(a), COCO_CAPTION.format(b), s, "c2c_isim") for a, b, s in STS],
    }
    for name, rows in tables.items():
        lines = ["first,second,agg_score,sampling_method", *(",".join(map(str, row)) for row in rows)]
        (folder / f"{name}_test.csv").write_text("\n".join(lines) + "\n")


def write_vse_infty(folder: Path) -> None:
    """The same positives as vse_infty's three files."""
    pairs = [(c, i) for c, i in original_pairs() if (c, i) != LOW_ORIGINAL] + [(c, i) for c, i, s in SITS if s >= 3]
    it = {
        "t2i": {str(c): [[i, 5.0] for cc, i in pairs if cc == c] for own in CAPTIONS for c in own},
        "i2t": {str(i): [[c, 5.0] for c, ii in pairs if ii == i] for i in IMAGES},
    }

    def both_ways(rated, items):
        return {
            str(item): [[b, s] for a, b, s in rated if a == item] + [[a, s] for a, b, s in rated if b == item]
            for item in items
        }

    (folder / "cxc_it.json").write_text(json.dumps(it))
    (folder / "cxc_i2i.json").write_text(json.dumps(both_ways(SIS, IMAGES)))
    (folder / "cxc_t2t.json").write_text(json.dumps(both_ways(STS, [c for own in CAPTIONS for c in own])))


def small_embeddings(seed=0, width=4) -> Embeddings:
    generator = np.random.default_rng(seed)
    order = [3, 0, 4, 1, 2]  # not the order of the files
    owner = np.repeat(np.arange(5, dtype=np.int32), 3)
    images = generator.normal(size=(5, width))
    return Embeddings(
        images=images.astype(np.float32),
        captions=(images[owner] + 1.5 * generator.normal(size=(15, width))).astype(np.float32),
        caption_image=owner,
        image_ids=np.array([str(IMAGES[row]) for row in order]),
        caption_ids=np.array([str(caption) for row in order for caption in CAPTIONS[row]]),
    )


def naive_recall(scores, right, k):
    """Right if one of the right answers has fewer than k wrong ones scoring as high. Queries without one are left out."""
    hits = []
    for query, answers in right.items():
        if answers:
            best = max(scores[query][answer] for answer in answers)
            wrong = sum(score >= best for item, score in scores[query].items() if item not in answers and item != query)
            hits.append(wrong < k)
    return 100 * sum(hits) / len(hits), len(hits)


@pytest.mark.parametrize("write", [write_ratings, write_vse_infty])
def test_the_four_retrievals_of_cxc_agree_with_naive_loops(tmp_path, write):
    write(tmp_path)
    embeddings = small_embeddings()
    found = protocol_metrics(embeddings, read_positives("cxc", str(tmp_path)))
    images = dict(zip((f"i{name}" for name in embeddings.image_ids), embeddings.images, strict=True))
    captions = dict(zip((f"c{name}" for name in embeddings.caption_ids), embeddings.captions, strict=True))
    pairs = {(f"c{c}", f"i{i}") for c, i in original_pairs() if (c, i) != LOW_ORIGINAL}
    pairs |= {(f"c{c}", f"i{i}") for c, i, s in SITS if s >= 3}
    alike = {frozenset((f"i{a}", f"i{b}")) for a, b, s in SIS if s >= 2.5}
    alike |= {frozenset((f"c{a}", f"c{b}")) for a, b, s in STS if s >= 3}
    alike |= {frozenset((f"c{a}", f"c{b}")) for own in CAPTIONS for a in own for b in own if a != b}
    for direction, queries, gallery in (
        ("i2t", images, captions),
        ("t2i", captions, images),
        ("i2i", images, images),
        ("t2t", captions, captions),
    ):
        scores = {q: {g: float(x @ y) for g, y in gallery.items()} for q, x in queries.items()}
        right = {
            q: {g for g in gallery if (q, g) in pairs or (g, q) in pairs or frozenset((q, g)) in alike} for q in queries
        }
        for k in (1, 5, 10):
            expected, asked = naive_recall(scores, right, k)
            assert found[direction][f"r{k}"] == pytest.approx(expected), (direction, k)
        assert found[direction]["queries"] == asked
    assert found["i2i"]["queries"] == 3 and found["t2t"]["queries"] == 15 and found["t2i"]["queries"] == 14
    assert 0 < found["t2t"]["r1"] < 100 and 0 < found["i2i"]["r1"] < 100
    recalls = [found[d][k] for d in ("i2t", "t2i") for k in ("r1", "r5", "r10")]
    assert found["rsum"] == pytest.approx(sum(recalls))


def test_both_layouts_hold_the_same_positives(tmp_path):
    for name, write in (("csv", write_ratings), ("json", write_vse_infty)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    one, other = (read_positives("cxc", str(tmp_path / name)) for name in ("csv", "json"))
    assert (one.images, one.captions) == (other.images, other.captions)
    for direction in ("i2t", "t2i", "i2i", "t2t"):
        assert {q: set(a) for q, a in one.retrievals[direction].items()} == {
            q: set(a) for q, a in other.retrievals[direction].items()
        }


def test_ids_of_one_item_in_all_spellings():
    for name in (391895, "391895", "COCO_val2014_000000391895.jpg", "val2014/COCO_val2014_000000391895"):
        assert item_key(name) == "391895"
    assert item_key("COCO_val2014:sentid:770337") == item_key(770337) == "770337"
    # Names of other data sets stay what they are, numbers in them or not.
    for name in ("photo-7", "trip/img_0007", "img_0007#2", "0"):
        assert item_key(name) == name


def naive_precision(ranking, right):
    """mAP@R as Musgrave et al. define it, R-precision and R@1, of one query."""
    hits = [item in right for item in ranking[: len(right)]]
    precisions = [sum(hits[: place + 1]) / (place + 1) * hit for place, hit in enumerate(hits)]
    return sum(precisions) / len(right), sum(hits) / len(right), float(hits[0])


def test_precision_agrees_with_naive_loops():
    generator = np.random.default_rng(0)
    queries, gallery = generator.normal(size=(40, 5)), generator.normal(size=(30, 5))
    right = [generator.choice(30, generator.integers(1, 9), replace=False) for _ in range(40)]
    places = places_of_positives(queries, gallery, right, block=100)
    found = precision_scores(places, np.array([len(rows) for rows in right]))
    for query in range(40):
        ranking = np.argsort(-(gallery @ queries[query]))
        assert list(places[query, : len(right[query])]) == sorted(np.flatnonzero(np.isin(ranking, right[query])))
        expected = naive_precision(list(ranking), set(right[query]))
        actual = [found[name][query] / 100 for name in ("map_at_r", "r_precision", "r1")]
        assert actual == pytest.approx(expected)
    assert 0 < found["map_at_r"].mean() < found["r_precision"].mean() < 100


def test_ties_count_as_misses():
    gallery = np.ones((6, 3), dtype=np.float32) / 3
    right = [np.array([4, 1]), np.array([0])]
    np.testing.assert_array_equal(places_of_positives(gallery[:2], gallery, right), [[4, 5], [5, 6]])
    # The query itself is nobody's competitor.
    places = places_of_positives(gallery[:2], gallery, right[:1] + [np.array([2])], own=np.array([0, 1]))
    np.testing.assert_array_equal(places[:, 0], [3, 4])
    gallery[3, 1] = np.nan
    with pytest.raises(ValueError, match="gallery holds NaN"):
        places_of_positives(gallery[:2], gallery, right)


def test_another_test_set_is_an_error_with_counts_and_names(tmp_path):
    write_ratings(tmp_path)
    positives = read_positives("cxc", str(tmp_path))
    embeddings = small_embeddings()
    names = embeddings.caption_ids.astype("U20")
    names[[2, 5]] = ["other#1", "other#2"]
    with pytest.raises(UserError) as caught:
        protocol_metrics(dataclasses.replace(embeddings, caption_ids=names), positives)
    message = str(caught.value)
    lost = ", ".join(sorted(embeddings.caption_ids[[2, 5]], key=lambda name: (len(name), name)))
    assert f"2 of the 15 captions of 'cxc' are not in the test set: {lost}" in message
    assert "2 of its 15 captions are not among those of 'cxc': other#1, other#2" in message
    images = np.array(["7"] + list(embeddings.image_ids[1:]))
    with pytest.raises(UserError, match="1 of its 5 images have the same id as another"):
        protocol_metrics(dataclasses.replace(embeddings, image_ids=images), positives)


def test_missing_and_broken_positives_are_user_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.positives.PACKAGE", "eccv_caption_is_not_installed")
    with pytest.raises(UserError, match="no `positives` folder is given.*eccv_image_to_caption.*pip install"):
        read_positives("eccv")
    with pytest.raises(UserError, match=r"none of cxc_it.json and cxc_i2i.json and cxc_t2t.json, or sits_test.csv"):
        read_positives("cxc", str(tmp_path))
    write_ratings(tmp_path)
    (tmp_path / "sis_test.csv").write_text("image1,image2,agg_score,sampling_method\n1,2\n")
    with pytest.raises(UserError, match="sis_test.csv.* cannot be read"):
        read_positives("cxc", str(tmp_path))
    (tmp_path / "sits_test.csv").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read .ValueError: sits_test.csv is empty"):
        read_positives("cxc", tmp_path)


def test_the_command_line_scores_protocols_and_gives_intervals(tmp_path, monkeypatch):
    (tmp_path / "cxc").mkdir()
    write_ratings(tmp_path / "cxc")
    write_embeddings(tmp_path / "e.zarr", small_embeddings())
    output = tmp_path / "metrics.json"
    arguments = ["--embeddings", tmp_path / "e.zarr", "--output", output, "--protocols", "cxc"]
    arguments += ["--positives", tmp_path / "cxc", "--resamples", 20]
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, arguments)])
    module.main()
    metrics = json.loads(output.read_text())
    cxc = metrics["protocols"]["cxc"]
    assert cxc["source"][0].endswith("sits_test.csv")
    assert cxc["intervals"]["resamples"] == metrics["intervals"]["resamples"] == 20
    for direction in ("i2t", "t2i", "i2i", "t2t"):
        low, high = cxc["intervals"][direction]["r5"]
        assert low <= cxc[direction]["r5"] <= high
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, arguments[:-1]), "-1"])
    with pytest.raises(UserError, match="--resamples must be 0 or more"):
        module.main()


# The field's real lists of ids and positives, and its own metrics.


@pytest.fixture(scope="module")
def coco():
    """COCO's 5K test set as embeddings with structure: captions near their image, images near some others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("eccv_caption", reason="eccv-caption is not installed")
    data = Path(package.__file__).parent / "data"
    captions = np.load(data / "coco_test_ids.npy")
    image_of = json.loads((data / "original_caption_to_image.json").read_text())
    own = [image_of[str(caption)][0] for caption in captions]
    row = {image: place for place, image in enumerate(dict.fromkeys(own))}
    owner = np.array([row[image] for image in own], dtype=np.int32)
    generator = np.random.default_rng(0)
    images = generator.normal(size=(300, 24))[generator.integers(0, 300, 5000)] + 0.5 * generator.normal(
        size=(5000, 24)
    )
    texts = images[owner] + 1.5 * generator.normal(size=(25000, 24))
    embeddings = Embeddings(
        images=(images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32),
        captions=(texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32),
        caption_image=owner,
        image_ids=np.array([str(image) for image in row]),
        caption_ids=captions.astype(str),
    )
    return package, embeddings


def test_protocols_agree_with_the_package_on_the_real_ids(coco):
    package, embeddings = coco
    scores = embeddings.images @ embeddings.captions.T
    images, captions = embeddings.image_ids.astype(int), embeddings.caption_ids.astype(int)

    def first(scores, count=60):
        """As far down as any metric looks: R is at most 48."""
        found = np.argpartition(-scores, count, axis=1)[:, :count]
        return np.take_along_axis(found, np.argsort(-np.take_along_axis(scores, found, 1), axis=1), 1)

    by_image, by_caption = first(scores), first(np.ascontiguousarray(scores.T))
    expected = package.Metrics().compute_all_metrics(
        {int(image): captions[best].tolist() for image, best in zip(images, by_image, strict=True)},
        {int(caption): images[best].tolist() for caption, best in zip(captions, by_caption, strict=True)},
        target_metrics=("eccv_r1", "eccv_map_at_r", "eccv_rprecision", "coco_5k_recalls", "cxc_recalls"),
        Ks=(1, 5, 10),
    )
    names = {f"cxc_r{k}": ("cxc", f"r{k}") for k in (1, 5, 10)}
    names |= {
        "eccv_map_at_r": ("eccv", "map_at_r"),
        "eccv_rprecision": ("eccv", "r_precision"),
        "eccv_r1": ("eccv", "r1"),
    }
    actual = {name: protocol_metrics(embeddings, read_positives(name)) for name in ("cxc", "eccv")}
    for theirs, (protocol, ours) in names.items():
        for direction in ("i2t", "t2i"):
            value = 100 * expected[theirs][direction]
            assert actual[protocol][direction][ours] == pytest.approx(value, abs=1e-9), (theirs, direction)
            assert 1 < value < 99, "the case must tell models apart"
    assert actual["cxc"]["t2i"]["queries"] == 24972 and actual["eccv"]["t2i"]["queries"] == 1332
    standard = module.retrieval_metrics(embeddings.images, embeddings.captions, embeddings.caption_image)
    for direction in ("i2t", "t2i"):
        for k in (1, 5, 10):
            assert standard[direction][f"r{k}"] == pytest.approx(100 * expected[f"coco_5k_r{k}"][direction])
        assert actual["cxc"][direction]["r1"] != standard[direction]["r1"]


def test_the_package_is_found_beside_a_folder_that_lacks_a_protocol(coco, tmp_path):
    write_ratings(tmp_path)
    assert positives_files("cxc", str(tmp_path))[0].parent == tmp_path
    assert positives_files("eccv", str(tmp_path))[0].parent != tmp_path
    assert set(read_positives("cxc").retrievals) == {"i2t", "t2i"}


def test_a_test_set_with_fewer_images_is_named(coco):
    _, embeddings = coco
    kept = embeddings.caption_image < 4990
    fewer = Embeddings(
        embeddings.images[:4990],
        embeddings.captions[kept],
        embeddings.caption_image[kept],
        embeddings.image_ids[:4990],
        embeddings.caption_ids[kept],
    )
    with pytest.raises(UserError, match=r"10 of the 5000 images of 'eccv' are not in the test set: \d+, .*, \.\.\."):
        protocol_metrics(fewer, read_positives("eccv"))
