"""Extractor sections: what an engine needs and what a feature keeps, each declared once."""

import pytest

from core.features import FEATURES
from core.section import canonical
from extractors.settings import ENGINES, Features

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
