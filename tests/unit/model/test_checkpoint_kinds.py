"""Checkpoints of VSE-infinity's and SCAN's authors: every number and every key arrives, nothing in a file is run."""

import argparse
import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from core.console import UserError
from model.checkpoint import (
    export_checkpoint,
    import_checkpoint,
    import_reference,
    load_reference,
    load_scan,
    load_vse_infinity,
    main,
)
from model.words import write_word_vocabulary

from .test_checkpoint import reference_checkpoint

SCORE = {"cross_attn": "i2t", "raw_feature_norm": "l2norm", "agg_func": "Max", "lambda_lse": 5, "lambda_softmax": 4.0}


def gru(prefix, inputs, hidden, both=True):
    """A GRU's weights as one storage, of which each is a view: as a GPU lays them out."""
    shapes = {}
    for way in ("", "_reverse")[: 1 + both]:
        shapes |= {
            f"{prefix}.weight_ih_l0{way}": (3 * hidden, inputs),
            f"{prefix}.weight_hh_l0{way}": (3 * hidden, hidden),
            f"{prefix}.bias_ih_l0{way}": (3 * hidden,),
            f"{prefix}.bias_hh_l0{way}": (3 * hidden,),
        }
    flat = torch.randn(sum(torch.Size(shape).numel() for shape in shapes.values())) * 0.3
    views = zip(flat.split([torch.Size(shape).numel() for shape in shapes.values()]), shapes.items(), strict=True)
    return {key: part.view(shape) for part, (key, shape) in views}


def pool():
    return gru("gpool.gru", 8, 4) | {"gpool.linear.weight": torch.randn(1, 4)}


def words(number=9, *, pooled, size=6):
    return {"embed.weight": torch.randn(number, 5)} | gru("rnn", 5, size) | (pool() if pooled else {})


def region(size=6):
    image = {"fc.weight": torch.randn(size, 7), "fc.bias": torch.randn(size), **pool()}
    image |= {"mlp.layers.0.weight": torch.randn(size // 2, 7), "mlp.layers.0.bias": torch.randn(size // 2)}
    image |= {"mlp.layers.1.weight": torch.randn(size, size // 2), "mlp.layers.1.bias": torch.randn(size)}
    for norm, width in (("0", size // 2), ("1", size)):
        image |= {
            f"mlp.bns.{norm}.{name}": torch.rand(width) for name in ("weight", "bias", "running_mean", "running_var")
        }
        image[f"mlp.bns.{norm}.num_batches_tracked"] = torch.tensor(3)
    return image


def write(path, image, text, prefix="", **options):
    states = [{prefix + key: value for key, value in state.items()} for state in (image, text)]
    content = {"epoch": 3, "model": states, "best_rsum": 1.0, "opt": argparse.Namespace(**options), "Eiters": 9}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_vse_infinity_of_regions_and_words(tmp_path, prefix):
    torch.manual_seed(0)
    image, text = region(), words(pooled=True)
    network = load_vse_infinity(write(tmp_path / "best.pth", image, text, prefix, no_imgnorm=True))
    assert network.image.sizes.mlp and not network.image.sizes.normalise_images and network.text.normalise
    visual, lengths = torch.randn(2, 3, 7), torch.tensor([3, 1])
    found = network.encode_images(visual, lengths)
    # An image of one token: nothing to weigh.
    token = visual[1, 0]
    hidden = image["mlp.layers.0.weight"] @ token + image["mlp.layers.0.bias"]
    norm = {name: image[f"mlp.bns.0.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
    hidden = (hidden - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
    expected = image["mlp.layers.1.weight"] @ hidden.relu() + image["mlp.layers.1.bias"]
    torch.testing.assert_close(found[1], expected + image["fc.weight"] @ token + image["fc.bias"])
    captions = network.encode_captions(torch.tensor([[1, 4, 2], [1, 2, 0]]), torch.tensor([3, 2]))
    assert captions.shape == (2, 6) and torch.allclose(captions.norm(dim=1), torch.ones(2), atol=1e-5)


def grid_cnn():
    stages = {"conv1": "base.0", "bn1": "base.1", "layer1": "base.4", "layer4": "top.0"}
    cnn = {"backbone.resnet.fc.weight": torch.randn(2, 2)}
    for ours, twin in stages.items():
        weight = torch.randn(2, 2)
        cnn |= {f"backbone.resnet.{ours}.0.weight": weight, f"backbone.{twin}.0.weight": weight}
    return cnn


def test_of_a_grid_checkpoint_the_head_is_loaded_and_the_cnn_accounted_for(tmp_path):
    head = {f"image_encoder.{key}": value for key, value in region().items() if not key.startswith("mlp.")}
    network = load_vse_infinity(write(tmp_path / "grid.pth", head | grid_cnn(), words(pooled=True), "module."))
    assert not network.image.sizes.mlp
    torch.testing.assert_close(network.image.projection.weight, head["image_encoder.fc.weight"])
    other = grid_cnn() | {
        "backbone.resnet.layer1.0.weight": torch.zeros(2, 2),
        "backbone.strange.weight": torch.zeros(1),
    }
    with pytest.raises(UserError) as caught:
        load_vse_infinity(write(tmp_path / "grid.pth", head | other, words(pooled=True)))
    assert "backbone.resnet.layer1.0.weight differs from its twin" in str(caught.value)
    assert "unexpected backbone.strange.weight" in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("normed", [False, True])
def test_scan_and_how_it_scores(tmp_path, normed):
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 7), torch.randn(6)
    image = {"fc.weight": weight, "fc.bias": bias}
    if normed:  # its length as torch 0.3 kept it
        image = {"fc.weight_v": 3 * weight, "fc.weight_g": weight.norm().view(1), "fc.bias": bias}
    network = load_scan(write(tmp_path / "best.pth.tar", image, words(pooled=False), **SCORE))
    sizes = network.image.sizes
    assert (sizes.cross_attn, sizes.raw_feature_norm, sizes.agg_func) == ("i2t", "l2norm", "Max")
    visual, lengths = torch.randn(2, 3, 7), torch.tensor([3, 2])
    images = network.encode_images(visual, lengths)
    expected = torch.nn.functional.normalize(visual[0] @ weight.T + bias, dim=1)
    torch.testing.assert_close(images[0], expected, atol=1e-5, rtol=1e-4)
    assert not images[1, 2].any()
    tokens, token_lengths = torch.tensor([[1, 4, 2], [1, 2, 0]]), torch.tensor([3, 2])
    captions = network.encode_captions(tokens, token_lengths)
    assert captions.shape == (2, 3, 6) and not captions[1, 2].any()
    assert network.similarity(images, lengths, captions, token_lengths).shape == (2, 2)


def test_scan_without_its_options_is_refused(tmp_path):
    image, text = {"fc.weight": torch.randn(6, 7), "fc.bias": torch.randn(6)}, words(pooled=False)
    path = write(tmp_path / "best.pth.tar", image, text, cross_attn="t2i")
    with pytest.raises(UserError, match="raw_feature_norm, agg_func, lambda_lse, lambda_softmax"):
        load_scan(path)
    assert load_scan(path, options=SCORE).image.sizes.agg_func == "Max"
    with pytest.raises(UserError, match="agg_func: 'Median'"):
        load_scan(path, options=SCORE | {"agg_func": "Median"})


def test_what_does_not_fit_is_told(tmp_path):
    scan = {"fc.weight": torch.randn(6, 7), "fc.bias": torch.randn(6)}
    path = write(tmp_path / "scan.pth", scan, words(pooled=False), **SCORE)
    with pytest.raises(UserError, match="of kind scan, not vse_infinity"):
        load_vse_infinity(path)
    with pytest.raises(UserError, match="of kind scan, not 3shnet"):
        load_reference(path)
    vse = write(tmp_path / "vse.pth", region(), words(pooled=True))
    with pytest.raises(UserError, match="of kind vse_infinity, not scan"):
        load_scan(vse)
    write_word_vocabulary(tmp_path / "vocab.json", ["<pad>", "<start>", "<end>", "<unk>", "a", "b", "c", "d", "e"])
    load_scan(path, tmp_path / "vocab.json")
    with pytest.raises(UserError, match="has 10 words with <mask>, but the text encoder in .* has 9"):
        load_vse_infinity(vse, tmp_path / "vocab.json")
    broken = region() | {"mlp.layers.2.weight": torch.zeros(1)}
    del broken["gpool.linear.weight"]
    with pytest.raises(UserError) as caught:
        load_vse_infinity(write(tmp_path / "vse.pth", broken, words(pooled=True)))
    assert "layers.2.weight" in str(caught.value) and "missing the weights for image.pool.score" in str(caught.value)


class Exploit:
    def __reduce__(self):
        return print, ("the file was run",)


class Vocabulary:
    """As older files of this family hold their words."""

    def __init__(self, words):
        self.word2idx = words


def test_words_in_a_file_are_plain_values(tmp_path, monkeypatch):
    scan, path = {"fc.weight": torch.randn(6, 7), "fc.bias": torch.randn(6)}, tmp_path / "scan.pth"
    monkeypatch.setattr(Vocabulary, "__module__", "vocab")
    monkeypatch.setitem(sys.modules, "vocab", SimpleNamespace(Vocabulary=Vocabulary))
    for whole in (True, False):
        content = {"model": [scan, words(pooled=False)], "opt": SCORE, "vocab": Vocabulary({"a": 1})}
        torch.save(content, path, _use_new_zipfile_serialization=whole)
        assert load_scan(path).text.embedding.num_embeddings == 9
        torch.save(content | {"vocab": Vocabulary(Exploit())}, path, _use_new_zipfile_serialization=whole)
        with pytest.raises(UserError, match=r"asks for (builtins\.)?print; get one"):
            load_scan(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fc.weight": torch.full((6, 7), torch.nan)}, "image.projection.weight holds values that are not finite"),
        ({"fc.weight": torch.ones(6, 7).long()}, "image.projection.weight is of torch.int64"),
        ({"fc.weight": torch.ones(6, 7).to_sparse()}, "'fc.weight' in its `model` is no tensor of weights"),
        ({"fc.weight": torch.ones(6)}, "another number of dimensions"),
        ({"fc.weight": torch.ones(8, 7), "fc.bias": torch.ones(8)}, "in 8 numbers, its captions in 6"),
    ],
    ids=["nan", "whole", "sparse", "vector", "width"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_weights_that_are_none_are_told(tmp_path, change, told):
    scan = {"fc.weight": torch.randn(6, 7), "fc.bias": torch.randn(6)}
    with pytest.raises(UserError, match=told):
        load_scan(write(tmp_path / "scan.pth", scan | change, words(pooled=False), **SCORE))


def test_a_file_that_is_no_checkpoint_is_told(tmp_path):
    good = write(tmp_path / "good.pth", {"fc.weight": torch.randn(6, 7)}, words(pooled=False), **SCORE).read_bytes()
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "cut.pth").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.pth.tar").touch()
    for name, told in (
        ("loop.pth", "a link that leads nowhere"),
        ("pipe.pth", "no file but a pipe"),
        ("cut.pth", "cut off .*; copy or download it again"),
        ("empty.pth.tar", r"empty \(0 bytes\)"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            load_scan(tmp_path / name)
        assert name in str(caught.value) and "weights_only" not in str(caught.value)


def test_odd_options_and_a_missing_encoder_are_told(tmp_path):
    scan = {"fc.weight": torch.randn(6, 7), "fc.bias": torch.randn(6)}
    for value, told in (
        ("six", "'six' - should be a valid number"),
        (None, "None - is empty"),
        ([1], r"\[1\] - should be"),
    ):
        path = write(tmp_path / "scan.pth", scan, words(pooled=False), **SCORE | {"lambda_lse": value})
        with pytest.raises(UserError, match=f"lambda_lse: {told}"):
            load_scan(path)
    with pytest.raises(UserError, match="holds no text encoder"):
        import_checkpoint(write(tmp_path / "scan.pth", scan, {}, **SCORE), tmp_path / "run", by_workflow=True)


def test_what_is_said_beside_a_file_counts_or_is_refused(tmp_path, capsys):
    scan = {"fc.weight": torch.randn(6, 7), "fc.bias": torch.randn(6)}
    scored = write(tmp_path / "scan.pth", scan, words(pooled=False), **SCORE)
    vse = write(tmp_path / "vse.pth", region(), words(pooled=True))
    authors = tmp_path / "region.pth"
    reference_checkpoint(authors, bert_width=96)
    for path, flags, told in (
        (
            vse,
            ["--class-order", "coco"],
            "--class-order coco: .* is of kind vse_infinity, which has no such choice; leave",
        ),
        (scored, ["--void-value", "0"], "--void-value 0: .* is of kind scan"),
        (authors, ["--options", '{"no_imgnorm": true}'], "--options .*: .* is of kind 3shnet"),
        (vse, ["--heads", "2"], "--heads 2: .* reads words, of which there is no such choice"),
        (authors, ["--lowercase", "ascii"], "--lowercase ascii: .* reads pieces"),
        (authors, ["--heads", "7"], "its BERT is 96 wide, which 7 attention heads do not divide; name as many"),
        (scored, ["--options", '{"agg_fun": "Max"}'], "options: 'agg_fun' is none of .*; did you mean 'agg_func'"),
        (vse, ["--options", '{"no_imgnorm": "yes"}'], "options: no_imgnorm is 'yes'; write true or false"),
    ):
        with pytest.raises(UserError, match=told):
            main(["import", str(path), str(tmp_path / "run"), *flags])
    for flags in (["--heads", "0"], ["--max-tokens", "2"], ["--void-value", "256"], ["--heads", "two"]):
        with pytest.raises(SystemExit):
            main(["import", str(authors), str(tmp_path / "run"), *flags])
        assert f"argument {flags[0]}: '{flags[1]}' is no whole number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    for load in (load_vse_infinity, load_scan):
        torch.save({"model": [region(), {}], "opt": Exploit()}, tmp_path / "evil.pth")
        with pytest.raises(UserError, match="nothing in it was run"):
            load(tmp_path / "evil.pth")
        torch.save({"model": [{"fc.weight": "no tensor"}, {}]}, tmp_path / "odd.pth")
        with pytest.raises(UserError, match="no tensor of weights"):
            load(tmp_path / "odd.pth")
    assert "the file was run" not in capsys.readouterr().out


def same_states(path, written):
    """Both files' states, by key, are equal; but for the norms that are never applied."""
    for before, after in zip(*(torch.load(p, weights_only=False)["model"] for p in (path, written)), strict=True):
        before, after = ({k.removeprefix("module."): v for k, v in state.items()} for state in (before, after))
        unused = {
            key
            for key in before | after
            if "bns.1." in key or "pooler" in key or "tracked" in key or "position_ids" in key
        }
        assert before.keys() - unused == after.keys() - unused
        assert all(torch.equal(before[key], after[key]) for key in before.keys() - unused)


def test_what_is_written_is_what_was_read(tmp_path):
    torch.manual_seed(0)
    scan = {"fc.weight_g": torch.rand(()), "fc.weight_v": torch.randn(6, 7), "fc.bias": torch.randn(6)}
    vocabulary = ["<pad>", "<start>", "<end>", "<unk>", "a", "b", "c", "d"]
    write_word_vocabulary(tmp_path / "vse_vocab.json", vocabulary)
    write_word_vocabulary(tmp_path / "scan_vocab.json", [*vocabulary, "e"])
    files = {
        "vse": write(tmp_path / "vse.pth", region(), words(pooled=True), no_txtnorm=True),
        "scan": write(tmp_path / "scan.pth", scan, words(pooled=False), **SCORE),
    }
    for name, path in files.items():
        main(["import", str(path), str(tmp_path / name), "--vocabulary", str(tmp_path / f"{name}_vocab.json")])
        with pytest.raises(UserError, match="pool_position_size is 8") if name == "vse" else nullcontext():
            main(["export", str(tmp_path / name), str(tmp_path / f"{name}_checked.pth")])
        export_checkpoint(tmp_path / name, tmp_path / f"{name}_again.pth", check=False)
        same_states(path, tmp_path / f"{name}_again.pth")
        again = tmp_path / f"{name}_again_precomp_vocab.json"
        assert again.read_text() == (tmp_path / f"{name}_vocab.json").read_text()
    assert load_scan(tmp_path / "scan_again.pth").image.sizes == load_scan(files["scan"]).image.sizes
    assert not load_vse_infinity(tmp_path / "vse_again.pth").text.normalise
    # Nothing that somebody has is written over: neither a file, nor the words beside one, nor another import.
    with pytest.raises(UserError, match=r"scan\.pth is there and is not written over"):
        export_checkpoint(tmp_path / "scan", files["scan"], check=False)
    (tmp_path / "other_precomp_vocab.json").write_text("somebody's")
    with pytest.raises(UserError, match=r"other_precomp_vocab\.json is there"):
        export_checkpoint(tmp_path / "scan", tmp_path / "other.pth", check=False)
    assert not (tmp_path / "other.pth").exists()
    with pytest.raises(UserError, match=r"holds vse\.pth, imported here; import .*scan\.pth into another folder"):
        main(["import", str(files["scan"]), str(tmp_path / "vse"), "--vocabulary", str(tmp_path / "scan_vocab.json")])
    main(["import", str(files["vse"]), str(tmp_path / "vse"), "--vocabulary", str(tmp_path / "vse_vocab.json")])


def test_3shnet_is_written_in_its_authors_order_of_classes(tmp_path):
    reference_checkpoint(tmp_path / "ref.pth")
    import_reference(tmp_path / "ref.pth", tmp_path / "run")
    with pytest.raises(UserError) as caught:
        export_checkpoint(tmp_path / "run", tmp_path / "again.pth")
    assert "model.spatial_size is 8; theirs is always 128" in str(caught.value)
    export_checkpoint(tmp_path / "run", tmp_path / "again.pth", check=False)
    same_states(tmp_path / "ref.pth", tmp_path / "again.pth")


def test_a_trained_run_is_not_imported_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/history.csv").touch()
    path = write(tmp_path / "vse.pth", region(), words(pooled=True))
    with pytest.raises(UserError, match="was trained here"):
        import_checkpoint(path, tmp_path / "run")
    for name, content in (("config.json", b'{"format_version": 2, "training": {}}'), ("model.safetensors", b"weights")):
        (tmp_path / "given").mkdir(exist_ok=True)
        (tmp_path / "given" / name).write_bytes(content)
    with pytest.raises(UserError, match="given holds a run that somebody put there; import"):
        import_checkpoint(path, tmp_path / "given")
    with pytest.raises(UserError, match="of kind vse_infinity, not scan"):
        import_checkpoint(path, tmp_path / "other", kind="scan")
    with pytest.raises(UserError, match="no vocabulary of 9 words found"):
        import_checkpoint(path, tmp_path / "other", by_workflow=True)
