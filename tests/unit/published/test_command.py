"""`python -m published`."""

import json
import re

import pytest
import yaml

from core.console import UserError
from published.__main__ import main
from published.registry import ENTRIES

NAME = "grid-feats-vqa-X-101"
PATH = f"{NAME}/X-101.pth"


@pytest.fixture
def config(tmp_path, monkeypatch, server, content):
    """A configuration in a folder of its own, which takes X-101 from a mirror on this machine."""
    monkeypatch.chdir(tmp_path)
    server.files["/mirror/grid-feats-vqa/X-101/X-101.pth"] = content
    settings = {
        "datasets": {"s": {"source": "scenes", "splits": {"test": 2}}},
        "features": {"grids": {"architecture": "grid_x101", "weights": f"published:{NAME}"}},
        "published": {"folder": "kept", "mirror": f"{server.address}/mirror"},
    }
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "mine.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_list_names_everything(capsys, tmp_path):
    main(["list", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *ENTRIES]
    bert = next(line for line in lines if line.startswith("bert"))
    assert re.search(rf" 441 MB +Apache-2.0 +BERT.* {re.escape(str(tmp_path))}/bert-base-uncased \(to fetch\)$", bert)
    (tmp_path / NAME).mkdir()
    (tmp_path / PATH).write_bytes(b"")
    main(["list", "--folder", str(tmp_path)])
    assert any(line.endswith(str(tmp_path / PATH)) for line in capsys.readouterr().out.splitlines())


def test_what_the_configuration_uses_is_fetched_and_locked_beside_it(config, content, capsys):
    main(["fetch", "--config", str(config)])
    assert capsys.readouterr().out == f"kept/{PATH}\n"
    assert (config.parent.parent / "kept" / PATH).read_bytes() == content
    assert list(json.loads((config.parent / "published.lock.json").read_text())["files"]) == [PATH]


def test_options_come_before_the_configuration(config, content, server, tmp_path):
    server.files["/other/grid-feats-vqa/X-101/X-101.pth"] = other = content[:1000]
    options = ["--mirror", f"{server.address}/other", "--folder", "elsewhere", "--lock", "my.json"]
    main(["fetch", NAME, "--config", str(config), *options])
    assert (tmp_path / "elsewhere" / PATH).read_bytes() == other
    assert (tmp_path / "my.json").exists() and not (config.parent / "published.lock.json").exists()


def test_the_command_of_the_workflow(config, content, server, tmp_path):
    section = json.dumps({"folder": "kept", "mirror": f"{server.address}/mirror", "files": {}})
    main(["fetch", PATH, "--settings", section, "--lock", "my.json"])
    assert (tmp_path / "kept" / PATH).read_bytes() == content


def test_a_change_is_accepted_on_purpose(config, server, content, tmp_path):
    main(["fetch", "--config", str(config)])
    (tmp_path / "kept" / PATH).write_bytes(b"changed")
    with pytest.raises(UserError) as error:
        main(["fetch", "--config", str(config)])
    command = re.search(r"accept it: python -m published (.*)$", str(error.value))[1]
    main(command.split())
    main(["fetch", "--config", str(config)])
    assert json.loads((config.parent / "published.lock.json").read_text())["files"][PATH]["size"] == 7


def test_all_problems_are_shown_and_the_rest_is_fetched(config, content, tmp_path):
    with pytest.raises(UserError) as error:
        main(["fetch", "MSRA-R-50", NAME, "MSRA-R-101", "--config", str(config)])
    assert [line.split(": ")[1].split(";")[0] for line in str(error.value).splitlines()] == [
        "the server answered 404 Not Found"
    ] * 2
    assert (tmp_path / "kept" / PATH).read_bytes() == content


def test_wrong_names_and_nothing_to_do(config, capsys, repository):
    with pytest.raises(UserError, match="did you mean 'grid-feats-vqa-X-101'"):
        main(["fetch", "grid-feats-X-101", "--config", str(config)])
    with pytest.raises(UserError, match="has no file 'X-102.pth'; it has X-101.pth"):
        main(["fetch", f"{NAME}/X-102.pth", "--config", str(config)])
    main(["fetch"])
    assert capsys.readouterr().out.startswith(f"{repository / 'config.yaml'} uses no published weights")
