"""Engines, features and the sections of the configuration name the same settings."""

import importlib
import inspect
from typing import get_args

import pytest

from core.features import FEATURES
from extractors import settings
from extractors.engines import ENGINES


def sections(feature: str) -> dict:
    """The section of each engine."""
    found = [get_args(member)[0] for member in get_args(settings.Features.model_fields[feature].annotation)]
    return {get_args(section.model_fields["engine"].annotation)[0]: section for section in found}


def test_the_engines_are_those_of_the_configuration():
    assert tuple(ENGINES) == settings.ENGINES


@pytest.mark.parametrize("feature", FEATURES)
def test_every_section_is_what_its_extractor_and_runner_take(feature):
    runners = {name: importlib.import_module(module).RUNNERS for name, module in ENGINES.items()}
    own = inspect.signature(importlib.import_module(f"extractors.{feature}").EXTRACTOR).parameters.keys() - {"runner"}
    found = sections(feature)
    assert found.keys() == {name for name, by_feature in runners.items() if feature in by_feature}
    for engine, section in found.items():
        runner = inspect.signature(runners[engine][feature]).parameters.keys()
        assert section.model_fields.keys() == {"engine", "batch_size", *own, *runner} - {"network"}, engine
