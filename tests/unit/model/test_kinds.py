"""Networks of the other kinds: made from settings, trained, written and read again; each with its published recipe."""

import numpy as np
import pytest
import torch

from core.console import UserError
from core.messages import validated
from model.build import new_network
from model.data import Features, TrainingPairs, read_split
from model.embed import score_pairs
from model.kernels import cross_attention
from model.ranking import ranks_from_similarity, retrieval_scores
from model.runs import load_run
from model.settings import Recipe, Run
from model.training.loop import train, validate

WORDS = {"kind": "bigru", "word_size": 8, "min_count": 1}
PIECES = {"pretrained": None, "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 32}
SMALL = {"epochs": 3, "batch_size": 10, "learning_rate": 5e-3, "text_lr_factor": 1.0, "workers": 0}


def trained(world, folder, model, text, **numbers):
    recipe = Recipe(model={"embed_size": 16} | model, text=text, training=SMALL | numbers)
    split, val = (read_split(world.images, world.captions, name) for name in ("train", "val"))
    features = Features(world.visual, None, index_digest=world.digest)
    torch.manual_seed(0)
    network, tokenizer = new_network(recipe, split.captions, img_dim=features.img_dim)
    numbers = recipe.training
    pairs = TrainingPairs(
        split, features, tokenizer, batch_size=numbers.batch_size, token_drop=numbers.token_drop,
        word_augmentation=numbers.word_augmentation, keep_last=numbers.keep_last_batch,
    )  # fmt: skip
    last = train(
        network, pairs, recipe.training, output=folder / "run", state=folder / "state", validation=val, device="cpu"
    )
    return network, pairs, val, last


@pytest.mark.parametrize("text", [WORDS, PIECES], ids=["words", "pieces"])
@pytest.mark.parametrize(
    "model",
    [
        {"kind": "vse_infinity"},
        {"kind": "vse_infinity", "mlp": False},
        {"kind": "scan"},
        {"kind": "scan", "cross_attn": "i2t", "agg_func": "Mean", "lambda_softmax": 4.0, "weight_norm": True},
    ],
    ids=["vse", "vse-plain", "t2i", "i2t"],
)
def test_a_kind_learns_and_its_run_is_read_again(world, tmp_path, model, text):
    network, pairs, val, last = trained(world, tmp_path, model, text)
    assert np.isfinite(last["train_loss"]) and last["epoch"] == 3
    loaded, config, tokenizer = load_run(tmp_path / "run")
    assert config["kind"] == model["kind"] and tokenizer.vocabulary == pairs.tokenizer.vocabulary
    pairs.tokenizer = tokenizer
    again = validate(loaded, pairs, val, run="run", workers=0)
    assert again["rsum"] <= 600 and type(loaded) is type(network)


def test_scores_of_pairs_do_not_depend_on_blocks(world, tmp_path):
    network, pairs, val, _ = trained(world, tmp_path, {"kind": "scan"}, WORDS, epochs=1)
    network.eval()
    captions = [*val.captions, val.captions[0]]
    arguments = (network, pairs.features, val.image_rows, pairs.tokenizer, captions)
    whole = score_pairs(*arguments)
    parts = score_pairs(*arguments, images_at_once=2, captions_at_once=3)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    np.testing.assert_array_equal(parts[:, -1], parts[:, 0])  # captions that read alike tie exactly
    # Each pair by itself, as the formula says.
    found = pairs.features.rows(val.image_rows)
    for image, caption in ((0, 0), (1, 2)):
        regions = torch.from_numpy(found["features"][image : image + 1]).float()
        tokens, lengths = pairs.tokenizer.encode([captions[caption]])
        with torch.no_grad():
            embedded = network.encode_images(regions, torch.from_numpy(found["counts"][image : image + 1]).long())
            words = network.encode_captions(torch.from_numpy(tokens), torch.from_numpy(lengths))
        expected = cross_attention.reference(
            embedded,
            torch.from_numpy(found["counts"][image : image + 1]),
            words,
            torch.from_numpy(lengths),
            direction="t2i",
        )
        assert abs(whole[image, caption] - expected.item()) < 1e-5
    assert retrieval_scores(*ranks_from_similarity(whole[:, :-1], val.caption_image))["rsum"] <= 600


def test_recipes_are_the_published_ones_and_keys_go_before():
    def recipe(**given):
        return Run(**{"dataset": "d", "visual": "regions"} | given)

    scan = recipe(model={"kind": "scan"})
    assert scan.text.kind == "bigru" and scan.text.lowercase == "ascii"
    assert (scan.training.optimizer, scan.training.epochs, scan.training.weight_decay) == ("adam", 30, 0.0)
    assert scan.training.keep_last_batch and scan.training.token_drop == 0.0
    words = recipe(model={"kind": "vse_infinity"}, text={"kind": "bigru"}, training={"epochs": 3})
    assert (words.training.weight_decay, words.training.batch_size, words.training.epochs) == (0.01, 128, 3)
    grids = recipe(visual="grids", model={"kind": "vse_infinity"})
    assert grids.training.token_drop_varies and grids.training.keep_last_batch and grids.training.weight_decay == 1e-4
    # What a training is handed reads the same, whatever is asked for.
    asked = recipe(visual="grids", model={"kind": "vse_infinity"}, training={"keep_last_batch": False})
    handed = Recipe(**asked.model_dump(exclude={"dataset", "visual"}))
    assert handed.training == asked.training and handed.text == asked.text
    ours = recipe().model_dump()
    assert "kind" not in ours["model"] and "kind" not in ours["text"] and "optimizer" not in ours["training"]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"model": {"kind": "3SHNET"}}, "model.kind: '3SHNET' is no kind of network; did you mean '3shnet'?"),
        ({"model": {"kind": "vse-infinity"}}, "did you mean 'vse_infinity'?"),
        ({"model": {"kind": "SCAN "}}, "did you mean 'scan'?"),
        ({"model": {"kind": "VSE++"}}, "choose one of 3shnet, vse_infinity, scan"),
        ({"model": {"kind": ["scan"]}}, "model.kind: ['scan'] - should be a valid string"),
        ({"model": {"kind": None}}, "model.kind: None - is empty"),
        ({"text": {"kind": "GRU"}}, "text.kind: 'GRU' is not a kind here; did you mean 'bigru'?"),
        ({"text": {"kind": []}}, "text.kind: [] is not a kind here; choose one of bert, bigru"),
    ],
    ids=str,
)
def test_a_kind_that_there_is_not(section, told):
    with pytest.raises(UserError) as caught:
        validated(Recipe, section, place="--settings")
    assert told in str(caught.value)


def test_an_epoch_keeps_its_last_batch_if_told_to(world):
    split = read_split(world.images, world.captions, "train")
    features = Features(world.visual, None)
    recipe = Recipe(model={"kind": "scan", "embed_size": 8}, text=WORDS)
    tokenizer = new_network(recipe, split.captions, img_dim=features.img_dim)[1]
    size = len(split.captions) - 3
    for keep, batches in ((False, 1), (True, 2)):
        pairs = TrainingPairs(split, features, tokenizer, batch_size=size, keep_last=keep)
        sizes = [len(batch.captions) for batch in pairs.batches(0)]
        assert sizes == [size, 3][:batches] and pairs.per_epoch == sum(sizes) and len(pairs) == batches
