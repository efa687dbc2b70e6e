"""What searches, tables and the report need: the part of `Plan` about what people look at."""

from __future__ import annotations

import json
import os
from typing import Any

from core import layout
from core.embedded import SOURCE, is_ours
from core.features import FEATURES
from settings import Settings

Wildcards = Any


class Shown:
    """Methods of `Plan`, whose others they call."""

    settings: Settings

    # --- search

    def search_inputs(self, wildcards: Wildcards) -> dict[str, Any]:
        search = self.settings.search[wildcards.search]
        own = [self.settings.runs[run] for run in search.runs]
        files = [self.run_file(name, run) for run in search.runs for name in (layout.WEIGHTS, layout.CONFIG)]
        files += [
            f"{run.folder}/{name}" for run in search.imported.values() for name in (layout.WEIGHTS, layout.CONFIG)
        ]
        read = {f for reads in search.reads(self.settings.runs).values() for f in reads.values()}
        return self.index(search.dataset) | {
            "names": [file for file in [self.settings.region_names.objects] if file],
            "runs": files,
            "networks": [file for run in own for file in self._model_files(run).values()],
            "stores": [self.sealed(search.dataset, feature) for feature in FEATURES if feature in read],
        }

    def search_place(self, wildcards: Wildcards) -> str:
        """Where a search's files lie, a bucket's address included."""
        return os.path.dirname(layout.search(self.results, wildcards.search))

    def search_runs(self, wildcards: Wildcards) -> str:
        """For each run its folder and the stores it reads, as the command takes them."""
        search = self.settings.search[wildcards.search]
        found: dict[str, dict[str, str]] = {}
        for run, reads in search.reads(self.settings.runs).items():
            own = os.path.dirname(layout.run_file(self.results, layout.WEIGHTS, run))
            folder = own if run in search.runs else search.imported[run].folder
            stores = {need: layout.store(self.results, search.dataset, feature) for need, feature in reads.items()}
            found[run] = {"folder": folder} | stores
        return json.dumps(found)

    def search_flags(self, wildcards: Wildcards) -> list[str]:
        search, names = self.settings.search[wildcards.search], self.settings.region_names.objects
        flags = [] if search.captions else ["--without-captions"]
        flags += ["--region-names", names] if names else []
        return flags if self.settings.datasets[search.dataset].source == SOURCE else [*flags, "--photographs"]

    def _names_files(self) -> list[str]:
        """Files of the names of regions' classes."""
        files = self.settings.region_names.files()
        return [file if self._is_published(file) else self.ancient(file) for file in files]

    # --- what is said at the start

    def unfamiliar(self) -> list[str]:
        """A sentence for each dataset of other pictures than drawings whose features the embedded detectors are asked for."""
        found = []
        for name, dataset in self.settings.datasets.items():
            wanted = set(self.needed_features(name)) & set(dataset.extracted()) if dataset.source != SOURCE else ()
            ours = [
                feature
                for feature in FEATURES
                if feature in wanted and is_ours(self.settings.features[feature].weights)
            ]
            if ours:
                found.append(
                    f"datasets.{name}: weights/ has seen nothing but the renderer's drawings, so its {' and '.join(ours)} of other pictures show "
                    "that the pipeline runs, not what is in them; docs/detectors.md says how to take detectors for photographs"
                )
        return found

    # --- tables and report

    def table_settings(self, wildcards: Wildcards) -> str:
        """What the tables show and in which order."""
        benchmarks = {name: {"benchmark": testset.benchmark} for name, testset in self.settings.testsets.items()}
        systems = {"runs": self.settings.runs, "ensembles": self.settings.ensembles}
        shown = {section: dict.fromkeys(names, {}) for section, names in systems.items()}
        return json.dumps(shown | {"testsets": benchmarks})

    def report_inputs(self, wildcards: Wildcards) -> list[str]:
        files = self.all_indexes() + self._names_files()
        for dataset, feature in self._used():
            files += [self.sealed(dataset, feature), *self._receipts(dataset, feature)]
        for run in self.settings.runs:
            history = [layout.HISTORY] if self._origin(run) == "trained" else []
            files += [self.run_file(name, run) for name in (layout.CONFIG, *history)]
            files += [self._scored(run, testset) for testset in self.settings.testsets]
        return files + self.all_metrics() + self._ranks() + self._why()

    def _why(self) -> list[str]:
        """Explanations of what the gallery shows, if it shows anything."""
        return [self.kept(layout.why(self.results))] if self.all_metrics() else []

    def why_inputs(self, wildcards: Wildcards) -> list[str]:
        tested = dict.fromkeys(testset.dataset for testset in self.settings.testsets.values())
        files = [file for dataset in tested for file in self.index(dataset).values()]
        files += [self.sealed(dataset, feature) for dataset, feature in self._used() if dataset in tested]
        for run, section in self.settings.runs.items():
            files += [self.run_file(name, run) for name in (layout.WEIGHTS, layout.CONFIG, layout.VOCABULARY)]
            files += [self._scored(run, testset) for testset in self.settings.testsets]
            files += self._model_files(section).values()
        return files + self.all_metrics()

    def why_settings(self, wildcards: Wildcards) -> str:
        """What decides which matches are explained, and by what."""
        settings = self.settings
        runs = {name: {"dataset": run.dataset, "visual": run.visual} for name, run in settings.runs.items()}
        systems = {name: {"runs": ensemble.runs} for name, ensemble in settings.ensembles.items()}
        testsets = {name: {"dataset": testset.dataset} for name, testset in settings.testsets.items()}
        return json.dumps({"seed": settings.seed, "runs": runs, "ensembles": systems, "testsets": testsets})

    def results_folder(self, wildcards: Wildcards) -> str:
        """Where commands find the stores, a bucket's address included."""
        return self.results

    def report_settings(self, wildcards: Wildcards) -> str:
        """All, in the order of the configuration: the report lists its parts in the same."""
        return json.dumps(self.settings.model_dump(), ensure_ascii=False)
