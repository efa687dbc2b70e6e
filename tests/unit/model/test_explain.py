"""Explanations of images of a store, as records, pictures and files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from core.console import UserError
from core.overlay import SIDE, answered, heat, layer, strongest_parts
from model.build import new_network
from model.data import Features
from model.embed import embed_captions, embed_images, score_pairs
from model.explain import Explanation, cells, explain, main, with_boxes
from model.runs import save_run
from model.settings import Recipe
from stores.schema import SCHEMA_VERSION
from tests.unit.model.helpers import prepare, write_store

SENTENCES = ("a red dog", "two birds, one zeppelin", "")


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("feature", ["regions", "grids"])
def test_an_explanation_adds_up_by_parts_and_by_words(world, feature, sentence):
    network, pairs = prepare(world)
    network.eval()
    world.visual.attributes["feature"] = feature
    if feature == "grids":
        world.visual.arrays |= {
            "counts": np.full(len(world.ids), 6, np.int16),
            "grid_shapes": np.tile(np.array([2, 3], np.int16), (len(world.ids), 1)),
        }
    rows = np.array([3, 0, 7])
    found = explain(network, pairs.tokenizer, pairs.features, rows, sentence)
    images = embed_images(network, pairs.features, rows)
    scores = images @ embed_captions(network, pairs.tokenizer, [sentence])[0]
    for explanation, score, row in zip(found, scores, rows, strict=True):
        assert explanation.score == pytest.approx(score, abs=1e-5)
        content = json.loads(json.dumps(explanation.as_json()))
        assert sum(part["share"] for part in content["parts"]) == pytest.approx(content["score"], abs=1e-9)
        assert sum(word["share"] for word in content["words"]) == pytest.approx(content["score"], abs=1e-9)
        assert explanation.words[0] == "[CLS]" and explanation.words[-1] == "[SEP]"
        count = int(world.visual.arrays["counts"][row])
        kinds = [part["kind"] for part in content["parts"]]
        assert kinds == [feature[:-1] if feature == "regions" else "cell"] * count + ["category"] + ["segment"] * 49
        assert len(explanation.gates) == len(explanation.attention) == count
    if "zeppelin" in sentence:
        assert "zeppelin" in found[0].words, "a word of many pieces is one word"


WORDS = {"kind": "bigru", "word_size": 8, "min_count": 1}
PIECES = {
    "pretrained": None, "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 32, "vocabulary_size": 100,
    "min_frequency": 1, "max_tokens": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text"),
    [("vse_infinity", WORDS), ("vse_infinity", PIECES), ("scan", WORDS)],
    ids=["vse-words", "vse", "scan"],
)
def test_other_kinds_are_explained_likewise(world, kind, text):
    torch.manual_seed(3)
    recipe = Recipe(model={"kind": kind, "embed_size": 16}, text=text)
    features = Features(world.visual)
    network, tokenizer = new_network(recipe, world.texts, img_dim=features.img_dim)
    network.eval()
    rows, sentence = np.array([1, 5, 6]), "a red dog and an unseen thing"
    found = explain(network, tokenizer, features, rows, sentence)
    if kind == "scan":
        scores = score_pairs(network, features, rows, tokenizer, [sentence])[:, 0]
    else:
        scores = embed_images(network, features, rows) @ embed_captions(network, tokenizer, [sentence])[0]
    for explanation, score, row in zip(found, scores, rows, strict=True):
        assert explanation.score == pytest.approx(score, abs=1e-5)
        assert explanation.kinds == ("region",) * int(world.visual.arrays["counts"][row]) and explanation.gates is None
        assert [word for word in explanation.words[1:-1]] == sentence.split()
        assert ("attended" in explanation.as_json()["parts"][0]) == (kind == "scan")
        if kind == "scan":
            np.testing.assert_allclose(explanation.attended.sum(0), 1, atol=1e-5)


def test_heat_sums_to_the_shares_that_have_a_place(world):
    network, pairs = prepare(world)
    (found,) = explain(network.eval(), pairs.tokenizer, pairs.features, np.array([2]), "a cat")
    boxes = np.array(
        [[0, 0, 10, 5], [-3, 2, 99, 8], [4, 4, 4, 4], [1, 1, 9, 9], [5, 0, 10, 10], [0, 0, 1, 1]], np.float32
    )
    found = with_boxes(found, boxes, 10, 10)
    regions = np.array(found.kinds) == "region"
    assert np.isfinite(found.places[regions]).all() and (found.places[regions] >= 0).all()
    placed = np.isfinite(found.places).all(axis=1)
    assert [kind for kind, known in zip(found.kinds, placed, strict=True) if not known] == ["category"]
    assert heat(found).sum() == pytest.approx(found.shares[placed].sum())
    order = strongest_parts(found)
    shares = found.shares.sum(1)
    assert set(found.kinds[number] for number in order) == {"region"}
    assert [shares[number] for number in order] == sorted(shares[regions], reverse=True)[: len(order)]


def test_a_layer_is_clear_where_nothing_is_contributed():
    values = np.array([[0.0, 1.0], [-0.5, 0.0]])
    pixels = np.asarray(layer(values))
    assert (pixels[values == 0][:, 3] == 0).all() and pixels[0, 1, 3] == 2 * pixels[1, 0, 3] > 0
    assert tuple(pixels[0, 1, :3]) != tuple(pixels[1, 0, :3])
    assert np.asarray(layer(np.zeros((3, 3))))[..., 3].max() == 0
    assert cells(2, 2).tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    assert SIDE % 7 == 0


@pytest.fixture
def trained(world, tmp_path):
    """Arguments of the command for a run with random weights and stores on disk."""
    network, pairs = prepare(world)
    save_run(tmp_path / "run", network, pairs.tokenizer, config={"run": "small"})
    count = len(world.ids)
    world.visual.arrays["boxes"] = np.tile(np.array([8, 8, 40, 50], np.float32), (count, 6, 1))
    for name, store in (("visual", world.visual), ("panoptic", world.panoptic)):
        write_store(tmp_path / f"{name}.zarr", store, SCHEMA_VERSION)
    return {
        "--run": tmp_path / "run",
        "--images": world.images,
        "--visual": tmp_path / "visual.zarr",
        "--panoptic": tmp_path / "panoptic.zarr",
        "--image-id": world.ids[4],
        "--sentence": "a green bus",
        "--output": tmp_path / "out" / "why.json",
        "--device": "cpu",
    }


def words_of(arguments):
    return [str(text) for pair in arguments.items() for text in pair]


def test_the_command_writes_json_picture_and_attention(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "grey").save(f"{trained['--image-id']}.jpg")
    main(words_of(trained | {"--overlay": tmp_path / "why.png", "--attention": tmp_path / "attention.npy"}))
    content = json.loads(trained["--output"].read_text())
    assert content["run"] == "small" and content["sentence"] == "a green bus"
    assert content["parts"][0]["place"] == [0.125, 0.125, 0.625, 0.78125]
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.size[0] == 640 and picture.size[1] > 640
        colours = np.asarray(picture.convert("RGB"))[:640].reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 50
    attention = np.load(tmp_path / "attention.npy")
    regions = sum(part["kind"] == "region" for part in content["parts"])
    assert attention.shape == (regions, 64, 64) and np.allclose(attention.sum((1, 2)), 1, atol=1e-4)


def test_a_picture_needs_its_image_and_holds_words_of_any_length(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = trained | {"--overlay": tmp_path / "why.png", "--sentence": "a " + "x" * 500}
    with pytest.raises(
        UserError, match=r"\.jpg: the image cannot be read \(No such file or directory\); .*leave the picture out"
    ):
        main(words_of(given))
    Image.new("RGB", (64, 64), "grey").save(f"{trained['--image-id']}.jpg")
    main(words_of(given))
    with Image.open(tmp_path / "why.png") as picture:
        words = np.asarray(picture.convert("RGB"))[640:]
    assert (words[:, -8:] == 255).all(), "nothing is cut at the edge"


def test_an_image_is_known_by_its_file_s_name_and_unknown_words_are_noted(trained, capsys):
    main(words_of(trained | {"--image-id": f"{trained['--image-id']}.jpg", "--sentence": "a ☃ bus"}))
    assert json.loads(trained["--output"].read_text())["image_id"] == trained["--image-id"]
    assert "note: small does not know ☃\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--image-id": "image003x"}, "--image-id: 'image003x' is not in .*did you mean 'image003'"),
        ({"--run": "nowhere"}, "nowhere is not a run folder"),
        ({"--panoptic": None}, "--panoptic: missing"),
        ({"--sentence": " "}, "--sentence is empty"),
        ({"--sentence": "\udcff"}, "--sentence: '.*' is not UTF-8"),
        ({"--overlay": "why", "--output": "why"}, "--output, --overlay and --attention are one file"),
    ],
)
def test_mistakes_name_the_flag_and_the_value(trained, change, message):
    arguments = {key: value for key, value in (trained | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        main(words_of(arguments))
    assert torch.is_grad_enabled()


def test_a_part_answers_to_words_each_once_without_marks():
    words = ("[CLS]", "a", "red", ",", "a", "dog", "[SEP]")
    shares = np.array([[0.9, 0.5, 0.1, 0.8, 0.4, -0.2, 0.7], [-1.0] * 7])
    one = Explanation(0.0, words, ("region",) * 2, shares, np.zeros(2), cells(2, 1))
    assert answered(one, 0) == ["a", "red"] and answered(one, 0, 1) == ["a"] and answered(one, 1) == []
