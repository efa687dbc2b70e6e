"""What no section can know alone: names that must exist elsewhere, features and splits that must be there, files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from catalog.files import is_archive
from catalog.settings import (
    FolderDataset,
    KarpathyDataset,
    PrecomputedDataset,
    ScenesDataset,
    available_features,
    imported_features,
)
from core.console import UserError
from core.features import FEATURES
from evaluation.positives import positives_files
from evaluation.settings import Testset
from extractors.settings import PanopticTransformers
from published.registry import ENTRIES, PREFIX, by_hand, suggestion
from settings.messages import did_you_mean

if TYPE_CHECKING:
    from settings import Settings
    from settings.salvage import Salvage

# Folders that the workflow makes beside the datasets' own.
RESERVED = ("runs", "evaluation", "ensembles", "tables", "report", "logs", "benchmarks")


def cross_checks(salvage: Salvage, config: dict[str, Any], check_files: bool) -> Iterator[str]:
    settings, doubtful = salvage.settings, salvage.doubtful
    if settings is None:
        return

    def named(section: str) -> list[str]:
        """Names in the file, of wrong entries too."""
        entries = config.get(section)
        return [str(name) for name in entries] if isinstance(entries, dict) else []

    def split_names(dataset: Any) -> set[str] | None:
        """Names the configuration knows; None where only the data can tell."""
        if isinstance(dataset, (ScenesDataset, KarpathyDataset, PrecomputedDataset)):
            return set(dataset.splits)
        splits = dataset.split_files or dataset.splits
        return set(splits) if splits and dataset.captions is None else None

    def check_dataset(where: str, name: str) -> Iterator[str]:
        if name not in named("datasets"):
            hint = did_you_mean(name, named("datasets"), f"choose one of {', '.join(named('datasets'))}")
            yield f"{where}.dataset: {name!r} is not under datasets; {hint}"

    def check_split(where: str, name: str, split: str | None) -> Iterator[str]:
        if name not in settings.datasets or ("datasets", name) in doubtful:
            return
        names = split_names(settings.datasets[name])
        if split is not None and names is not None and split not in names:
            yield (
                f"{where}: dataset {name!r} has no split {split!r} (it has {', '.join(sorted(names))}); "
                f"choose one of them or add it to datasets.{name}.splits"
            )

    def check_captions(where: str, name: str, purpose: str) -> Iterator[str]:
        dataset = settings.datasets.get(name)
        if isinstance(dataset, FolderDataset) and dataset.captions is None and ("datasets", name) not in doubtful:
            yield f"{where}.dataset: {name!r} has no captions to {purpose} on; set datasets.{name}.captions"

    def check_paths(name: str, dataset: Any) -> Iterator[str]:
        where = f"datasets.{name}"
        folder = getattr(dataset, "folder", None) or getattr(dataset, "images", None)
        archive = isinstance(dataset, FolderDataset) and is_archive(dataset.images)
        if archive and not os.path.isfile(dataset.images):
            yield f"{where}.images: file {dataset.images!r} does not exist; correct the path"
        elif folder is not None and not archive and not os.path.isdir(folder):
            key = "folder" if isinstance(dataset, PrecomputedDataset) else "images"
            yield f"{where}.{key}: folder {folder!r} does not exist; correct the path or create it"
        files = {"captions": getattr(dataset, "captions", None), "annotations": getattr(dataset, "annotations", None)}
        files |= {f"split_files.{k}": v for k, v in (getattr(dataset, "split_files", None) or {}).items()}
        for key, path in files.items():
            if path is not None and not os.path.isfile(path):
                hint = "correct the path" + (", or leave it out" if key == "captions" else "")
                yield f"{where}.{key}: file {path!r} does not exist; {hint}"
        for feature in imported_features(dataset) if not isinstance(dataset, PrecomputedDataset) else ():
            path = getattr(dataset.imports, feature).path
            if not os.path.exists(path):
                yield f"{where}.imports.{feature}.path: {path!r} does not exist; correct the path"

    def check_features(where: str, name: str, visual: str) -> Iterator[str]:
        dataset = settings.datasets.get(name)
        if isinstance(dataset, PrecomputedDataset) and ("datasets", name) not in doubtful:
            if lacking := [f for f in (visual, "panoptic") if f not in dataset.features]:
                yield (
                    f"{where}: dataset {name!r} has no {' and no '.join(lacking)} features (it has "
                    f"{', '.join(dataset.features)}); add the files and the name to datasets.{name}.features"
                )

    def check_positives(where: str, testset: Testset) -> Iterator[str]:
        if testset.positives is not None and not testset.protocols:
            yield f"{where}.positives: {testset.positives!r} is of no use without protocols; add them or leave it out"
        elif testset.positives is not None and check_files and not os.path.isdir(testset.positives):
            yield f"{where}.positives: folder {testset.positives!r} does not exist; correct the path, or leave it out"
        elif check_files:
            for protocol in testset.protocols:
                try:
                    positives_files(protocol, testset.positives)
                except UserError as error:
                    yield f"{where}.protocols: {error}"

    for name, dataset in settings.datasets.items():
        if name in RESERVED:
            yield f"datasets.{name}: the workflow has a folder of this name; rename the dataset"
        if isinstance(dataset, FolderDataset) and dataset.splits and dataset.split_files:
            yield f"datasets.{name}: splits (fractions) and split_files (lists) exclude each other; remove one of them"
        if check_files:
            yield from check_paths(name, dataset)
    for name, run in settings.runs.items():
        yield from check_dataset(f"runs.{name}", run.dataset)
        if ("runs", name) not in doubtful:
            yield from check_split(f"runs.{name}.train_split", run.dataset, run.train_split)
            yield from check_split(f"runs.{name}.val_split", run.dataset, run.val_split)
        yield from check_captions(f"runs.{name}", run.dataset, "train")
        yield from check_features(f"runs.{name}.dataset", run.dataset, run.visual)
        if run.text.pretrained is None and run.text.hidden_size % run.text.heads:
            yield f"runs.{name}.text.hidden_size: {run.text.hidden_size} is not a multiple of heads ({run.text.heads}); change one of them"
        decay = run.training.lr_decay_epochs
        if decay != sorted(set(decay)):
            yield f"runs.{name}.training.lr_decay_epochs: {decay} must ascend without repeats; write {sorted(set(decay))}"
    for name, testset in settings.testsets.items():
        yield from check_dataset(f"testsets.{name}", testset.dataset)
        if ("testsets", name) not in doubtful:
            yield from check_split(f"testsets.{name}.split", testset.dataset, testset.split)
            dataset = settings.datasets.get(testset.dataset)
            images = dataset.splits.get(testset.split) if isinstance(dataset, ScenesDataset) else None
            if images is not None and testset.folds > images:
                yield f"testsets.{name}.folds: {testset.folds} folds of {images} images cannot be made; lower it to {images} or less"
            yield from check_positives(f"testsets.{name}", testset)
        yield from check_captions(f"testsets.{name}", testset.dataset, "test")
        for visual in dict.fromkeys(run.visual for run in settings.runs.values()):
            yield from check_features(f"testsets.{name}.dataset", testset.dataset, visual)
    for name, ensemble in settings.ensembles.items():
        if name in named("runs"):
            yield f"ensembles.{name}: there is a run of the same name; rename one of them"
        for run in dict.fromkeys(ensemble.runs):
            if run not in named("runs"):
                yield f"ensembles.{name}.runs: {run!r} is not under runs; {did_you_mean(run, named('runs'), 'add it there')}"
        if len(set(ensemble.runs)) < len(ensemble.runs):
            yield f"ensembles.{name}.runs: {ensemble.runs} names a run twice; remove the repeat"
    yield from _published_checks(settings, doubtful, check_files)
    if check_files:
        for feature in FEATURES:
            if not any(
                feature in available_features(d) and feature not in imported_features(d)
                for d in settings.datasets.values()
            ):
                continue
            section = getattr(settings.features, feature)
            if ("features", feature) in doubtful or isinstance(section, PanopticTransformers):
                continue  # a hub name is no path
            weights = section.weights
            if weights is not None and not weights.startswith(PREFIX) and not os.path.isfile(weights):
                yield f"features.{feature}.weights: file {weights!r} does not exist; correct the path"
            if weights is None and os.path.isfile(section.config):
                yield f"features.{feature}.weights: missing; only configurations of detectron2's zoo have weights of their own"


def _published_checks(settings: Settings, doubtful: set[tuple[str, str]], check_files: bool) -> Iterator[str]:
    published = settings.published
    for name, path in published.files.items():
        entry = ENTRIES.get(name)
        if entry is None:
            yield f"published.files.{name}: no published weights; {suggestion(name)}"
        elif check_files and not (os.path.isdir(path) if entry.kind == "text" else os.path.isfile(path)):
            what = "folder" if entry.kind == "text" else "file"
            yield f"published.files.{name}: {what} {path!r} does not exist; correct the path, or remove the key to download it"

    def check(where: str, value: str | None, kind: str, purpose: str) -> Iterator[str]:
        if value is None or not value.startswith(PREFIX):
            return
        entry = ENTRIES.get(name := value.removeprefix(PREFIX))
        if entry is None:
            yield f"{where}: {value!r} - no published weights; {suggestion(name)}"
        elif entry.kind != kind:
            yield f"{where}: {value!r} is {entry.what}, no {purpose}; `python -m published list` shows what there is"
        elif check_files and name not in published.files:
            for file in entry.files:
                there = entry.file_path(file, published.folder).is_file()
                if not there and entry.address(file, published.mirror) is None:
                    yield f"{where}: {by_hand(entry, file, published.folder)}"

    for feature in FEATURES:
        if ("features", feature) in doubtful:
            continue
        section, where = getattr(settings.features, feature), f"features.{feature}"
        yield from check(f"{where}.weights", section.weights, "detector", "detector")
        entry = (
            ENTRIES.get(section.weights.removeprefix(PREFIX)) if (section.weights or "").startswith(PREFIX) else None
        )
        architecture = getattr(section, "architecture", None)  # another engine knows by itself what fits
        if entry is not None and entry.kind == "detector" and architecture not in (None, entry.architecture):
            yield (
                f"{where}.architecture: {architecture!r} does not fit {section.weights!r}; "
                f"write architecture: {entry.architecture}"
            )
    for name, run in settings.runs.items():
        yield from check(f"runs.{name}.text.pretrained", run.text.pretrained, "text", "text encoder")
