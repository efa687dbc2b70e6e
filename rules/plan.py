"""What each rule needs, as plain Python over the settings: tested without starting Snakemake.

Methods with `wildcards` are called for each job; whatever has its wildcards as attributes will do. Of `params` Snakemake
remembers the values: a job runs again when one differs, so none may depend on more than the job's result does.
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from core import layout
from core.console import UserError
from core.features import FEATURES, VISUAL, Feature
from core.files import write_json
from core.section import canonical
from evaluation.positives import positives_files
from model.settings import Run, Training, kind_needs, own_file, scores_pairs
from published.download import LOCK_FILE, record, verify
from published.registry import ENTRIES, entry_at
from rules.check import engine_faults
from rules.checkpoints import Checkpoints, alternatives
from rules.reasons import Reasons
from rules.shown import Shown
from settings import Settings, used_weights
from settings.fits import wanted_widths

Wildcards = Any
CONFIGURATION = ".snakemake/check.json"  # where Snakemake keeps its own notes
_REPOSITORY = Path(__file__).resolve().parent.parent


def read_recipe(*path: str) -> int:
    """RECIPE of a module, read without importing it (that would load torch for every dry run)."""
    return int(re.search(r"^RECIPE = (\d+)$", _REPOSITORY.joinpath(*path).read_text(), re.M).group(1))


@dataclass(frozen=True)
class Plan(Checkpoints, Shown, Reasons):
    """What the rules ask for.

    Attributes:
        settings: the configuration. lock: the file of published weights' digests. cores: those that jobs share.
        kept: turns a path below the results into what rules name: in a bucket, Snakemake's object for it.
        ancient: marks an input whose time is of no account.
    """

    settings: Settings
    lock: str = LOCK_FILE
    cores: int = 1
    kept: Callable[[str], str] = str
    ancient: Callable[[str], str] = str

    @property
    def results(self) -> str:
        return self.settings.results

    @property
    def remote(self) -> bool:
        """Whether the results lie in a bucket. Data of stores is no file of Snakemake's there: commands find it in place."""
        return self.results.startswith("s3://")

    @property
    def work(self) -> str:
        """Where logs, benchmarks, states to resume from and rendered images lie: never in a bucket."""
        return layout.work_of(self.results)

    def ask(self, place: str) -> Callable[[Wildcards], Any]:
        """A function of wildcards: what the settings hold at a place such as `datasets.{dataset}.shards`.

        Methods are called, sections become JSON. Each is asked once, as some look at all images of a dataset; a change while the
        workflow runs is found by its next start.
        """
        known: dict[tuple[str, ...], Any] = {}

        def answer(wildcards: Wildcards) -> Any:
            keys = tuple(getattr(wildcards, part[1:-1]) if part[0] == "{" else part for part in place.split("."))
            if keys not in known:
                value: Any = self.settings
                for key in keys:
                    value = value[key] if isinstance(value, dict) else getattr(value, key)
                value = value() if callable(value) else value
                known[keys] = canonical(value) if isinstance(value, BaseModel) else value
            return known[keys]

        return answer

    # --- which datasets and files a wildcard can mean

    @property
    def extracted(self) -> str:
        """`dataset`, where the feature that follows it in a receipt's path is extracted from images."""
        return self._datasets_with(lambda dataset, feature: feature not in dataset.imported())

    @property
    def imported(self) -> str:
        """`dataset`, where the feature that follows it in a receipt's path is read from files."""
        return self._datasets_with(lambda dataset, feature: feature in dataset.imported())

    def _datasets_with(self, chosen: Callable[[Any, Feature], bool]) -> str:
        found = {
            name: [feature for feature in FEATURES if chosen(dataset, feature)]
            for name, dataset in self.settings.datasets.items()
        }
        # (?=...): what follows decides and is left for the pattern to match.
        patterns = [rf"{re.escape(n)}(?=/features/(?:{'|'.join(f)})\.)" for n, f in found.items() if f]
        return "|".join(patterns) or "(?!)"

    @property
    def packed(self) -> str:
        """`dataset`, where images come in an archive."""
        return alternatives(name for name, dataset in self.settings.datasets.items() if dataset.archive)

    @property
    def published(self) -> str:
        """`published`: any file of published weights that can be fetched. What somebody downloaded by hand is no job's to
        make: a forced run would remove it first."""
        mirror, folder = self.settings.published.mirror, self.settings.published.folder
        return alternatives(
            f"{entry.name}/{file.name}"
            for entry in ENTRIES.values()
            for file in entry.files
            if file.address or (entry.address(file, mirror) and not entry.file_path(file, folder).exists())
        )

    # --- what can be asked for by name

    def all_indexes(self) -> list[str]:
        return [file for dataset in self.settings.datasets for file in self.index(dataset).values()]

    def all_stores(self, *features: Feature) -> list[str]:
        """The sealed stores of features, of all datasets that can have them."""
        datasets = self.settings.datasets.items()
        return [self.sealed(n, f) for f in features for n, dataset in datasets if f in dataset.available()]

    def used_stores(self) -> list[str]:
        """The sealed stores that runs and test sets read."""
        return [self.sealed(dataset, feature) for dataset, feature in self._used()]

    def all_verified(self) -> list[str]:
        return [layout.verified(self.work, dataset, feature) for dataset, feature in self._used()]

    def all_exports(self) -> list[str]:
        """A folder for each dataset and visual feature in use."""
        wanted = [f for f in VISUAL if f in self.settings.export.features]
        return [self.kept(layout.export(self.results, d, f)) for d, f in self._used() if f in wanted]

    def all_models(self) -> list[str]:
        return [self.run_file(layout.WEIGHTS, run) for run in self.settings.runs]

    def all_metrics(self) -> list[str]:
        """Of every run and ensemble on every test set."""
        return self._of_systems(layout.metrics, layout.ensemble_metrics)

    def _ranks(self) -> list[str]:
        """Those behind `all_metrics`."""
        return self._of_systems(layout.ranks, layout.ensemble_ranks)

    def _of_systems(self, of_run: Callable[..., str], of_ensemble: Callable[..., str]) -> list[str]:
        scored = [(of_run, run) for run in self.settings.runs]
        scored += [(of_ensemble, ensemble) for ensemble in self.settings.ensembles]
        return [self.kept(where(self.results, name, t)) for where, name in scored for t in self.settings.testsets]

    def all_tables(self) -> list[str]:
        """The results as tables, if there is anything to score."""
        formats = layout.TABLES if self.all_metrics() else ()
        return [self.kept(layout.table(self.results, suffix)) for suffix in formats]

    def all_searches(self) -> list[str]:
        """Everything that can be asked."""
        return [self.kept(layout.search(self.results, search)) for search in self.settings.search]

    def needed_features(self, dataset: str) -> list[Feature]:
        """What is made of a dataset: what its runs and test sets read, or everything if nothing reads it."""
        tested = any(dataset == testset.dataset for testset in self.settings.testsets.values())
        # Every run is scored on every test set; a dataset that is only trained on needs what its own runs read.
        runs = [
            run for run in self.settings.runs.values() if tested or (run.dataset == dataset and run.checkpoint is None)
        ]
        read = {feature for run in runs for feature in self._read_by(run).values()}
        searches = [search for search in self.settings.search.values() if search.dataset == dataset]
        reads = [one for search in searches for one in search.reads(self.settings.runs).values()]
        read |= {feature for one in reads for feature in one.values()}
        return [feature for feature in self.settings.datasets[dataset].available() if not read or feature in read]

    def _used(self) -> list[tuple[str, Feature]]:
        return [(dataset, feature) for dataset in self.settings.datasets for feature in self.needed_features(dataset)]

    # --- datasets

    def index(self, dataset: str) -> dict[str, str]:
        """The index of a dataset, as inputs."""
        tables = {"images": layout.images, "captions": layout.captions}
        return {name: self.kept(where(self.results, dataset)) for name, where in tables.items()}

    def index_sources(self, wildcards: Wildcards) -> list[str]:
        dataset, made = self.settings.datasets[wildcards.dataset], self._made(wildcards)
        # A bucket's times have no fractions of a second: an index made in the second of its scenes would look older. What
        # they show follows from the settings, which are a parameter of the index.
        as_old = self.remote and dataset.makes == "scenes"
        return [self.ancient(file) if as_old or file != made else file for file in dataset.sources(made)]

    def archive(self, wildcards: Wildcards) -> str:
        return self.ancient(self.settings.datasets[wildcards.dataset].archive)

    def index_flags(self, wildcards: Wildcards) -> list[str]:
        return self.settings.datasets[wildcards.dataset].index_flags(self._made(wildcards))

    def index_needed(self, wildcards: Wildcards, output: Any) -> list[str]:
        """The splits that somebody reads. As a function of `output` they are no reason to run again."""
        runs = [run for run in self.settings.runs.values() if run.checkpoint is None]
        read = [(run.dataset, split) for run in runs for split in (run.train_split, run.val_split)]
        read += [(testset.dataset, testset.split) for testset in self.settings.testsets.values()]
        splits = dict.fromkeys(split for dataset, split in read if dataset == wildcards.dataset and split is not None)
        return ["--needed", *splits] if splits else []

    def _made(self, wildcards: Wildcards) -> str:
        """The folder of images that the workflow makes for a dataset, if it does."""
        folder = self.settings.datasets[wildcards.dataset].makes
        return layout.made(self.work, folder, wildcards.dataset) if folder else ""

    # --- stores

    def sealed(self, dataset: str, feature: Feature) -> str:
        return self.kept(layout.sealed(self.results, dataset, feature))

    def store(self, wildcards: Wildcards) -> str:
        """The folder of a store, which commands open; what rules name is its seal."""
        return layout.store(self.results, wildcards.dataset, wildcards.feature)

    def receipts(self, wildcards: Wildcards) -> list[str]:
        return self._receipts(wildcards.dataset, wildcards.feature)

    def _receipts(self, dataset: str, feature: Feature) -> list[str]:
        shards = range(self._shards(dataset, feature))
        return [self.kept(layout.receipt(self.results, dataset, feature, shard)) for shard in shards]

    def feature_environment(self, wildcards: Wildcards) -> str:
        return f"../envs/{self.settings.features[wildcards.feature].environment}.yaml"

    def feature_recipe(self, wildcards: Wildcards) -> int:
        return self._recipes[wildcards.feature]

    @functools.cached_property
    def _recipes(self) -> dict[str, int]:
        return {feature: read_recipe("extractors", f"{feature}.py") for feature in FEATURES}

    @functools.cached_property
    def import_recipe(self) -> int:
        return read_recipe("exchange", "importing.py")

    def import_files(self, wildcards: Wildcards) -> list[str]:
        files = self.settings.datasets[wildcards.dataset].feature_files(wildcards.feature)
        return [self.ancient(file) for file in files]

    def weights(self, wildcards: Wildcards) -> list[str]:
        files = self.settings.features[wildcards.feature].files()
        return [file if self._is_published(file) else self.ancient(file) for file in files]

    def import_source(self, wildcards: Wildcards) -> str:
        """Format and options of an import, as the command takes them."""
        return self.settings.datasets[wildcards.dataset].import_source(wildcards.feature)

    def wanted(self, wildcards: Wildcards, output: Any) -> list[str]:
        """What checkpoints take, where only the first job tells how wide the features are. As a function of `output` it is no reason to run
        again."""
        found = wanted_widths(self.settings, wildcards.dataset, wildcards.feature)
        return ["--wanted", json.dumps(found)] if found else []

    def extraction_threads(self, wildcards: Wildcards) -> int:
        """Shards are extracted side by side; more than four threads for one network are seldom well used."""
        jobs = sum(dataset.shards for dataset in self.settings.datasets.values()) * len(FEATURES)
        return max(1, min(4, self.cores // jobs))

    def this_moment(self, wildcards: Wildcards) -> int:
        return time.time_ns()

    def export_inputs(self, wildcards: Wildcards) -> dict[str, str]:
        return self.index(wildcards.dataset) | self._sealed(wildcards.dataset, self._exported(wildcards))

    def export_stores(self, wildcards: Wildcards) -> list[str]:
        return self._store_flags(wildcards.dataset, self._exported(wildcards))

    def _exported(self, wildcards: Wildcards) -> dict[str, Feature]:
        available, wanted = self.settings.datasets[wildcards.dataset].available(), self.settings.export.features
        beside = {"panoptic": "panoptic"} if "panoptic" in available and "panoptic" in wanted else {}
        return {"visual": wildcards.feature} | beside

    def export_flags(self) -> list[str]:
        export = self.settings.export
        flags = ["--names", json.dumps(export.names), "--class-order", export.class_order]
        flags += ["--seg-maps", export.seg_maps] + ["--repeat-images"] * export.repeat_images
        return flags + (["--formats", *export.formats] if export.formats != ["npy"] else [])

    # --- runs

    def _read_by(self, run: Run) -> dict[str, Feature]:
        """Which features a run's model reads, by the name of the input that takes them."""
        return dict(zip(kind_needs(run.model.kind), run.features(), strict=True))

    def _sealed(self, dataset: str, features: dict[str, Feature]) -> dict[str, str]:
        return {name: self.sealed(dataset, feature) for name, feature in features.items()}

    def _store_flags(self, dataset: str, features: dict[str, Feature]) -> list[str]:
        stores = {name: layout.store(self.results, dataset, feature) for name, feature in features.items()}
        return [text for name, store in stores.items() for text in (f"--{name}", store)]

    def run_file(self, name: str, run: str) -> str:
        return self.kept(layout.run_file(self.results, name, run))

    def run_inputs(self, wildcards: Wildcards) -> dict[str, Any]:
        run = self.settings.runs[wildcards.run]
        stores = self._sealed(run.dataset, self._read_by(run))
        files = self._pretrained(run) + self._words(run)
        return self._model_files(run) | {"pretrained": files} | self.index(run.dataset) | stores

    def _model_files(self, run: Run) -> dict[str, str]:
        """The file of a network of the user's own, which its training and its encoding read."""
        file = own_file(run.model.kind)
        return {} if file is None else {"network": self.ancient(file)}

    def _pretrained(self, run: Run) -> list[str]:
        """Files of the published text encoder that a run starts from."""
        folder = self.settings.published.folder
        entry = entry_at(run.text.pretrained, folder)
        return [str(entry.file_path(file, folder)) for file in entry.files] if entry is not None else []

    def _words(self, run: Run) -> list[str]:
        """The file of a given vocabulary of words."""
        file = getattr(run.text, "vocabulary", None)
        return [] if file is None else [self.ancient(file)]

    def run_stores(self, wildcards: Wildcards) -> list[str]:
        """Flags of a command that reads the stores a run is trained on."""
        run = self.settings.runs[wildcards.run]
        return self._store_flags(run.dataset, self._read_by(run))

    def run_settings(self, wildcards: Wildcards, output: Any = None) -> str:
        """The recipe; the dataset and its stores are inputs. As a function of `output` it is no reason to run again."""
        return self._recipe(wildcards, exclude=frozenset())

    def run_recipe(self, wildcards: Wildcards) -> str:
        """What of the recipe decides about the result: how features are held in memory, for one, does not."""
        return self._recipe(wildcards, exclude=Training.WITHOUT_EFFECT)

    def _recipe(self, wildcards: Wildcards, exclude: frozenset[str]) -> str:
        run = self.settings.runs[wildcards.run]
        seed = self.settings.seed if run.seed is None else run.seed
        content = run.model_dump(exclude={"dataset": True, "visual": True, "training": exclude or {}})
        return json.dumps(content | {"seed": seed}, sort_keys=True)

    def training_threads(self, wildcards: Wildcards) -> int:
        """Runs train side by side and share the cores."""
        return max(1, self.cores // max(1, len(self.settings.runs)))

    # --- test sets

    def encode_inputs(self, wildcards: Wildcards) -> dict[str, str]:
        run, testset = self.settings.runs[wildcards.run], self.settings.testsets[wildcards.testset]
        files = {"model": layout.WEIGHTS, "config": layout.CONFIG, "vocabulary": layout.VOCABULARY}
        model = {key: self.run_file(name, wildcards.run) for key, name in files.items()}
        return (
            self._model_files(run)
            | model
            | self.index(testset.dataset)
            | self._sealed(testset.dataset, self._read_by(run))
        )

    def encode_stores(self, wildcards: Wildcards) -> list[str]:
        run, testset = self.settings.runs[wildcards.run], self.settings.testsets[wildcards.testset]
        return self._store_flags(testset.dataset, self._read_by(run))

    def protocol_flags(self, wildcards: Wildcards) -> list[str]:
        """Of the protocols beside the standard one."""
        testset = self.settings.testsets[wildcards.testset]
        flags = ["--protocols", *testset.protocols] if testset.protocols else []
        return flags + (["--positives", testset.positives] if testset.positives else [])

    def protocol_files(self, wildcards: Wildcards) -> list[str]:
        """Those of a test set's positives that lie in the user's folder; the package's do not change."""
        return [self.ancient(file) for file in self._positives(wildcards.testset)]

    def _positives(self, name: str) -> list[str]:
        testset = self.settings.testsets[name]
        if not testset.positives:
            return []
        files = [file for protocol in testset.protocols for file in positives_files(protocol, testset.positives)]
        return [str(file) for file in files if file.parent == Path(testset.positives)]

    def scored(self, wildcards: Wildcards) -> str:
        return self._scored(wildcards.run, wildcards.testset)

    def _scored(self, run: str, testset: str) -> str:
        """A run's embeddings, or, if it scores pairs, those scores."""
        where = layout.scores if scores_pairs(self.settings.runs[run].model.kind) else layout.embeddings
        return self.kept(where(self.results, run, testset))

    def ensemble_inputs(self, wildcards: Wildcards) -> list[str]:
        runs = self.settings.ensembles[wildcards.ensemble].runs
        return [self._scored(run, wildcards.testset) for run in runs]

    # --- published weights

    def published_settings(self, wildcards: Wildcards, output: Any) -> str:
        # A function of `output` is no reason to run again: another mirror must not fetch what is there.
        return canonical(self.settings.published)

    def published_lock(self, wildcards: Wildcards, output: Any) -> str:
        return self.lock

    def show_results(self) -> None:
        """What whoever started it looks for at the end: the numbers and where the report is."""
        report = layout.report(self.results)
        # `make` shows them itself, whether or not anything had to be done.
        if self.remote or "MAKELEVEL" in os.environ or not os.path.isfile(report):
            return
        try:
            from evaluation.table import write_tables

            config = self.settings.model_dump()
            if self.all_metrics():
                print()
                write_tables(metrics=(), results=self.results, config=config, format=None, out=())
        except UserError:  # other targets than `all` leave them to be made
            pass
        print(f"\nreport: {os.path.abspath(report)}", flush=True)

    def verify_engines(self) -> None:
        """UserError if an engine of features in use is not installed in this Python, which will run its jobs."""
        if faults := list(engine_faults(self.settings)):
            raise UserError("; ".join(faults))

    def check_configuration(self, wildcards: Wildcards) -> str:
        """A file with all of it, for target `check`: on its command line it would fill the page when Snakemake tells of faults."""
        write_json(CONFIGURATION, self.settings.model_dump(exclude_unset=True))
        return CONFIGURATION

    def verify_published(self) -> None:
        """UserError if a file of published weights that the configuration names is not what was published."""
        list(self._verified())

    def record_published(self) -> None:
        """Remember the digests of files that somebody else, or another configuration, put there."""
        for entry, file, digests in list(self._verified()):  # all of them first
            if digests is not None:
                record(entry, file, digests, lock=self.lock)

    def _verified(self) -> Iterator[tuple[Any, Any, Any]]:
        """(entry, file, digests if it is there) of all published weights that the configuration names."""
        folder = self.settings.published.folder
        for entry in (entry_at(path, folder) for path in used_weights(self.settings)):
            for file in entry.files if entry is not None else ():
                yield entry, file, verify(entry, file, folder=folder, lock=self.lock)
