"""What can be searched by a sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import layout
from core.console import UserError
from core.features import VISUAL, Feature, Visual
from core.messages import did_you_mean
from core.section import FilePath, Name, Section
from model.settings import DEFAULT_KIND, kind_needs


class ImportedRun(Section):
    """A run folder that this configuration does not train, such as an imported checkpoint."""

    folder: FilePath
    visual: Visual  # what its network takes as visual tokens

    def features(self) -> tuple[Feature, ...]:
        """What its network takes of an image; where that cannot be said, as 3SHNet."""
        try:
            needs = kind_needs(self.content().get("kind", DEFAULT_KIND))
        except UserError:
            needs = kind_needs(DEFAULT_KIND)
        return tuple(self.visual if need == "visual" else need for need in needs)

    def content(self) -> dict[str, Any]:
        """Its `config.json`; nothing where it cannot be read."""
        try:
            found = json.loads(Path(self.folder, layout.CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        return found if isinstance(found, dict) else {}

    def missing(self) -> Iterator[str]:
        for name in (layout.CONFIG, layout.WEIGHTS):
            if not os.path.isfile(os.path.join(self.folder, name)):
                yield f"folder: {self.folder!r} has no {name}; name the folder that `python -m model.checkpoint import` wrote"


class Search(Section):
    """A dataset's images, found by sentences: with or without captions, whatever their splits.

    Several runs count as one: the mean of their similarities.
    """

    dataset: str
    runs: list[str] = []
    imported: dict[Name, ImportedRun] = {}  # beside them, by names of their own
    captions: bool = True  # embed captions too, where there are any: an image then finds sentences

    def mistakes(self) -> Iterator[str]:
        if not self.runs and not self.imported:
            yield "runs: none; name one or more of the section runs, or a run folder under imported"
        if len(set(self.runs)) < len(self.runs):
            yield f"runs: {self.runs} names a run twice; remove the repeat"
        for name in self.imported:
            if name in self.runs:
                yield f"imported.{name}: there is a run of the same name; rename one of them"

    def missing(self) -> Iterator[str]:
        for name, run in self.imported.items():
            yield from (f"imported.{name}.{line}" for line in run.missing())

    def reads(self, runs: dict[str, Any]) -> dict[str, dict[str, Feature]]:
        """For each of its runs, which feature the network takes as which input. `runs`: those of the configuration."""
        asked = {name: runs[name].features() for name in self.runs if name in runs}
        asked |= {name: run.features() for name, run in self.imported.items()}
        return {
            name: {"visual" if feature in VISUAL else feature: feature for feature in features}
            for name, features in asked.items()
        }

    def unknown(self, datasets: list[str], runs: list[str]) -> Iterator[str]:
        """Names that the configuration does not have."""
        if self.dataset not in datasets:
            hint = did_you_mean(self.dataset, datasets, f"choose one of {', '.join(datasets)}")
            yield f"dataset: {self.dataset!r} is not under datasets; {hint}"
        for run in dict.fromkeys(self.runs):
            if run not in runs:
                yield f"runs: {run!r} is not under runs; {did_you_mean(run, runs, 'add it there')}"
