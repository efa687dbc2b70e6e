"""Grids of vision backbones with random weights in published layouts, against the library's own outputs for one image at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from core.console import UserError
from extractors.engines import build_extractor
from extractors.images import iterate_batches
from extractors.settings import GridsTransformers

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 8}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}
SHORTEST = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
SQUARE = {"size": {"height": 64, "width": 64}}
# model, its configuration, image processor; (tokens before the patches, rows and columns), None: the result is a map
KINDS = {
    "dinov2": ("Dinov2Model", lambda: transformers.Dinov2Config(image_size=96, **VIT), "BitImageProcessor", SHORTEST, (1, 7, 7)),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel",
        lambda: transformers.Dinov2WithRegistersConfig(image_size=96, num_register_tokens=3, **VIT),
        "BitImageProcessor",
        SHORTEST,
        (4, 7, 7),
    ),
    "siglip": (
        "SiglipModel",
        lambda: transformers.SiglipConfig(text_config=TEXT, vision_config=VIT | {"image_size": 64}),
        "SiglipImageProcessor",
        SQUARE,
        (0, 8, 8),
    ),
    "clip": (
        "CLIPModel",
        lambda: transformers.CLIPConfig(
            text_config=TEXT | {"bos_token_id": 0, "eos_token_id": 1}, vision_config=VIT | {"image_size": 56}
        ),
        "CLIPImageProcessor",
        SHORTEST,
        (1, 7, 7),
    ),
    "deit": ("DeiTModel", lambda: transformers.DeiTConfig(image_size=56, **VIT), "DeiTImageProcessor", SHORTEST, (2, 7, 7)),
    "vit": ("ViTModel", lambda: transformers.ViTConfig(image_size=96, **VIT), "ViTImageProcessor", SQUARE, (1, 8, 8)),
    "swin": (
        "SwinModel",
        lambda: transformers.SwinConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4
        ),
        "ViTImageProcessor",
        SQUARE,
        (0, 4, 4),
    ),
    "convnext": (
        "ConvNextModel",
        lambda: transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_pct": 0.875},
        None,
    ),
    "mobilevit": (  # its last map is wider than its layers
        "MobileViTModel",
        lambda: transformers.MobileViTConfig(
            image_size=64, hidden_sizes=[8, 8, 16], neck_hidden_sizes=[8, 8, 8, 8, 8, 16, 24], num_attention_heads=2
        ),
        "BitImageProcessor",
        SHORTEST | {"crop_size": {"height": 64, "width": 64}},
        None,
    ),
    # Of 64 patches it would read 16 in any order, and these look like a map of 4 x 4.
    "vit_mae": ("ViTMAEModel", lambda: transformers.ViTMAEConfig(image_size=64, **VIT), "ViTImageProcessor", SQUARE, (1, 8, 8)),
    "hiera": (
        "HieraModel",
        lambda: transformers.HieraConfig(
            image_size=[64, 64], embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], num_query_pool=2
        ),
        "BitImageProcessor",
        SHORTEST | {"crop_size": {"height": 64, "width": 64}},
        (0, 4, 4),
    ),
    "siglip2": (  # of patches; how many of them an image has depends on its shape
        "Siglip2Model",
        lambda: transformers.Siglip2Config(text_config=TEXT, vision_config=VIT | {"num_patches": 16}),
        "Siglip2ImageProcessor",
        {"patch_size": 8, "max_num_patches": 16},
        "spatial_shapes",
    ),
    "blip": (  # whose vision side the library cannot make alone
        "BlipModel",
        lambda: transformers.BlipConfig(text_config=TEXT, vision_config=VIT | {"image_size": 64}),
        "BlipImageProcessor",
        SQUARE,
        (1, 8, 8),
    ),
}  # fmt: skip


def make_checkpoint(folder, kind):
    model, config, processor, sizes, _ = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, model)(config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    getattr(transformers, processor)(**sizes).save_pretrained(folder)
    return getattr(model, "vision_model", model)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two of one size, which share a batch, and one standing upright."""
    folder, paths = tmp_path_factory.mktemp("photos"), []
    for number, size in enumerate(((90, 60), (90, 60), (50, 110))):
        pixels = np.random.default_rng(number).integers(0, 255, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def extract(paths, **settings):
    settings = GridsTransformers(engine="transformers", **settings).model_dump()
    extractor = build_extractor("grids", **settings)
    rows = {}
    for batch in iterate_batches(paths, range(len(paths)), extractor.input, batch_size=2):
        rows.update(zip(batch.rows, extractor(batch), strict=True))
    return [rows[i] for i in range(len(paths))], extractor


@pytest.mark.parametrize("kind", KINDS)
def test_the_librarys_own_outputs(tmp_path, photos, kind):
    model, places = make_checkpoint(tmp_path, kind), KINDS[kind][4]
    native, extractor = extract(photos, weights=str(tmp_path), grid="native")
    pooled, _ = extract(photos, weights=str(tmp_path), grid=3)
    told = GridsTransformers(engine="transformers", weights=str(tmp_path)).width("grids")
    assert told in (None, native[0]["features"].shape[-1])
    assert extractor.attributes["engine"] == "transformers" and extractor.attributes["grid"] == "native"
    assert extractor.attributes["model"] in (kind, f"{kind}_vision_model") and len(extractor.weights_digest) == 64
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    more = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    if kind == "vit_mae":
        model.config.mask_ratio, more = 0.0, {"noise": torch.arange(64.0)[None]}
    for path, own, three in zip(photos, native, pooled, strict=True):
        inputs = processor(images=Image.open(path), return_tensors="pt")
        with torch.no_grad():
            (states,) = model(**inputs, **more).last_hidden_state
        if places == "spatial_shapes":
            rows, columns = inputs["spatial_shapes"][0].tolist()
            states = states[: rows * columns].T.unflatten(1, (rows, columns))
        elif places is not None:
            before, rows, columns = places
            assert len(states) == before + rows * columns
            states = states[before:].T.unflatten(1, (rows, columns))
        assert own["grid_shapes"].tolist() == list(states.shape[1:]) and own["counts"] == states[0].numel()
        expected = states.flatten(1).T.numpy()
        np.testing.assert_allclose(own["features"][: own["counts"]], expected, rtol=2e-3, atol=2e-3)
        assert (own["features"][own["counts"] :] == 0).all()
        expected = F.adaptive_avg_pool2d(states, 3).flatten(1).T.numpy()
        np.testing.assert_allclose(three["features"], expected, rtol=2e-3, atol=2e-3)


def test_what_gives_no_map_is_refused(tmp_path):
    config = transformers.YolosConfig(image_size=[64, 64], num_detection_tokens=2, **VIT)
    transformers.YolosModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(**SQUARE).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"features.grids.weights: .*'yolos' model .* is no map"):
        extract([], weights=str(tmp_path))
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"'bert' model, which reads text"):
        extract([], weights=str(tmp_path))
    with pytest.raises(UserError, match=r"features.grids.weights: .* lacks model.safetensors"):
        make_checkpoint(tmp_path, "vit")
        (tmp_path / "model.safetensors").unlink()
        extract([], weights=str(tmp_path))


def test_weights_of_more_or_fewer_layers_than_the_configuration(tmp_path):
    make_checkpoint(tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    for layers, what in ((1, "of a layer too many: .*layer"), (3, "missing: .*layer")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        with pytest.raises(UserError, match=f"do not fit its config.json; {what}"):
            extract([], weights=str(tmp_path))


def test_weights_of_another_shape_or_damaged(tmp_path):
    make_checkpoint(tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_size": 64}))
    with pytest.raises(UserError, match="of another shape: .*position_embeddings"):
        extract([], weights=str(tmp_path))
    elsewhere = {"attn_implementation": "flash_attention_2", "gradient_checkpointing": True}
    (tmp_path / "config.json").write_text(json.dumps(config | elsewhere))
    extract([], weights=str(tmp_path))
    state = load_file(tmp_path / "model.safetensors")
    state["layernorm.bias"][0] = float("nan")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="values that are not finite"):
        extract([], weights=str(tmp_path))


def test_what_is_drawn_anew_each_time_is_refused(tmp_path, monkeypatch):
    make_checkpoint(tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.5}))
    monkeypatch.setattr(transformers.ViTModel, "eval", transformers.ViTModel.train)
    with pytest.raises(UserError, match="something else of one image each time"):
        extract([], weights=str(tmp_path))
