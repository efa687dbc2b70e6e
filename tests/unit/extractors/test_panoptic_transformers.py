"""The transformers engine on tiny random checkpoints, against the processors' own results for one image at a time."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from catalog.categories import BY_NAME, COCO_PANOPTIC
from core.console import UserError
from extractors import panoptic
from extractors.engines import build_extractor
from extractors.images import iterate_batches
from extractors.panoptic_transformers import category_order, checkpoint_digest, soft_map

transformers = pytest.importorskip("transformers")

DATA = Path(skimage.__file__).parent / "data"
# Seeds whose random weights give several segments: little of what such networks claim survives the overlap rule.
KINDS = {"mask2former": 9, "maskformer": 13, "oneformer": 0}
# Another order than ours: results must be told by name.
NAMES = [COCO_PANOPTIC[(i * 50 + 7) % 133].name for i in range(133)]


def make_checkpoint(folder: Path, kind: str, seed: int) -> Path:
    """A narrow model with random weights, drawn so that its few queries are sure of their classes and differ in masks."""
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    body = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "embed_dim": 8, "window_size": 4, "image_size": 64}
    body["out_features"] = ["stage1", "stage2", "stage3", "stage4"]
    narrow = {"hidden_dim": 32, "num_attention_heads": 2, "dim_feedforward": 16, "encoder_feedforward_dim": 16}
    if kind == "mask2former":
        config = transformers.Mask2FormerConfig(
            backbone_config=transformers.SwinConfig(**body),
            feature_size=32,
            mask_feature_size=32,
            num_queries=12,
            encoder_layers=1,
            decoder_layers=2,
            **narrow,
            **labels,
        )
        model_class, processor_class = "Mask2FormerForUniversalSegmentation", "Mask2FormerImageProcessor"
    elif kind == "maskformer":
        decoder = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 12}
        decoder |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        config = transformers.MaskFormerConfig(
            backbone_config=transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], out_features=body["out_features"]
            ),
            decoder_config=transformers.DetrConfig(encoder_ffn_dim=16, decoder_ffn_dim=16, **decoder),
            fpn_feature_size=32,
            mask_feature_size=32,
            **labels,
        )
        model_class, processor_class = "MaskFormerForInstanceSegmentation", "MaskFormerImageProcessor"
    else:
        config = transformers.OneFormerConfig(
            backbone_config=transformers.SwinConfig(**body),
            conv_dim=32,
            mask_dim=32,
            num_queries=12,
            encoder_layers=1,
            decoder_layers=3,
            task_seq_len=24,
            text_encoder_width=16,
            text_encoder_num_layers=1,
            text_encoder_vocab_size=60,
            **narrow,
            **labels,
        )
        model_class, processor_class = "OneFormerForUniversalSegmentation", "OneFormerImageProcessor"
        letters = "abcdefghijklmnopqrstuvwxyz"
        pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config).eval()
    for name, value in model.named_parameters():
        if "class" in name and "predictor" in name or name.startswith("class_predictor") or "class_embed" in name:
            value.data.normal_(0, 1.5)
        elif "mask_embed" in name and name.endswith("weight"):
            value.data.mul_(3)
        elif kind == "maskformer" and "transformer_module" in name and value.dim() > 1:
            value.data.normal_(0, 0.4)  # as drawn by its class, all queries are alike
    model.save_pretrained(folder)
    size = {"shortest_edge": 96, "longest_edge": 140}
    getattr(transformers, processor_class)(size=size, ignore_index=255, num_labels=133).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {kind: make_checkpoint(tmp_path_factory.mktemp(kind), kind, seed) for kind, seed in KINDS.items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two of one size, which share a batch, and one standing upright."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for name, size in (("coffee.png", (150, 100)), ("chelsea.png", (150, 100)), ("rocket.jpg", (90, 130))):
        paths.append(folder / Path(name).with_suffix(".png"))
        Image.open(DATA / name).convert("RGB").resize(size).save(paths[-1])
    return paths


def own_results(folder: Path, kind: str, path: Path, threshold: float) -> tuple[np.ndarray, torch.Tensor]:
    """The processor's own category map and semantic scores of one photograph, in the checkpoint's class order."""
    image = Image.open(path)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    more = {"task_inputs": ["panoptic"]} if kind == "oneformer" else {}
    inputs = processor(images=image, return_tensors="pt", **more)
    if kind == "oneformer":
        tokens = transformers.AutoTokenizer.from_pretrained(folder)(
            "the task is panoptic", padding="max_length", max_length=24
        )
        inputs["task_inputs"] = (torch.tensor(tokens["input_ids"]) * torch.tensor(tokens["attention_mask"]))[None]
    model = transformers.AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(**inputs)
    sizes = {"target_sizes": [image.size[::-1]]}
    (result,) = processor.post_process_panoptic_segmentation(
        outputs, threshold=threshold, label_ids_to_fuse=set(), **sizes
    )
    labels = np.full(image.size[::-1], -1)
    for segment in result["segments_info"]:
        labels[result["segmentation"].numpy() == segment["id"]] = segment["label_id"]
    (semantic,) = processor.post_process_semantic_segmentation(outputs, return_segmentation_scores=True, **sizes)
    return labels, semantic["segmentation_scores"]


def extract(paths, **settings) -> list[dict[str, np.ndarray]]:
    extractor = build_extractor("panoptic", engine="transformers", **settings)
    rows = {}
    for batch in iterate_batches(paths, range(len(paths)), extractor.input, batch_size=2):
        rows.update(zip(batch.rows, extractor(batch), strict=True))
    return [rows[i] for i in range(len(paths))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_processors_own_results(checkpoints, photos, kind):
    folder = checkpoints[kind]
    hard = extract(photos, weights=str(folder), threshold=0.2, min_pixels=100)
    soft = extract(photos, weights=str(folder), threshold=0.2, seg_features="soft")
    seen = set()
    for row, soft_row, path in zip(hard, soft, photos, strict=True):
        labels, scores = own_results(folder, kind, path, 0.2)
        order = np.array([BY_NAME[name].index for name in NAMES] + [255])
        categories = order[labels].astype(np.uint8)
        assert (row["seg_maps"] == panoptic.nearest_map(categories)).mean() > 0.995
        counts = np.bincount(categories.ravel(), minlength=256)[:133]
        clear = np.abs(counts - 100) > 3  # a pixel or two may fall on the other side in a batch
        assert (row["category_onehots"] == (counts > 100))[clear].all()
        np.testing.assert_allclose(row["seg_features"], panoptic.area_fractions(categories), atol=0.01)
        expected = torch.zeros(133, *categories.shape)
        for label, name in enumerate(NAMES):
            expected[BY_NAME[name].index] = scores[label]
        expected = torch.nn.functional.adaptive_avg_pool2d(expected, 7).numpy()
        np.testing.assert_allclose(soft_row["seg_features"], expected, atol=2e-3 * expected.max())
        assert (soft_row["seg_maps"] == row["seg_maps"]).all()
        seen |= set(np.unique(row["seg_maps"]))
    assert len(seen - {255}) >= 3, "a checkpoint without segments tests nothing"


def test_soft_map_adds_queries():
    logits = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [9.0, 0, 0], [0, 0, 9.0]])
    masks = torch.full((4, 2, 2), -20.0)
    masks[0, 0], masks[1, 1], masks[2, :, 0], masks[3] = 20, 20, 0, 20
    soft = soft_map(logits, masks, (4, 4), [5, 100])
    sure, other = logits[0].softmax(0)[:2].tolist()
    assert soft.shape == (133, 4, 4)
    torch.testing.assert_close(
        soft[5, 0], torch.tensor([1.5, 1.375, 1.125, 1]) * sure + 2 * other - other, atol=3e-4, rtol=0
    )
    assert soft[100, 3, 3] > 0.99 and soft[[i for i in range(133) if i not in (5, 100)]].abs().max() == 0


def test_nothing_found_is_void(checkpoints, photos):
    (row,) = extract(photos[:1], weights=str(checkpoints["mask2former"]), threshold=0.999999)
    assert (row["seg_maps"] == 255).all() and not row["category_onehots"].any() and not row["seg_features"].any()


def test_what_the_store_says(checkpoints, tmp_path):
    folder = checkpoints["maskformer"]
    extractor = build_extractor("panoptic", engine="transformers", weights=str(folder))
    assert extractor.attributes["engine"] == "transformers" and extractor.attributes["model"] == "maskformer"
    assert extractor.attributes["transformers"] == transformers.__version__
    assert extractor.attributes["class_order"] == "coco"
    assert extractor.weights_digest == checkpoint_digest(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "README.md").touch()
    assert checkpoint_digest(copy) == checkpoint_digest(folder)
    (copy / "preprocessor_config.json").write_text("{}")
    assert checkpoint_digest(copy) != checkpoint_digest(folder)


def test_a_hub_name_is_fetched(checkpoints, photos, monkeypatch):
    asked = []

    def snapshot_download(name, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError(name)
        asked.append((name, revision))
        return str(checkpoints["mask2former"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    rows = extract(photos[:1], weights="someone/mask2former", revision="main", threshold=0.2)
    expected = extract(photos[:1], weights=str(checkpoints["mask2former"]), threshold=0.2)
    assert asked == [("someone/mask2former", "main")]
    assert (rows[0]["seg_maps"] == expected[0]["seg_maps"]).all()

    def fail(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = r"'someone/other' is not a local folder and could not be fetched .*\(ConnectionError: no route\)"
    with pytest.raises(UserError, match=message):
        build_extractor("panoptic", engine="transformers", weights="someone/other")


def edited(folder: Path, target: Path, **changes) -> str:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return str(target)


def test_mistakes(checkpoints, tmp_path):
    folder = checkpoints["maskformer"]

    def refused(message, weights):
        with pytest.raises(UserError, match=message):
            build_extractor("panoptic", engine="transformers", weights=weights)

    labels = {str(i): name for i, name in enumerate(NAMES)} | {"3": "carpet", "9": NAMES[8]}
    refused(
        f"2 of the 133 classes .* categories: 3 'carpet', 9 '{NAMES[8]}'",
        edited(folder, tmp_path / "labels", id2label=labels),
    )
    refused("is a 'vit' model; choose a checkpoint of mask2former", edited(folder, tmp_path / "vit", model_type="vit"))
    refused("cannot be loaded by transformers", edited(folder, tmp_path / "width", fpn_feature_size=24))
    (tmp_path / "empty").mkdir()
    refused("lacks config.json; .*lacks preprocessor_config.json.*lacks model.safetensors", str(tmp_path / "empty"))

    from safetensors.torch import load_file, save_file

    Path(shutil.copytree(folder, tmp_path / "part"))
    state = load_file(folder / "model.safetensors")
    state.pop("class_predictor.weight")
    save_file(state, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    refused("do not fit its config.json; missing: class_predictor.weight", str(tmp_path / "part"))


def test_labels_are_matched_by_name():
    assert category_order({0: "Sky-other-merged ", 1: "person"}, "x") == [BY_NAME["sky-other-merged"].index, 0]


def test_without_transformers_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError) as caught:
        build_extractor("panoptic", engine="transformers", weights="x")
    message = str(caught.value)
    assert "engine: transformers needs the package transformers" in message
    assert "pip install --group transformers" in message and "envs/transformers.yaml" in message


def test_as_the_workflow_runs_it(checkpoints, photos, extract_store):
    from settings import load_settings

    section = {"engine": "transformers", "weights": str(checkpoints["mask2former"]), "threshold": 0.2}
    config = {"datasets": {"s": {"source": "scenes", "splits": {"test": 1}}}, "features": {"panoptic": section}}
    settings = load_settings(config, check_files=False).features.panoptic.model_dump()
    store = extract_store("panoptic", photos, settings)
    expected = extract(photos, **{name: value for name, value in section.items() if name != "engine"})
    for name in ("seg_maps", "category_onehots", "seg_features"):
        values = store.rows(name, range(len(photos)))
        assert np.abs(values.astype("f4") - np.stack([row[name] for row in expected])).max() <= 1e-3, name
    assert store.attributes["engine"] == "transformers" and store.attributes["model"] == "mask2former"
    assert store.attributes["extractor"] == settings | {"recipe": panoptic.RECIPE}
    assert store.attributes["weights_digest"] == checkpoint_digest(checkpoints["mask2former"])
