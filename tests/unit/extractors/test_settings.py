"""Extractor sections: what an engine needs and what a feature keeps, each declared once."""

import json

import pytest

from core.features import FEATURES
from core.section import canonical
from extractors.settings import ENGINES, Features, GridsTransformers

ARCHITECTURES = {"regions": "scenes_regions", "grids": "scenes_grids", "panoptic": "scenes_panoptic"}


def test_every_feature_has_an_extractor():
    features = Features()
    assert [feature for feature in Features.model_fields if feature in FEATURES] == list(FEATURES)
    for feature in FEATURES:
        section = features[feature]
        assert section.fits(ARCHITECTURES[feature]) and not section.fits("other")
        assert [file.rpartition("/")[2] for file in section.files()] == [f"scenes_{feature}.safetensors"]
        assert list(section.missing()) == []


@pytest.mark.parametrize(
    ("section", "environment"),
    [
        ({}, "pipeline"),
        ({"engine": "detectron2", "config": "COCO-Detection/x.yaml"}, "detectron2"),
        ({"engine": "transformers", "weights": "facebook/mask2former"}, "transformers"),
    ],
)
def test_an_engine_knows_its_environment(section, environment, repository):
    extractor = Features.model_validate({"panoptic": section})["panoptic"]
    assert extractor.environment == environment
    assert (repository / "envs" / f"{environment}.yaml").is_file()
    assert extractor.engine in ENGINES and extractor.needs_gpu
    # What a feature keeps is the same whoever computes it.
    assert (extractor.seg_features, extractor.min_pixels) == ("area", 100)


def test_settings_are_handed_on_as_version_0_1_did():
    """Letter for letter: another parameter would extract everything again."""
    section = Features.model_validate({"grids": {"weights": "w.safetensors", "architecture": "grid_x101"}})["grids"]
    assert canonical(section) == (
        '{"architecture":"grid_x101","batch_size":8,"engine":"native","grid":7,"max_cells":608,"precision":"fp32",'
        '"weights":"w.safetensors"}'
    )


def test_a_backbone_says_its_width_in_its_folder(tmp_path):
    section = GridsTransformers(engine="transformers", weights=str(tmp_path))
    assert section.width("grids") is None
    for content, width in (
        ({"model_type": "dinov2", "hidden_size": 384}, 384),
        ({"model_type": "clip", "vision_config": {"model_type": "clip_vision_model", "hidden_size": 768}}, 768),
        ({"model_type": "convnext", "hidden_sizes": [96, 192]}, 192),
        ({"model_type": "mobilevit", "hidden_sizes": [144, 240], "hidden_size": 7}, None),  # whose last map has another
        ({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}, None),
        ([], None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert section.width("grids") == width and section.width("panoptic") is None
