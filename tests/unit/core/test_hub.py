"""Models by name or folder, as text encoders, backbones and segmenters share it."""

from __future__ import annotations

import json

import pytest

from core.hub import fetch, reads, weight_faults
from extractors.settings import GridsTransformers
from model.settings import Text

WHOLE = (2).to_bytes(8, "little") + b"{}"
INDEX = "model.safetensors.index.json"
PARTS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def test_what_an_interrupted_download_left_is_asked_for_again(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def client(name, *, revision, allow_patterns, local_files_only):
        if not local_files_only:
            asked.append((name, revision))
            (tmp_path / PARTS["b"]).write_bytes(WHOLE)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", client)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": PARTS}))
    (tmp_path / PARTS["a"]).write_bytes(WHOLE)
    assert [*weight_faults(tmp_path)]
    for _ in range(2):
        assert fetch("some/model", revision="feed", descriptions=["*.json"]) == tmp_path
    assert asked == [("some/model", "feed")]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "bert", "vocab_size": 9}, "text"),
        ({"model_type": "vit", "image_size": 9}, "images"),
        ({"model_type": "mask2former", "backbone_config": {}}, "images"),
        ({"model_type": "clip", "text_config": {}, "vision_config": {}}, ""),
        ({"model_type": "resnet", "num_channels": 3}, "images"),
        ({"model_type": "fsmt", "src_vocab_size": 9}, ""),
    ],
)
def test_what_a_model_reads(config, what):
    assert reads(config) == what


def test_folders_of_the_wrong_kind_are_known_before_any_job(tmp_path, monkeypatch):
    def lines(section):
        return [line.replace(str(tmp_path), "F") for line in section.missing()]

    grids = GridsTransformers(engine="transformers", weights=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 9}')
    assert lines(grids) == ["weights: F is a 'bert' model, which reads text; choose one that reads images"]
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 9}')
    (line,) = lines(grids)
    assert "F lacks preprocessor_config.json" in line
    (tmp_path / "tokenizer.json").write_text("{}")
    assert lines(Text(pretrained=str(tmp_path))) == [
        "pretrained: F is a 'vit' model, which reads images; choose a text encoder"
    ]
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    monkeypatch.setattr("extractors.settings.find_spec", lambda name: None)
    assert lines(grids) == ["weights: F is a model of the package timm, which is not installed here; pip install timm"]
    monkeypatch.setattr("extractors.settings.find_spec", lambda name: "there")
    assert lines(grids) == []
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 9}')
    (tmp_path / "processor_config.json").write_text("{}")
    assert lines(grids) == []
    (tmp_path / "model.safetensors").write_bytes(WHOLE[:-1])
    (line,) = lines(grids)
    assert "is cut off" in line
    for path in (f"{tmp_path}/none", "./none", "a/b/c"):
        (line,) = lines(GridsTransformers(engine="transformers", weights=path))
        assert "does not exist; correct the path" in line
    (line,) = lines(GridsTransformers(engine="transformers", weights=f"{tmp_path}/config.json"))
    assert "is a file; name the folder" in line
    assert lines(GridsTransformers(engine="transformers", weights="facebook/dinov2-base")) == []


class Runs:
    def __reduce__(self):
        return (pytest.fail, ("it ran",))


def test_nobody_is_advised_to_run_what_weights_hold(tmp_path):
    import torch

    from core.console import UserError
    from extractors.engines import build_extractor
    from model.library_encoder import load_library_encoder

    torch.save({"a": Runs()}, tmp_path / "pytorch_model.bin")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    for kind, load in (
        ("bert", lambda: load_library_encoder(tmp_path, dropout=0.0)),
        ("vit", lambda: build_extractor("grids", engine="transformers", weights=str(tmp_path))),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UserError, match="hold more than arrays") as caught:
            load()
        assert "trust" not in str(caught.value)
