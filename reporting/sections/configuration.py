"""What made the numbers: configuration, versions and digests."""

from __future__ import annotations

import importlib.metadata
import platform
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
        "versions": versions(),
        "digests": digests(artefacts),
    }


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
