"""Names of a detector's classes out of a user's file."""

import pytest

from core.console import UserError
from reporting.sections.gallery import read_names
from settings import load_settings


def test_names_are_lines_the_first_of_several(tmp_path):
    (tmp_path / "objects.txt").write_bytes("yolk\r\ngoal,goals\r\n\r\ncafé\n\n".encode())
    assert read_names(str(tmp_path / "objects.txt")) == ["yolk", "goal", "", "café"]
    assert read_names(None) == read_names(str(tmp_path / "none.txt")) == []


def test_files_are_looked_for_at_the_start(tmp_path):
    config = {
        "datasets": {"s": {"source": "scenes", "splits": {"test": 1}}},
        "region_names": {"objects": str(tmp_path / "x")},
    }
    with pytest.raises(UserError, match="region_names.objects: file '.*x' does not exist"):
        load_settings(config)
    (tmp_path / "x").touch()
    assert load_settings(config).region_names.files() == [str(tmp_path / "x")]
