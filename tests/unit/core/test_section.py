"""How a path is spelled starts no job again."""

from pathlib import Path

import pytest

from core.section import FilePath, Section


class One(Section):
    path: FilePath


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """`here`, where we are, `data` in it, both also behind links, and `other` beside it."""
    for name in ("here/data", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "linked").symlink_to("here")
    (tmp_path / "here" / "elsewhere").symlink_to("../other")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    "path", ["data", "./data/", "{}/here/data", "{}/here//data/.", "{}/linked/data", "~/here/data", "~/linked/data"]
)
def test_a_path_below_the_working_folder_is_a_relative_one(path, tmp_path):
    assert One(path=path.format(tmp_path)).path == "data"


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("{}/here/new/x.csv", "new/x.csv"),  # yet to be made
        ("{}/here/elsewhere/x.csv", "elsewhere/x.csv"),  # where a link leads may change
        ("{}/other/x.csv", "{}/other/x.csv"),
        ("{}/hereby/x.csv", "{}/hereby/x.csv"),
        ("{}/here/", "{}/here"),
        ("../other", "../other"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("/", "/"),
    ],
)
def test_other_paths_stay(path, plain, tmp_path):
    assert One(path=path.format(tmp_path)).path == plain.format(tmp_path)
    assert Path(One(path=f"{tmp_path}/here/a/../data").path) == Path("a/../data")
