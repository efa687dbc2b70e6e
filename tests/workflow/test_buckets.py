"""The whole workflow with its results in an S3 bucket, on a server of its own."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from search.__main__ import main
from stores.places import place_of

from .conftest import TINY

pytestmark = pytest.mark.workflow


SEARCHED = TINY | {"search": {"mine": {"dataset": "tiny", "runs": ["region"], "captions": False}}}


def run(workflow, results, *arguments):
    return workflow.run(*arguments, config=SEARCHED | {"results": results})


def planned(workflow, results):
    return workflow.planned(config=SEARCHED | {"results": results})


def test_results_in_a_bucket_are_those_of_a_folder(make_workflow, make_bucket, finished, monkeypatch, capsys):
    results = f"{make_bucket()}/lab/tiny"
    workflow = make_workflow(TINY)
    made = run(workflow, results)
    assert made.returncode == 0, made.stdout + made.stderr
    place = place_of(results)
    keys = place.keys()

    # The same features, byte for byte, but for the digests of an index that names other paths of images.
    features = finished.results / "tiny" / "features"
    shards = [f.relative_to(features).as_posix() for f in features.glob("*.zarr/*/c/**/*") if f.is_file()]
    assert len(shards) > 10
    for shard in shards:
        assert place.read(f"tiny/features/{shard}") == (features / shard).read_bytes(), shard
    for path in ("evaluation/region", "evaluation/grid", "ensembles/both"):
        path = f"{path}/tiny_test/metrics.json"
        assert json.loads(place.read(path))["i2t"] == json.loads((finished.results / path).read_text())["i2t"]
    assert b"<html" in place.read("report/index.html") and b"data:image/jpeg" in place.read("report/index.html")
    for key in ("tables/results.csv", "runs/region/model.safetensors", "runs/region/vocab.txt"):
        assert key in keys
    assert any(key.startswith("evaluation/region/tiny_test/embeddings.zarr/") for key in keys)

    # Images are found by a sentence, from where the workflow ran.
    monkeypatch.chdir(workflow.folder)
    main(["ask", "two dogs on the grass", "--results", results, "--dataset", "mine", "--top", "3"])
    found = capsys.readouterr().out.splitlines()
    assert len(found) == 3 and all(Path(line.split(maxsplit=2)[2]).is_file() for line in found)
    assert len([key for key in keys if key.startswith("search/mine/thumbnails/")]) == 44

    # Damage is found and mended by the command that the message names.
    key = "tiny/features/grids.zarr/features/c/1/0/0"
    whole = place.read(key)
    place.write(key, whole[:100] + b"?" + whole[101:])
    report = f"{results.replace('s3://', 'results/')}/verified/tiny/grids.json"
    damaged = run(workflow, results, report)
    receipt = f"{results.replace('s3://', '.snakemake/storage/s3/')}/tiny/features/grids.receipts/1.json"
    assert damaged.returncode != 0 and f"--force {receipt}" in damaged.stdout + damaged.stderr
    assert run(workflow, results, "--force", receipt).returncode == 0
    assert place.read(key) == whole
    mended = run(workflow, results)
    assert mended.returncode == 0, mended.stdout + mended.stderr

    # What is there is not made again, and a store without its seal is sealed again, nothing else of it.
    assert planned(workflow, results) == {}
    place.remove("tiny/features/grids.zarr/zarr.json")
    jobs = planned(workflow, results)
    assert jobs["seal_store"] == 1 and "extract_shard" not in jobs and "index_dataset" not in jobs


def test_a_job_that_fails_leaves_no_seal(make_workflow, make_bucket):
    results = f"{make_bucket()}/broken"
    workflow = make_workflow(TINY)
    made = run(workflow, results, "index")
    assert made.returncode == 0, made.stdout + made.stderr
    images = pq.read_table(io.BytesIO(place_of(results).read("tiny/index/images.parquet")))
    (workflow.folder / images["path"][3].as_py()).write_bytes(b"no image")
    made = run(workflow, results, "grids", "--rerun-triggers", "input")
    assert made.returncode != 0 and "unusable image" in made.stdout + made.stderr
    keys = place_of(results).keys()
    assert any("grids.receipts/" in key for key in keys) and "tiny/features/grids.zarr/zarr.json" not in keys
