"""What made the numbers: configuration, versions and digests."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator
from typing import Any

import yaml

from reporting.artefacts import Artefacts

TITLE = "Configuration"


def context(artefacts: Artefacts, queries: int, seed: int) -> dict[str, Any]:
    """Everything it takes to make the numbers again."""
    return {
        "config": as_yaml(artefacts.config),
        "run_configs": [
            (run, as_yaml(config)[:20_000])
            for run in artefacts.section("runs")
            if (config := artefacts.run_config(run))
        ],
        "differing": differing(artefacts.section("runs")),
        "differing_runs": list(artefacts.section("runs")),
        "versions": versions(),
        "digests": digests(artefacts),
    }


def differing(runs: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The settings in which runs are not all alike: dotted key, and the value of each run ("" where it has no such key)."""
    flat = [dict(_flat(run)) for run in runs.values()]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [(key, [one.get(key, "") for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, json.dumps(value, ensure_ascii=False, default=str).strip('"')


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)


PACKAGES = ("torch", "torchvision", "transformers", "zarr", "numpy", "pillow", "pyarrow", "snakemake")


def versions() -> list[tuple[str, str]]:
    """Versions of Python and of the packages that make the numbers, as installed where the report is made."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def digests(artefacts: Artefacts) -> list[tuple[str, str, str]]:
    """(what, name, sha256) of the indexes and of the weights behind each feature store."""
    found = []
    for dataset in artefacts.section("datasets"):
        if index := artefacts.index(dataset):
            found.append(("index", dataset, index.digest))
        for feature in artefacts.features:
            store = artefacts.store(dataset, feature)
            if store is not None and store.attributes.get("weights_digest"):
                found.append((f"{feature} weights", dataset, str(store.attributes["weights_digest"])))
    return found
