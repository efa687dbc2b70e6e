"""What Snakemake would show a traceback for is told before it reads it, by the profile that it reads first."""

import sys

import pytest
import yte

from core.console import UserError
from settings import load_settings
from settings.command_line import check_command_line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--configfile", "nope.yaml"], "--configfile: 'nope.yaml' does not exist; correct the path"),
        (["--configfile=nope.yaml", "-n"], "'nope.yaml' does not exist"),
        (["--configfile", "c.yaml", "train"], "'train' does not exist; correct the path (a target stands before --configfile"),
        (["--configfiles", "c.yaml", "."], "'.' is a folder"),
        (["--configfile", "broken.yaml", "-n"], "broken.yaml, line 2: expected ',' or ']'"),
        (["--configfile", "utf16.yaml"], "iconv -f utf-16 -t utf-8"),
        (["--config", "seed=1", "runs.my-run.val_split=dev"], "keys have no dots; write --config 'runs={my-run: {val_split: dev}}'"),
        (["-C", "train", "-n"], "'train' is no KEY=VALUE"),
        (["--config", "seed=1", "--cores", "1", "--configfile", "c.yaml", "-n", "train.txt"], ""),
        (["--config", "results=s3://a.b/c", "results.v2"], "'results.v2' is no KEY=VALUE"),
    ],
)  # fmt: skip
def test_mistakes_of_the_command_line(tmp_path, monkeypatch, capsys, repository, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("datasets: {}")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: {")
    (tmp_path / "utf16.yaml").write_bytes("a: 1".encode("utf-16"))
    if not message:
        check_command_line(["snakemake", *words])
        return
    with pytest.raises(SystemExit):
        check_command_line(["snakemake", *words])
    assert message in capsys.readouterr().err
    # Snakemake asks it through the profile, whatever folder it is started from.
    monkeypatch.setattr(sys, "argv", ["snakemake", "-s", str(repository / "Snakefile"), *words])
    before = list(sys.path)
    with open(repository / "profiles/default/config.yaml") as profile, pytest.raises(SystemExit):
        yte.process_yaml(profile, require_use_yte=True)
    assert message in capsys.readouterr().err and sys.path == before


def test_another_folder_has_no_say(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["snakemake", "--configfile", "nope.yaml"])
    with open(repository / "profiles/default/config.yaml") as profile:
        assert yte.process_yaml(profile, require_use_yte=True)["keep-going"] is True


def test_text_of_the_command_line_is_what_its_key_wants(config):
    """Snakemake takes quotes away: a folder may be called 2014, a run 1, and `yes` is what it is in a file."""
    images = {"source": "folder", "images": "2014", "split_files": {"train": "0x10"}}
    training = {"keep_last_batch": "yes", "preload": "OFF", "learning_rate": ".5e-3", "margin": "0_1.5"}
    given = {"results": 5, "datasets": {"mine": images}, "runs": {"1": {"training": training}}}
    given["ensembles"] = {"all": {"runs": ["1", "region"]}}
    config["datasets"]["mine"], config["ensembles"]["all"] = images, given["ensembles"]["all"]
    config["runs"]["1"], config["results"] = {**config["runs"]["region"], **given["runs"]["1"]}, 5
    words = ["snakemake", "--config", "results=05", "runs={1: {training: {preload: OFF}}}"]
    found = load_settings(config, check_files=False, given=given, words=words)
    assert found.results == "05" and found.datasets["mine"].images == "2014"
    assert found.datasets["mine"].split_files == {"train": "0x10"} and found.ensembles["all"].runs == ["1", "region"]
    recipe = found.runs["1"].training
    assert (recipe.keep_last_batch, recipe.preload, recipe.learning_rate, recipe.margin) == (True, False, 0.0005, 1.5)
    training["keep_last_batch"] = "perhaps"
    config["runs"]["1"]["training"] = training
    with pytest.raises(UserError, match="keep_last_batch: 'perhaps' - should be a valid boolean"):
        load_settings(config, check_files=False, given=given, words=words)
