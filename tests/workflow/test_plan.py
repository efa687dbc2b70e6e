"""What a dry run says: the default's jobs, other configurations, and mistakes before any job starts."""

import re
import shlex

import pytest
import yaml
from PIL import Image

from .conftest import jobs_of

pytestmark = pytest.mark.workflow


def test_the_default_is_about_thirty_jobs(make_workflow, repository):
    workflow = make_workflow(yaml.safe_load((repository / "config.yaml").read_text()))
    assert workflow.planned() == {
        "render_scenes": 2,
        "index_dataset": 2,
        "extract_shard": 6,
        "seal_store": 6,
        "train_model": 2,
        "encode_testset": 4,
        "compute_metrics": 4,
        "compute_ensemble": 2,
        "write_tables": 1,
        "build_search": 1,
        "explain_gallery": 1,
        "build_report": 1,
    }


def test_a_target_runs_what_it_needs_and_no_more(make_workflow, repository):
    """`evaluate`: all stages up to it; a test set's protocols reach its metrics alone, and each run is one process."""
    config = yaml.safe_load((repository / "config.yaml").read_text())
    workflow = make_workflow(config)
    positives = workflow.folder / "cxc data"
    positives.mkdir()
    for name in ("sits", "sis", "sts"):
        (positives / f"{name}_test.csv").touch()
    config["testsets"]["scenes_test"] |= {"protocols": ["cxc"], "positives": str(positives)}
    result = workflow.run("evaluate", "--dry-run", "--printshellcmds")
    assert result.returncode == 0, result.stdout + result.stderr
    stages = ["render_scenes", "index_dataset", "extract_shard", "seal_store", "train_model", "encode_testset"]
    stages += ["compute_metrics", "compute_ensemble", "write_tables"]
    assert set(jobs_of(result)) == set(stages)
    flags = f"--protocols cxc --positives {shlex.quote(positives.name)}"
    assert result.stdout.count(flags) == 3 and result.stdout.count("python -m evaluation.metrics") == 4
    assert result.stdout.count("--processes 1 ") == 2


def documented_commands(repository) -> list[list[str]]:
    """Every `snakemake ...` line of the documentation and of the configurations, as arguments."""
    pattern = re.compile(r"^#?\s*(snakemake --?[^#`\n]*?)\s*(?:#.*)?$", re.M)
    files = [
        repository / "README.md",
        *(f for pattern in ("docs/*.md", "configs/*.yaml") for f in sorted(repository.glob(pattern))),
    ]
    found = [shlex.split(m)[1:] for f in files for m in pattern.findall(f.read_text())]
    return [[a.replace("N", "2") if a == "N" else a for a in command] for command in found]


def test_documented_commands_mean_what_they_say(repository):
    from snakemake.cli import get_argument_parser

    commands = documented_commands(repository)
    assert len(commands) >= 4 and any("--configfile" in command for command in commands)
    for command in commands:
        arguments = get_argument_parser().parse_args(command)
        # --configfile takes everything after it, targets too, if they are not put first.
        for path in arguments.configfile or []:
            assert (repository / path).is_file(), command


def test_changed_images_are_noticed(make_workflow):
    """What makes a change: tests/unit/rules/test_plan.py."""
    workflow = make_workflow({"datasets": {"mine": {"source": "folder", "images": "my photos"}}})
    photos = workflow.folder / "my photos"
    (photos / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(photos / "one.png")
    result = workflow.run("index")
    assert result.returncode == 0, result.stdout + result.stderr
    (photos / "notes.txt").write_text("no image")
    assert workflow.planned("index") == {}
    Image.new("RGB", (30, 40)).save(photos / "sub" / "two.png")
    assert workflow.planned("index") == {"index_dataset": 1}


def test_a_failed_job_shows_its_one_line(make_workflow):
    workflow = make_workflow(
        {"datasets": {"mine": {"source": "folder", "images": "photos", "captions": "captions.csv"}}}
    )
    (workflow.folder / "photos").mkdir()
    Image.new("RGB", (40, 30)).save(workflow.folder / "photos" / "one.png")
    (workflow.folder / "captions.csv").write_bytes(b"image,caption\none.png,caf\xe9\n")
    result = workflow.run("index")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "error: captions.csv, line 2: byte 0xe9 is not UTF-8" in output
    assert "Traceback" not in output


def test_all_mistakes_are_shown_before_any_job_and_without_a_traceback(make_workflow):
    workflow = make_workflow({})
    config = {
        "datasets": {"tiny": {"source": "scenes", "splits": {"train": 2}, "shard": 2}},
        "testsets": {"t": {"dataset": "tiny", "fold": 5}},
    }
    result = workflow.run(config=config)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "datasets.tiny.shard: unknown key; did you mean 'shards'?" in output
    assert "testsets.t.fold: unknown key; did you mean 'folds'?" in output
    assert "2 mistakes in the configuration" in output
    assert "Traceback" not in output
    assert not workflow.results.exists()
