"""What no section can know alone: names that must exist elsewhere, splits and features that a dataset must have."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from catalog.settings import DatasetSection, ImagesDataset
from core import layout
from core.features import FEATURES, Feature
from core.kinds import wrong_file
from core.messages import did_you_mean
from core.section import Section
from evaluation.settings import Ensemble, Testset
from model.settings import KINDS, Run
from published.registry import PREFIX, named_entry, resolve
from search.settings import Search
from settings.fits import checkpoint_faults, folder_faults, odd_shapes, other_features

if TYPE_CHECKING:
    from settings.salvage import Salvage


class CrossChecks:
    """The mistakes that are left when each value by itself is right, a line each.

    Args:
        salvage: what is left of the configuration, and what was wrong. Nothing is said of what may follow from that.
        config: as read, for the names of entries that were wrong. check_files: also look for the files it names.
    """

    def __init__(self, salvage: Salvage, config: dict[str, Any], check_files: bool) -> None:
        self.settings, self.doubtful, self.check_files = salvage.settings, salvage.doubtful, check_files
        self.lines = salvage.lines
        self.config = config

    def __iter__(self) -> Iterator[str]:
        if self.settings is None:
            return
        for section in ("datasets", "runs", "testsets", "ensembles", "search"):
            yield from _alike(section, self._names(section))
        for name, dataset in self.settings.datasets.items():
            yield from self._dataset(name, dataset)
        yield from self._section("published", self.settings.published)
        yield from self._section("region_names", self.settings.region_names)
        for file in self.settings.region_names.files():
            yield from self._published("region_names", file, "names")
        if self.check_files:
            yield from unwritable(self.settings.results)
        yield from self._section("export", self.settings.export)
        for feature in FEATURES:
            yield from self._extractor(feature)
        for name, run in self.settings.runs.items():
            yield from self._run(name, run)
        for name, testset in self.settings.testsets.items():
            yield from self._testset(name, testset)
        for name, ensemble in self.settings.ensembles.items():
            yield from self._ensemble(name, ensemble)
        for name, search in self.settings.search.items():
            yield from self._search(name, search)

    def _dataset(self, name: str, dataset: DatasetSection) -> Iterator[str]:
        if name.casefold() in layout.RESERVED:
            yield f"datasets.{name}: the workflow has a folder of this name; rename the dataset"
        results = self.settings.results
        if "://" not in results and isinstance(dataset, ImagesDataset) and _within(results, dataset.images):
            yield (
                f"datasets.{name}.images: {dataset.images!r} holds the results folder {results!r}, where pictures are made that would count as "
                "images; set results, or images, to another folder"
            )
        yield from self._section(f"datasets.{name}", dataset)
        if self.check_files:
            yield from under(f"datasets.{name}", odd_shapes(dataset))
        splits, names = (
            dataset.known_splits() if not self.doubtful("datasets", name) else None,
            self.settings.export.names,
        )
        for split in sorted(splits or ()):
            if names.get(split, split) in (splits or set()) - {split, *names}:
                yield f"export.names.{split}: {names[split]!r} is another split of dataset {name!r}, and both would be the same files; rename it"

    def _run(self, name: str, run: Run) -> Iterator[str]:
        where = f"runs.{name}"
        if run.checkpoint is not None:
            if run.dataset not in self._names("datasets"):
                yield from self._reference(where, run.dataset, "train")
            yield from self._section(where, run)
            yield from self._published(f"{where}.checkpoint", run.checkpoint, "checkpoint")
            yield from under(where, self._read_by(run))
            yield from under(where, self._fits(name, run))
            made = [
                layout.run_file(self.settings.results, f, name)
                for f in (layout.WEIGHTS, layout.CONFIG, layout.VOCABULARY)
            ]
            for key, file in (("checkpoint", run.checkpoint), ("vocabulary", run.vocabulary)):
                # However it is spelt: Snakemake removes a job's outputs before it starts.
                if file is not None and os.path.realpath(file) in map(os.path.realpath, made):
                    yield f"{where}.{key}: {file!r} is a file that the workflow writes; keep yours outside of the results"
            return
        yield from self._reference(where, run.dataset, "train")
        for key, split in (("train_split", run.train_split), ("val_split", run.val_split)):
            if split is not None and not self.doubtful("runs", name, key):
                yield from self._split(f"{where}.{key}", run.dataset, split)
        if not self.doubtful("runs", name, "training"):
            yield from self._batch(f"{where}.training.batch_size", run)
        yield from self._features(where, run.dataset, run.features())
        yield from self._section(where, run)
        yield from self._published(f"{where}.text.pretrained", run.text.pretrained, "text")
        if self._all_right():
            yield from other_features(self.settings, name)

    def _fits(self, name: str, run: Run) -> Iterator[str]:
        """What its checkpoint says of the settings beside it, and of what it is scored on."""
        unknown = run.checkpoint.startswith(PREFIX) and named_entry(run.checkpoint) is None
        if unknown or run.model.kind not in KINDS:
            return  # told beside this
        published = self.settings.published
        file = resolve(run.checkpoint, published.folder, published.files)
        if self.check_files and not list(wrong_file("checkpoint", file)) and self._all_right():
            yield from checkpoint_faults(self.settings, name, file)

    def _all_right(self) -> bool:
        """Whether each value by itself is right: else what is compared may be a stand-in for a mistake."""
        return not self.lines

    def _batch(self, where: str, run: Run) -> Iterator[str]:
        """A batch of more pairs than there are."""
        dataset, size = self._known(run.dataset), run.training.batch_size
        captions = dataset.captions_in(run.train_split) if dataset else None
        if captions and captions < size:  # a split without any is told as one that is not there
            yield f"{where}: {size}, but split {run.train_split!r} of dataset {run.dataset!r} has only {captions} captions; lower it"

    def _read_by(self, run: Run) -> Iterator[str]:
        """A published checkpoint on other visual tokens than those it was trained on."""
        entry, grids = named_entry(run.checkpoint), self.settings.features.grids
        if entry is None or entry.reads is None:
            return
        if run.visual != entry.reads:
            yield f"visual: {run.visual!r}, but {run.checkpoint!r} reads {entry.reads}; write visual: {entry.reads}"
        elif entry.architecture is not None and not self.doubtful("features", "grids"):
            published = self.settings.published
            own, given = (
                resolve(value, published.folder, published.files) for value in (run.checkpoint, grids.weights or "")
            )
            extracted = any("grids" in dataset.extracted() for dataset in self.settings.datasets.values())
            if extracted and own != given:
                yield (
                    f"checkpoint: {run.checkpoint!r} reads the cells of its own CNN, not those of {grids.weights!r}; write "
                    f"features.grids: {{architecture: {entry.architecture}, weights: {run.checkpoint}, grid: native}}"
                )

    def _testset(self, name: str, testset: Testset) -> Iterator[str]:
        where = f"testsets.{name}"
        yield from self._reference(where, testset.dataset, "test")
        if not self.doubtful("testsets", name, "split"):
            yield from self._split(f"{where}.split", testset.dataset, testset.split)
            dataset = self.settings.datasets.get(testset.dataset)
            images = dataset.images_in(testset.split) if dataset else None
            if images is not None and testset.folds > images:
                yield f"{where}.folds: {testset.folds} folds of {images} images cannot be made; lower it to {images} or less"
        if not self.doubtful("testsets", name, "protocols"):
            yield from self._section(where, testset)
        for features in dict.fromkeys(run.features() for run in self.settings.runs.values()):
            yield from self._features(where, testset.dataset, features)

    def _ensemble(self, name: str, ensemble: Ensemble) -> Iterator[str]:
        runs = self._names("runs")
        if name in runs:
            yield f"ensembles.{name}: there is a run of the same name; rename one of them"
        for run in dict.fromkeys(ensemble.runs):
            if run not in runs:
                yield f"ensembles.{name}.runs: {run!r} is not under runs; {did_you_mean(run, runs, 'add it there')}"
        if len(set(ensemble.runs)) < len(ensemble.runs):
            yield f"ensembles.{name}.runs: {ensemble.runs} names a run twice; remove the repeat"

    def _search(self, name: str, search: Search) -> Iterator[str]:
        where = f"search.{name}"
        names = (self._names("datasets"), self._names("runs"))
        yield from under(where, search.unknown(*names))
        if not self.doubtful("search", name):
            yield from self._section(where, search)
            reads = search.reads(self.settings.runs).values()
            for features in dict.fromkeys(tuple(read.values()) for read in reads):
                yield from self._features(where, search.dataset, features)
            if self.check_files and self._all_right() and search.dataset in self.settings.datasets:
                for run, imported in search.imported.items():
                    own, read = f"{where}.imported.{run}", [(where, search.dataset)]
                    content = imported.content()
                    yield from under(own, folder_faults(self.settings, read, imported.visual, imported.folder, content))

    def _extractor(self, feature: Feature) -> Iterator[str]:
        if self.doubtful("features", feature):
            return
        section, where = self.settings.features[feature], f"features.{feature}"
        yield from self._published(f"{where}.weights", section.weights, "detector")
        entry = named_entry(section.weights)
        if entry is not None and entry.architecture is not None and not section.fits(entry.architecture):
            yield f"{where}.architecture: {section.architecture!r} does not fit {section.weights!r}; write architecture: {entry.architecture}"
        yield from under(where, section.mistakes())
        yield from under(where, section.unfit(feature))
        # Weights that nobody needs need not be there.
        if self.check_files and any(feature in dataset.extracted() for dataset in self.settings.datasets.values()):
            yield from under(where, section.missing())

    def _section(self, where: str, section: Section) -> Iterator[str]:
        """What a section knows by itself."""
        yield from under(where, section.mistakes())
        if self.check_files:
            yield from under(where, section.missing())

    def _names(self, section: str) -> list[str]:
        """Names in the file, of wrong entries too."""
        entries = self.config.get(section)
        return [str(name) for name in entries] if isinstance(entries, dict) else []

    def _known(self, name: str) -> DatasetSection | None:
        """The dataset of this name, unless its section was wrong."""
        return None if self.doubtful("datasets", name) else self.settings.datasets.get(name)

    def _reference(self, where: str, name: str, purpose: str) -> Iterator[str]:
        names = self._names("datasets")
        if name not in names:
            hint = did_you_mean(name, names, f"choose one of {', '.join(names)}")
            yield f"{where}.dataset: {name!r} is not under datasets; {hint}"
        dataset = self._known(name)
        if dataset is not None and not dataset.has_captions:
            yield f"{where}.dataset: {name!r} has no captions to {purpose} on; set datasets.{name}.captions"

    def _split(self, where: str, name: str, split: str) -> Iterator[str]:
        dataset = self._known(name)
        names = dataset.known_splits() if dataset else None
        if names is not None and split not in names:
            yield (
                f"{where}: dataset {name!r} has no split {split!r} (it has {', '.join(sorted(names))}); "
                f"choose one of them or add it to datasets.{name}.splits"
            )

    def _features(self, where: str, name: str, features: tuple[Feature, ...]) -> Iterator[str]:
        dataset = self._known(name)
        available = dataset.available() if dataset else FEATURES
        if lacking := [feature for feature in features if feature not in available]:
            yield (
                f"{where}.dataset: dataset {name!r} has no {' and no '.join(lacking)} features (it has "
                f"{', '.join(available)}); add the files and the name to datasets.{name}.features"
            )

    def _published(self, where: str, value: str | None, kind: str) -> Iterator[str]:
        for line in self.settings.published.refusals(value, kind, self.check_files):
            yield f"{where}: {line}"


def _alike(section: str, names: list[str]) -> Iterator[str]:
    """Names that are one folder of the results on many systems."""
    known: dict[str, str] = {}
    for name in names:
        if (first := known.setdefault(name.casefold(), name)) != name:
            yield f"{section}.{name}: differs from {first!r} in capitals alone, and is the same folder on many systems; rename one"


def _within(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies in it, whatever links lead there."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([path, folder]) == folder


def unwritable(results: str) -> Iterator[str]:
    """Why nothing can be written to the results folder; buckets are found out about by the first job."""
    if "://" in results:
        return
    path = os.path.abspath(results)
    try:
        while not _is_there(path):
            path = os.path.dirname(path)
        if not os.path.isdir(path):
            yield f"results: {path!r} is a file, not a folder; name another folder"
        else:
            with tempfile.TemporaryFile(
                dir=path
            ):  # permissions do not say all: a disk may be read-only, a folder the system's
                pass
    except OSError as error:
        yield f"results: nothing can be written to {path!r} ({error.strerror}); name another folder, or have its owner let you"


def _is_there(path: str) -> bool:
    """OSError: neither that, nor can it be."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def under(where: str, lines: Iterator[str]) -> Iterator[str]:
    """What a section says of its keys, or of itself, as lines of the whole configuration."""
    for line in lines:
        yield f"{where}.{line}" if re.match(r"\S+: ", line) else f"{where}: {line}"
