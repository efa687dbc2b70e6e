"""The map of the results: what is promised to other tools, and that patterns and paths are the same thing."""

import inspect
import re
from pathlib import Path

import pytest

from core import layout
from core.section import NAME

FUNCTIONS = [f for _, f in inspect.getmembers(layout, inspect.isfunction) if f.__module__ == layout.__name__]
ARGUMENTS = {"folder": "scenes", "name": layout.WEIGHTS, "suffix": "csv", "job": "train_model/{run}"}


def arguments(function) -> dict:
    """Those without a default, beside the root."""
    _, *others = inspect.signature(function).parameters.values()
    return {p.name: ARGUMENTS[p.name] for p in others if p.default is p.empty and p.name in ARGUMENTS}


WITH_ROOT = [f for f in FUNCTIONS if next(iter(inspect.signature(f).parameters)) in ("results", "work")]


def test_what_other_tools_rely_on():
    results = Path("results")
    assert layout.images(results, "coco") == "results/coco/index/images.parquet"
    assert layout.captions(results, "coco") == "results/coco/index/captions.parquet"
    assert layout.store(results, "coco", "grids") == "results/coco/features/grids.zarr"
    assert layout.sealed(results, "coco", "grids") == "results/coco/features/grids.zarr/zarr.json"
    assert layout.receipt(results, "coco", "grids", 3) == "results/coco/features/grids.receipts/3.json"
    assert layout.run_file(results, layout.WEIGHTS, "a") == "results/runs/a/model.safetensors"
    assert layout.run_file(results, layout.CONFIG, "a") == "results/runs/a/config.json"
    assert layout.run_file(results, layout.HISTORY, "a") == "results/runs/a/history.csv"
    assert layout.metrics(results, "a", "t") == "results/evaluation/a/t/metrics.json"
    assert layout.ensemble_metrics(results, "e", "t") == "results/ensembles/e/t/metrics.json"
    assert layout.ranks(results, "a", "t") == "results/evaluation/a/t/ranks.safetensors"
    assert layout.ensemble_ranks(results, "e", "t") == "results/ensembles/e/t/ranks.safetensors"
    assert layout.report(results) == "results/report/index.html"


@pytest.mark.parametrize("function", WITH_ROOT, ids=lambda function: function.__name__)
def test_a_pattern_is_the_path_with_its_wildcards_filled_in(function):
    pattern = function("s3://b/lab", **arguments(function))
    assert pattern.startswith("s3://b/lab/")
    values = {name: f"my-{name}" for name in re.findall(r"\{(\w+)\}", pattern)}
    own = {name: value for name, value in values.items() if name in inspect.signature(function).parameters}
    given = {name: text.format(**values) for name, text in arguments(function).items()}
    assert pattern.format(**values) == function("s3://b/lab", **given, **own)


@pytest.mark.parametrize("function", WITH_ROOT, ids=lambda function: function.__name__)
def test_a_dataset_cannot_take_the_name_of_a_folder(function):
    folder = function("results", **arguments(function)).split("/")[1]
    assert folder == "{dataset}" or folder in layout.RESERVED or not re.fullmatch(NAME, folder)


def test_a_store_knows_its_receipts():
    assert layout.receipt_of(Path("results/coco/features/grids.zarr"), 0) == layout.receipt(
        "results", "coco", "grids", 0
    )
    assert layout.receipts_of("s3://b/grids.zarr") == "s3://b/grids.receipts"
