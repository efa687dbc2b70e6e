"""How a path is spelled starts no job again."""

from pathlib import Path

import pytest

from core.section import FilePath, Section


class One(Section):
    path: FilePath


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """`work`, where we are, `data` in it, both also behind links, and `other` beside it."""
    for name in ("work/data", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "linked").symlink_to("work")
    (tmp_path / "work" / "elsewhere").symlink_to("../other")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    "path", ["data", "./data/", "{}/work/data", "{}/work//data/.", "{}/linked/data", "~/work/data", "~/linked/data"]
)
def test_a_path_below_the_working_folder_is_a_relative_one(path, tmp_path):
    assert One(path=path.format(tmp_path)).path == "data"


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("{}/work/new/x.csv", "new/x.csv"),  # yet to be made
        ("{}/work/elsewhere/x.csv", "elsewhere/x.csv"),  # where a link leads may change
        ("{}/other/x.csv", "{}/other/x.csv"),
        ("{}/working/x.csv", "{}/working/x.csv"),
        ("{}/work/", "{}/work"),
        ("../other", "../other"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("/", "/"),
    ],
)
def test_other_paths_stay(path, plain, tmp_path):
    assert One(path=path.format(tmp_path)).path == plain.format(tmp_path)
    assert Path(One(path=f"{tmp_path}/work/a/../data").path) == Path("a/../data")
