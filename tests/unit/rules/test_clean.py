"""What `rules.clean` removes is what jobs made, and nothing else."""

import json
from pathlib import Path

import pytest
import yaml

from core.console import UserError
from rules.clean import main

OURS = """
scenes/index/images.parquet scenes/index/captions.parquet scenes/scenes/a.png scenes/features/regions.zarr/zarr.json
scenes/features/regions.zarr/features/c/0/0/0 scenes/features/regions.receipts/0.json scenes/features/regions.receipts/.made.json
scenes/features/grids.zarr/features/c/0/0/0 scenes/features/grids.former-0123456789abcdef.zarr/zarr.json
scenes/export/regions/train_ims.npy verified/scenes/regions.json
runs/region/model.safetensors runs/region/config.json runs/region/vocab.txt runs/region/history.csv
runs/region/tensorboard/events.out.tfevents.1 runs/region/.model.safetensors.abc.tmp
runs/region.state/state.pt runs/region.state/finished runs/region.state/best-3.safetensors
evaluation/region/scenes_test/embeddings.zarr/.snakemake_timestamp evaluation/region/scenes_test/scores.zarr/zarr.json
evaluation/region/scenes_test/metrics.json evaluation/region/scenes_test/ranks.safetensors
ensembles/region_grid/scenes_test/metrics.json ensembles/region_grid/scenes_test/ranks.safetensors
tables/results.csv report/index.html report/why.json report/figures/training-loss.svg
times.json logs/train_model/region.log benchmarks/train_model/region.tsv
""".split()
THEIRS = """
notes.txt scenes/index/mine.csv runs/region/thoughts.md runs/region.state/copy.pt runs/other/model.safetensors
scenes_dusk/features/regions.zarr/zarr.json scenes_dusk/features/regions.zarr/features/c/0
scenes/images/photo.jpg scenes_dusk/own/a.jpg logs/mine.txt report/figures/mine.svg other/index/images.parquet
runs/grid/model.safetensors runs/grid/vocab.txt elsewhere/train_ims.npy
""".split()


@pytest.fixture
def results(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    Path("weights").symlink_to(repository / "weights")
    for name in OURS + THEIRS:
        path = Path("results", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    Path("results/runs/grid/config.json").write_text(json.dumps({"source": {"imported": "their.pth"}}))
    config = yaml.safe_load((repository / "config.yaml").read_text())
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return Path("results")


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_jobs_made_goes_and_nothing_else(results, capsys):
    before = files(results)
    main(["--config", "config.yaml"])
    assert files(results) == before and "--delete removes them" in capsys.readouterr().out
    main(["--config", "config.yaml", "--delete"])
    assert files(results) == {*THEIRS, "runs/grid/config.json"}
    assert not (results / "scenes/features").exists() and not (results / "evaluation").exists()
    for folder in ("evaluation/grid/scenes_test", "scenes/features/regions.receipts", "mine"):
        (results / folder).mkdir(parents=True)  # as `snakemake --delete-all-output` leaves them; one of a user's
    main(["--config", "config.yaml", "--delete"])
    assert capsys.readouterr().out.endswith("0 files and folders, 0.0 MiB: removed\n")
    assert (
        not (results / "evaluation").exists()
        and not (results / "scenes/features").exists()
        and (results / "mine").exists()
    )


def test_what_the_configuration_names_and_what_links_lead_to_stay(results, tmp_path):
    config = yaml.safe_load(Path("config.yaml").read_text())
    kept = {"runs/region/tensorboard/events.out.tfevents.1", "scenes/export/regions/train_ims.npy"}
    checkpoint, vocabulary = (str(tmp_path / "results" / name) for name in sorted(kept))
    config["runs"]["region"] |= {"checkpoint": checkpoint, "vocabulary": vocabulary}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    (results / "scenes/features/grids.zarr").rename("disk")
    (results / "scenes/features/grids.zarr").symlink_to(tmp_path / "disk")
    main(["--config", "config.yaml", "--delete"])
    assert files(results) >= kept and not (results / "runs/region/model.safetensors").exists()
    assert (
        files(tmp_path / "disk") == {"features/c/0/0/0"} and not (results / "scenes/features/grids.zarr").is_symlink()
    )


def test_not_while_a_workflow_runs_nor_in_a_bucket(results):
    before = files(results)
    lock = Path(".snakemake/locks/0.input.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    with pytest.raises(UserError, match=r"a workflow is running .*snakemake --unlock"):
        main(["--config", "config.yaml", "--delete"])
    lock.unlink()
    config = yaml.safe_load(Path("config.yaml").read_text()) | {"results": "s3://bucket/folder"}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="results: s3://bucket/folder is a bucket"):
        main(["--config", "config.yaml", "--delete"])
    assert files(results) == before
