"""The configuration that most tests change."""

import pytest
import yaml


@pytest.fixture
def config(repository):
    return yaml.safe_load((repository / "config.yaml").read_text())
