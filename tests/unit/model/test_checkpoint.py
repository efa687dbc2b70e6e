from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from catalog.categories import UPSNET_TO_COCO
from core.console import UserError
from model.checkpoint import import_reference, load_reference, main
from model.checkpoints.three_shnet import IMAGE_PREFIXES
from model.runs import load_run, save_run
from model.small_encoder import SmallConfig, SmallEncoder
from model.three_shnet import ThreeSHNet
from model.tokenizer import SPECIAL_TOKENS, CaptionTokenizer
from tests.unit.model import naive
from tests.unit.model.helpers import image_encoder, text_encoder

ROOT = Path(__file__).parents[3]
VOCABULARY = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(45))]


def mlp(name, i, h, o):
    return {
        f"{name}.layers.0": (h, i), f"{name}.layers.1": (o, h),
        f"{name}.bns.0": (h, "norm"), f"{name}.bns.1": (o, "norm"),
    }  # fmt: skip


def reference_checkpoint(path, *, img_dim=24, e=16, spatial=8, bert_width=128, seed=0, change=None):
    """A file as the authors' training script writes it: their names and shapes, seeded random weights."""
    h = e // 2
    layers = {
        "embed_seg_C.1": (e, 133), "embed_seg_C.4": (e,), "embed_category.0": (e, 133), "embed_category.3": (e,),
        **mlp("crossmodalfusion_sm.MLP_image", e, h, e), **mlp("crossmodalfusion_sm.MLP_seg", e, h, e),
        "crossmodalfusion_sm.embed_seg_HW.2": (e, 133), "crossmodalfusion_sm.embed_seg_HW.5": (e,),
        "crossmodalfusion_sm.fc_scale": (e, e), "crossmodalfusion_sm.fc_1": (e, e),
        **mlp("crossmodalfusion_sp.MLP_image", e, h, spatial),
        "crossmodalfusion_sp.embedding_Seg.0": (spatial, 9, 3, 3),
        "crossmodalfusion_sp.embedding_Seg.1": (spatial, "norm"),
        **mlp("crossmodalfusion_sp.embed_fusion", spatial, h, e),
        "fc": (e, img_dim), **mlp("mlp", img_dim, h, e), **mlp("seg_mlp", e, h, e), **mlp("fusion_mlp", e, h, e),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    def pool():
        found = {"gpool.linear.weight": draw(1, 32)}
        for end in ("", "_reverse"):
            found |= {f"gpool.gru.{w}_l0{end}": draw(96, 32) for w in ("weight_ih", "weight_hh")}
            found |= {f"gpool.gru.{b}_l0{end}": draw(96) for b in ("bias_ih", "bias_hh")}
        return found

    image = OrderedDict()
    for name, shape in layers.items():
        norm = shape[-1] == "norm"
        image[f"{name}.weight"] = draw(shape[0]) + 1 if norm else draw(*shape)
        image[f"{name}.bias"] = draw(shape[0])
        if norm:
            image[f"{name}.running_mean"], image[f"{name}.running_var"] = draw(shape[0]), draw(shape[0]).abs() + 0.5
            image[f"{name}.num_batches_tracked"] = torch.tensor(7)
    image |= pool()
    torch.manual_seed(seed)
    bert = SmallEncoder(SmallConfig(len(VOCABULARY), bert_width, 1, 2, 48, 20))
    text = OrderedDict({f"bert.{key}": value for key, value in bert.state_dict().items()})
    text["bert.embeddings.position_ids"] = torch.arange(20)[None]
    text |= {"bert.pooler.dense.weight": draw(bert_width, bert_width), "bert.pooler.dense.bias": draw(bert_width)}
    text |= {"linear.weight": draw(e, bert_width), "linear.bias": draw(e)} | pool()
    if change:
        change(image, text)
    states = [OrderedDict((f"module.{key}", value) for key, value in state.items()) for state in (image, text)]
    options = argparse.Namespace(embed_size=e, data_name="coco", learning_rate=np.float64(5e-4))
    torch.save({"epoch": 3, "model": states, "best_rsum": np.float64(538.0), "opt": options, "Eiters": 9}, path)
    return image, text


def inputs(seed=0, lengths=(3, 1, 12)):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    visual = torch.randn(3, 12, 24, generator=generator)
    maps = torch.randint(0, 133, (3, 8, 8), generator=generator)
    onehots = (torch.rand(3, 133, generator=generator) > 0.9).float()
    return visual, lengths, maps, onehots, torch.rand(3, 133, 7, 7, generator=generator)


def oracle_embeddings(image, visual, lengths, numbers, onehots, segments):
    """The formulae on the authors' weights and inputs in the authors' class order."""
    renamed = {}
    for key, value in image.items():
        prefix = max((p for p in IMAGE_PREFIXES if key.startswith(f"{p}.")), key=len)
        rest = key[len(prefix) :].replace(".layers.0", ".hidden").replace(".layers.1", ".output")
        renamed[f"image.{IMAGE_PREFIXES[prefix]}{rest.replace('.bns.0', '.norm')}"] = value.double()
    return naive.encode_images(renamed, visual, lengths, numbers, onehots, segments)


@pytest.mark.parametrize("encoding", ["raw", "standardised"])
@torch.no_grad()
def test_reference_embeddings_in_our_class_order(tmp_path, encoding):
    image, text = reference_checkpoint(tmp_path / "ref.pth")
    network = load_reference(tmp_path / "ref.pth", class_order="upsnet", seg_map_encoding=encoding)
    assert not network.training
    visual, lengths, maps, onehots, segments = inputs()  # the authors' order: class u
    numbers = maps.double()
    if encoding == "standardised":
        numbers = (numbers / 133 - 0.3342) / 0.0621
    expected = oracle_embeddings(image, visual, lengths, numbers, onehots, segments)
    ours = list(UPSNET_TO_COCO)
    our_onehots, our_segments = torch.zeros_like(onehots), torch.zeros_like(segments)
    our_onehots[:, ours], our_segments[:, ours] = onehots, segments
    found = network.encode_images(visual, lengths, torch.tensor(ours)[maps].to(torch.uint8), our_onehots, our_segments)
    assert (found - expected).abs().max() < 1e-5
    same_order = load_reference(tmp_path / "ref.pth", class_order="coco", seg_map_encoding=encoding)
    found = same_order.encode_images(visual, lengths, maps.to(torch.uint8), onehots, segments)
    assert (found - expected).abs().max() < 1e-5

    ids, lengths = torch.tensor([[2, 9, 4, 3], [2, 30, 3, 0]]), torch.tensor([4, 3])
    weights = {"text.projection" + k[6:]: v.double() for k, v in text.items() if k.startswith("linear.")}
    weights |= {
        k.replace("gpool.gru", "text.pool.gru").replace("gpool.linear", "text.pool.score"): v.double()
        for k, v in text.items()
        if k.startswith("gpool")
    }
    expected = naive.encode_captions(weights, network.text.bert(ids, lengths), lengths)
    assert (network.encode_captions(ids, lengths) - expected).abs().max() < 1e-5


def test_sizes_come_from_the_weights(tmp_path):
    image, _ = reference_checkpoint(tmp_path / "ref.pth", img_dim=10, e=12, spatial=6, bert_width=64)
    network = load_reference(tmp_path / "ref.pth")
    sizes, bert = network.image.sizes, network.text.bert.config
    assert (sizes.img_dim, sizes.embed_size, sizes.spatial_size, sizes.num_categories) == (10, 12, 6, 133)
    assert (sizes.class_order, sizes.seg_map_encoding) == ("upsnet", "raw")
    assert (bert.vocabulary_size, bert.hidden_size, bert.max_positions) == (50, 64, 20)
    names = ("num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size")
    assert [bert.library[name] for name in names] == [1, 1, 48, 2]
    assert load_reference(tmp_path / "ref.pth", heads=4).text.bert.config.library["num_attention_heads"] == 4
    assert len([key for key in image if "running" not in key and "tracked" not in key]) == 87
    assert len(image) == 132


def test_every_key_is_accounted_for(tmp_path):
    def change(image, text):
        image["surprise.weight"] = torch.zeros(1)
        text["bert.encoder.layer.0.extra"] = torch.zeros(1)
        del image["crossmodalfusion_sp.embed_fusion.layers.1.bias"]
        image["fusion_mlp.layers.0.weight"] = torch.zeros(3, 3)

    reference_checkpoint(tmp_path / "ref.pth", change=change)
    with pytest.raises(UserError) as caught:
        load_reference(tmp_path / "ref.pth")
    message = str(caught.value)
    for part in (
        "image encoder: unexpected surprise.weight",
        "unexpected text.bert.model.encoder.layer.0.extra",
        "missing the weights for image.spatial.fusion_mlp.output.bias",
        "image.fusion_mlp.hidden.weight has shape (3, 3), expected (8, 16)",
    ):
        assert part in message
    assert message.count("\n") == 4

    reference_checkpoint(tmp_path / "ref.pth", change=lambda image, text: image.pop("fc.weight"))
    with pytest.raises(UserError, match=r"missing the weights for 'token_projection.weight'"):
        load_reference(tmp_path / "ref.pth")


class Exploit:
    def __reduce__(self):
        return print, ("the file was run",)


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    torch.save({"model": [{}, {}], "opt": Exploit()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="nothing in it was run"):
        load_reference(tmp_path / "evil.pth")
    assert "the file was run" not in capsys.readouterr().out
    for content, message in (
        (b"PK\x03\x04 not a checkpoint", "is cut off"),
        (b"\x80\x02 nor this", "no file that PyTorch wrote"),
    ):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_reference(tmp_path / "broken.pth")
    with pytest.raises(UserError, match="does not exist; correct the path"):
        load_reference(tmp_path / "none.pth")
    torch.save({"weights": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no checkpoint of 3SHNet's authors"):
        load_reference(tmp_path / "other.pth")
    with pytest.raises(UserError, match="class_order is 'ups'"):
        load_reference(tmp_path / "other.pth", class_order="ups")


@torch.no_grad()
def test_a_run_folder_is_all_it_takes(tmp_path):
    torch.manual_seed(0)
    image = image_encoder(24, 16, 8, seg_map_encoding="standardised", void_value=7, pool_hidden_size=5)
    network = ThreeSHNet(
        image, text_encoder(SmallEncoder(SmallConfig(50, 32, 2, 4, 40, 30)), 16, pool_position_size=10)
    ).eval()
    tokenizer = CaptionTokenizer(VOCABULARY, lowercase=False, max_tokens=9)
    save_run(tmp_path / "run", network, tokenizer, config={"run": "one", "features": {"visual": None}})
    loaded, config, again = load_run(tmp_path / "run")
    assert not loaded.training and config["run"] == "one" and config["features"] == {"visual": None}
    assert (again.vocabulary, again.lowercase, again.max_tokens) == (VOCABULARY, False, 9)
    images = inputs()
    assert torch.equal(loaded.encode_images(*images), network.encode_images(*images))
    ids = torch.tensor([[2, 8, 30, 3]])
    assert torch.equal(loaded.encode_captions(ids, torch.tensor([4])), network.encode_captions(ids, torch.tensor([4])))


def test_a_run_folder_of_version_0_1_is_read(tmp_path):
    """It named no kind of network, as there was one, and described every text encoder as a BERT."""
    torch.manual_seed(0)
    network = ThreeSHNet(
        image_encoder(24, 16, 8), text_encoder(SmallEncoder(SmallConfig(50, 32, 1, 4, 40, 30)), 16)
    ).eval()
    save_run(tmp_path, network, None, config={"run": "old"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("kind") == "3shnet" and config["format_version"] == 2
    config["text"] |= {"token_types": 2, "activation": "gelu", "layer_norm_eps": 1e-12}
    (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 1}))
    images, ids, lengths = inputs(), torch.tensor([[2, 8, 30, 3], [2, 3, 0, 0]]), torch.tensor([4, 2])
    loaded = load_run(tmp_path)[0]
    with torch.no_grad():
        assert torch.equal(loaded.encode_images(*images), network.encode_images(*images))
        difference = loaded.encode_captions(ids, lengths) - network.encode_captions(ids, lengths)
    assert difference.abs().max() < 1e-5


def test_a_run_folder_that_does_not_fit_is_explained(tmp_path):
    torch.manual_seed(0)
    network = ThreeSHNet(image_encoder(24, 16, 8), text_encoder(SmallEncoder(SmallConfig(50, 32, 1, 4, 40, 30)), 16))
    save_run(tmp_path, network, None, config={})
    assert load_run(tmp_path)[2] is None
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        load_run(tmp_path)
    config["image"]["embed_size"] = 18
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="do not fit together"):
        load_run(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="its training has not finished"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="is not a run folder"):
        load_run(tmp_path / "none")


@torch.no_grad()
def test_import_command_makes_a_run_folder(tmp_path):
    reference_checkpoint(tmp_path / "ref.pth")
    CaptionTokenizer(VOCABULARY).save(tmp_path / "words.txt")
    paths = [str(tmp_path / name) for name in ("ref.pth", "run", "words.txt")]
    main(["import", *paths[:2], "--vocabulary", paths[2]])
    network, config, tokenizer = load_run(tmp_path / "run")
    assert config["source"]["imported"] == "ref.pth" and tokenizer.vocabulary == VOCABULARY
    assert tokenizer.max_tokens == 20  # its BERT's positions
    images = inputs()
    expected = load_reference(tmp_path / "ref.pth").encode_images(*images)
    assert torch.equal(network.encode_images(*images), expected)


def test_import_looks_for_the_vocabulary(tmp_path, capsys):
    reference_checkpoint(tmp_path / "ref.pth")
    import_reference(tmp_path / "ref.pth", tmp_path / "run")
    assert "no vocabulary of 50 pieces found" in capsys.readouterr().err
    assert load_run(tmp_path / "run")[2] is None
    CaptionTokenizer(VOCABULARY).save(tmp_path / "vocab.txt")
    import_reference(tmp_path / "ref.pth", tmp_path / "run")
    assert load_run(tmp_path / "run")[2].vocabulary == VOCABULARY
    CaptionTokenizer(VOCABULARY[:-1]).save(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="has 49 pieces, but the text encoder in .* has 50"):
        import_reference(tmp_path / "ref.pth", tmp_path / "run")
