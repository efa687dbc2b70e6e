"""What makes a job run again beside its inputs' being made anew: the content of the user's files, and settings that change a result."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from core import layout
from core.features import Feature
from core.machine import images_alone
from model.encoder_folder import encoder_files
from model.settings import own_file
from published.registry import entry_at
from rules.contents import contents
from rules.made import Made, made_store, remember
from settings import Settings

Wildcards = Any


class Reasons:
    """The part of `Plan` that says so; values of `params`, which Snakemake compares with those of before."""

    settings: Settings

    # --- contents of files

    def index_contents(self, wildcards: Wildcards) -> str:
        made = self._made(wildcards)
        return contents(file for file in self.settings.datasets[wildcards.dataset].sources(made) if file != made)

    def index_settings(self, wildcards: Wildcards, output: Any) -> str:
        # A function of `output` is no reason to run again; `index_reason` is.
        return self.settings.datasets[wildcards.dataset].index_settings()

    def index_reason(self, wildcards: Wildcards) -> str:
        """The settings of an index; those that it was made by as long as others would change nothing, as there was nothing to leave out."""
        reason = self.settings.datasets[wildcards.dataset].index_settings()
        images = layout.images(self.results, wildcards.dataset)
        if not self.remote and os.path.exists(images):
            from catalog.index import made_by

            made = made_by(images)
            # As it was remembered, word by word.
            reason = made.reason if made and made.same(json.loads(reason)) else reason
        return reason + self._captions_wanted(wildcards.dataset)

    def _captions_wanted(self, dataset: str) -> str:
        """Why an index that was made for features alone, as its captions could not be used, is made again."""
        captions = layout.captions(self.results, dataset)
        if images_alone() or self.remote or not os.path.exists(captions):
            return ""
        from catalog.index import captions_refused

        return " and captions" if captions_refused(captions) else ""

    def archive_content(self, wildcards: Wildcards) -> str:
        return contents([self.settings.datasets[wildcards.dataset].archive])

    def import_contents(self, wildcards: Wildcards) -> str:
        return contents(self.settings.datasets[wildcards.dataset].feature_files(wildcards.feature))

    def weights_contents(self, wildcards: Wildcards) -> str:
        return self._own_contents(self.settings.features[wildcards.feature].files())

    def _is_published(self, file: str) -> bool:
        """Whether a file is one that the workflow fetches, whose digest is locked."""
        return entry_at(file, self.settings.published.folder) is not None

    def _own_contents(self, files: Iterable[str]) -> str:
        return contents(file for file in files if not self._is_published(file))

    def run_contents(self, wildcards: Wildcards) -> str:
        """Of the files beside the stores that a training reads: a network's of the user's own, a text encoder's in a folder."""
        run = self.settings.runs[wildcards.run]
        folder = run.text.pretrained if getattr(run.text, "pretrained", None) else ""
        own = [file for file in (own_file(run.model.kind), getattr(run.text, "vocabulary", None)) if file]
        published = entry_at(folder, self.settings.published.folder) if folder else None
        if published is None and os.path.isdir(folder):
            own += encoder_files(folder)
        return contents(own)

    def model_contents(self, wildcards: Wildcards) -> str:
        file = own_file(self.settings.runs[wildcards.run].model.kind)
        return contents([file] if file else [])

    def protocol_contents(self, wildcards: Wildcards) -> str:
        return contents(self._positives(wildcards.testset))

    def names_contents(self, wildcards: Wildcards) -> str:
        return self._own_contents(self.settings.region_names.files())

    # --- stores that are there

    def _made_store(self, dataset: str, feature: Feature) -> Made | None:
        return None if self.remote else made_store(*self._marker_and_receipts(dataset, feature))

    def _marker_and_receipts(self, dataset: str, feature: Feature) -> tuple[str, str]:
        receipt = layout.receipt(self.results, dataset, feature, 0)
        return layout.sealed(self.results, dataset, feature), os.path.dirname(receipt)

    def remember_made(self) -> None:
        """Before any job: what stores were made with that are asked for otherwise now."""
        for name, dataset in self.settings.datasets.items() if not self.remote else ():
            asked = {"shards": dataset.shards, "compression": self.settings.features.compression}
            for feature in dataset.available():
                made, (_, receipts) = self._made_store(name, feature), self._marker_and_receipts(name, feature)
                remember(made, receipts, **asked)

    def _shards(self, dataset: str, feature: Feature) -> int:
        made = self._made_store(dataset, feature)
        return made.shards if made else self.settings.datasets[dataset].shards

    def shards(self, wildcards: Wildcards) -> int:
        """Jobs of a feature: those that made its store, if there is one. Another number changes no value in it."""
        return self._shards(wildcards.dataset, wildcards.feature)

    def compression(self, wildcards: Wildcards, output: Any) -> str:
        # A function of `output` is no reason to run again.
        made = self._made_store(wildcards.dataset, wildcards.feature)
        return made.compression if made else self.settings.features.compression

    def on_bad_image(self, wildcards: Wildcards, output: Any) -> str:
        return self.settings.features.on_bad_image

    def unwanted(self, wildcards: Wildcards) -> bool:
        """Whether a store went on without bad images that are now no longer to be dropped: it is sealed again, and fails."""
        made = self._made_store(wildcards.dataset, wildcards.feature)
        return made is not None and made.dropped > 0 and self.settings.features.on_bad_image == "fail"
