"""Where the weights of runs come from: the part of `Plan` about checkpoints that others published, and imported runs."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from core import layout
from core.console import UserError
from core.section import canonical
from extractors.settings import CHECKPOINT_CNNS, Extractor
from model.checkpoints.heads import SCORE, SWITCHES
from model.runs import imported_by_hand, read_config
from model.settings import DEFAULT_KIND
from settings import Settings
from settings.fits import folder_faults, reads
from stores.places import place_of

Wildcards = Any
_LOWERCASE = {"scan": "ascii", "vse_infinity": "text", "3shnet": "text"}  # as the import has it by itself


def alternatives(names: Iterable[str]) -> str:
    """A wildcard constraint that matches the given names only."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def cells_for(settings: Settings, run: str) -> Extractor | None:
    """The extractor whose cells a run is scored on; None if it reads regions, or cells of files alone."""
    tested = [settings.datasets[testset.dataset] for testset in settings.testsets.values()]
    computed = any("grids" in dataset.extracted() for dataset in tested)
    return settings.features.grids if computed and settings.runs[run].visual == "grids" else None


class Checkpoints:
    """Methods of `Plan`, whose others they call."""

    settings: Settings

    @property
    def trained(self) -> str:
        """`run`, where it is trained."""
        return alternatives(name for name in self.settings.runs if self._origin(name) == "trained")

    @property
    def imported_runs(self) -> str:
        """`run`, where it is made of a checkpoint of authors."""
        return alternatives(name for name in self.settings.runs if self._origin(name) == "checkpoint")

    def _origin(self, run: str) -> str:
        """Where a run's weights come from: trained, checkpoint (named by the configuration), or kept: somebody put an
        imported run into the folder, which no job may overwrite."""
        if run in self._kept:
            return "kept"
        return "trained" if self.settings.runs[run].checkpoint is None else "checkpoint"

    @functools.cached_property
    def _kept(self) -> set[str]:
        """Asked once: in a bucket each is a request."""
        return {run for run in self.settings.runs if imported_by_hand(layout.run_folder(self.results, run))}

    def kept_runs(self) -> list[str]:
        """Runs that somebody imported. UserError if one is of another kind than the configuration says, or cannot read its test sets; or
        if a run that was trained lies where a checkpoint is to be imported."""
        for run in self.settings.runs:
            folder = layout.run_folder(self.results, run)
            # Snakemake removes what is there before the import could refuse.
            state = os.path.join(layout.state_of(folder), layout.STATE)
            trained = os.path.exists(state) or place_of(folder).size(layout.HISTORY) is not None
            if self._origin(run) == "checkpoint" and trained:
                raise UserError(
                    f"runs.{run}.checkpoint: {folder} holds a run that was trained here, which the import would remove; call this run "
                    "otherwise, or move the folder away"
                )
        kept = [run for run in self.settings.runs if self._origin(run) == "kept"]
        for run in kept:
            folder = layout.run_folder(self.results, run)
            config, visual = read_config(folder), self.settings.runs[run].visual
            found, said = config.get("kind", DEFAULT_KIND), self.settings.runs[run].model.kind
            if found != said:
                raise UserError(
                    f"runs.{run}.model.kind: {said!r}, but {folder} holds a network of kind {found!r}; write that"
                )
            read = reads(self.settings, run)
            for line in (
                *self._unlike(run, folder, config),
                *folder_faults(self.settings, read, visual, folder, config),
            ):
                raise UserError(f"runs.{run}.{line}")
        return kept

    def _unlike(self, run: str, folder: str, config: dict[str, Any]) -> Iterator[str]:
        """Settings of a network that somebody wrote, and that the run in the folder has otherwise; it is scored as it is."""
        model, sizes = self.settings.runs[run].model, config.get("image")
        # What is said to be so beside a checkpoint is compared with that, and dropout is of training.
        said = model.model_fields_set - {"kind", "dropout"} if self.settings.runs[run].checkpoint is None else ()
        for key in sorted(said):
            if isinstance(sizes, dict) and key in sizes and sizes[key] != getattr(model, key):
                yield f"model.{key}: {getattr(model, key)!r}, but the run in {folder} has {sizes[key]!r}; write that, or leave it out"

    def checkpoint_inputs(self, wildcards: Wildcards) -> dict[str, str]:
        run = self.settings.runs[wildcards.run]
        return {"checkpoint": run.checkpoint} | ({} if run.vocabulary is None else {"words": run.vocabulary})

    def checkpoint_flags(self, wildcards: Wildcards) -> list[str]:
        run = self.settings.runs[wildcards.run]
        flags = ["--kind", run.model.kind] + ([] if run.vocabulary is None else ["--vocabulary", run.vocabulary])
        if run.model.kind == "3shnet":
            flags += ["--class-order", run.model.class_order, "--seg-map-encoding", run.model.seg_map_encoding]
        # What no file holds, where somebody said it.
        beside = [(run.model, "void_value"), (run.text, "heads"), (run.text, "max_tokens"), (run.text, "lowercase")]
        for section, key in beside:
            if key in section.model_fields_set and (
                key != "lowercase" or run.text.lowercase != _LOWERCASE[run.model.kind]
            ):
                flags += [f"--{key.replace('_', '-')}", str(getattr(section, key))]
        said = run.model.model_fields_set
        options = {key: getattr(run.model, key) for key in SCORE if key in said}
        options |= {off: not getattr(run.model, key) for off, key in SWITCHES.items() if key in said}
        return flags + (["--options", json.dumps(options, sort_keys=True)] if options else [])

    def checkpoint_reads(self, wildcards: Wildcards, output: Any) -> list[str]:
        """What a run of a checkpoint is to be scored on: one that brings its own CNN is told at once from another's cells.

        As a function of `output` it is no reason to import again.
        """
        run, grids = self.settings.runs[wildcards.run], cells_for(self.settings, wildcards.run)
        return ["--visual", run.visual] + (["--grids", canonical(grids)] if grids is not None else [])

    def pooled_cells(self) -> Iterator[str]:
        """Runs of checkpoints whose CNN makes the grids, of which the store keeps fewer than the head was trained on."""
        grids = self.settings.features.grids
        if getattr(grids, "architecture", "") in CHECKPOINT_CNNS and grids.grid != "native":
            runs = self.settings.runs.items()
            yield from (n for n, run in runs if run.checkpoint is not None and cells_for(self.settings, n) is not None)
