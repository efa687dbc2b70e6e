"""The one model of the configuration: strict, complete, and with every mistake reported at once.

The configuration says WHAT to compute. Threads, memory, devices and executors belong to profiles. Each setting is
declared in the `settings.py` of the package it acts in; here they are put together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from catalog.settings import Dataset
from core.console import UserError
from core.features import FEATURES
from core.files import keys_given_twice
from core.messages import key_path
from core.section import LATER, FilePath, Name, Section, Seed, folder_name
from core.text import decode_text
from evaluation.settings import Ensemble, Testset
from exchange.settings import Export
from extractors.settings import Features, RegionNames
from model.settings import Run
from published.registry import resolve
from published.settings import Published
from search.settings import Search
from settings.checks import CrossChecks
from settings.given import (
    as_wanted,
    check_readable,
    odd_numbers,
    twice_on_command_line,
    with_command_line,
    with_exponents,
)
from settings.salvage import Salvage

__all__ = ["Settings", "check_readable", "load_settings", "used_weights"]


ALL_CAPTIONS = 1_000_000  # more than any image has


class Settings(Section):
    """The whole configuration."""

    results: FilePath = "results"
    seed: Seed = 0
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1)]
    features: Features = Features()
    region_names: RegionNames = RegionNames()
    runs: dict[Name, Run] = {}
    testsets: dict[Name, Testset] = {}
    ensembles: dict[Name, Ensemble] = {}
    search: dict[Name, Search] = {}
    export: Export = Export()
    published: Published = Published()

    @field_validator("results")
    @classmethod
    def _results_is_a_folder_name(cls, value: str) -> str:
        if "://" in value and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/+[^/]+)+/*", value):
            raise ValueError("must be a folder, or a folder in a bucket: s3://BUCKET/FOLDER")
        return folder_name(value)


def used_weights(settings: Settings) -> list[str]:
    """What the extractors and text encoders start from, and files of names of classes: paths, names on a hub or `published:NAME`, each once."""
    return list(dict.fromkeys(_publishable(settings).values()))


def _with_paths(settings: Settings) -> Settings:
    """The settings with paths instead of `published:NAME`."""
    published = settings.published
    for keys, value in _publishable(settings).items():
        settings = _with(settings, keys, resolve(value, published.folder, published.files))
    return settings


def _publishable(settings: Settings) -> dict[tuple[str, ...], str]:
    """Values that may be `published:NAME`, by the keys that lead to them."""
    found = {("features", feature, "weights"): settings.features[feature].weights for feature in FEATURES}
    for name, run in settings.runs.items():
        # Nothing is trained of a checkpoint, so no text encoder is started from.
        trained = run.checkpoint is None
        keys = ("text", "pretrained") if trained else ("checkpoint",)
        found["runs", name, *keys] = run.text.pretrained if trained else run.checkpoint
    found |= {("region_names", key): getattr(settings.region_names, key) for key in RegionNames.model_fields}
    return {keys: value for keys, value in found.items() if value is not None}


def _with_captions(settings: Settings) -> Settings:
    """The settings with as many captions an image in training as the run's dataset has, where a run does not say it."""
    for name, run in settings.runs.items():
        limit = getattr(settings.datasets[run.dataset], "captions_per_image", 5) if run.checkpoint is None else 5
        said = "captions_per_image" in run.training.model_fields_set
        if not said and limit != run.training.captions_per_image:
            # Of a dataset with all of its captions none are too many.
            keys = ("runs", name, "training", "captions_per_image")
            settings = _with(settings, keys, limit or ALL_CAPTIONS)
    return settings


def _with(section: Any, keys: Sequence[str], value: Any) -> Any:
    """A section (or a dictionary of them) with another value behind these keys. What was said in the configuration stays known."""
    key, *within = keys
    if isinstance(section, dict):
        return section | {key: _with(section[key], within, value) if within else value}
    changed = _with(getattr(section, key), within, value) if within else value
    return section.model_copy(update={key: changed})


def load_settings(
    config: dict[str, Any],
    *,
    check_files: bool = True,
    files: Iterable[str | os.PathLike[str]] = (),
    given: dict[str, Any] | None = None,
    words: Sequence[str] = (),
) -> Settings:
    """Validate a configuration.

    Args:
        config: as read from YAML. check_files: also check that folders and files it names exist.
        files: those it was read from, to find keys that stand twice. given: what of it was given on Snakemake's command
            line, where numbers are text. words: that command line, to find keys that stand twice on it.

    Returns:
        The settings, with the paths of published weights (there or yet to be fetched) in place of `published:NAME`.

    Raises:
        UserError: with one line per mistake: the key, the value and the fix.
    """
    config = with_exponents(with_command_line(config, given or {}))
    if given:
        config = as_wanted(config, given, words, _wrong(config))
    texts = [(decode_text(file), str(file)) for file in files]
    twice = [line for text, place in texts for line in (*keys_given_twice(text, place), *odd_numbers(text, place))]
    twice += twice_on_command_line(words)
    salvage = Salvage(config, Settings)
    lines = [*twice, *salvage.lines, *CrossChecks(salvage, config, check_files)]
    if lines:
        raise UserError(_report(lines))
    return _with_paths(_with_captions(salvage.settings))


def _wrong(config: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """Keys that lead to wrong values, and the kinds of mistakes as pydantic calls them."""
    try:
        Settings.model_validate(config, context=LATER)
    except ValidationError as error:
        return [(key_path(item, Settings), item["type"]) for item in error.errors()]
    return []


def _report(lines: list[str]) -> str:
    return f"{len(lines)} mistake{'s' if len(lines) > 1 else ''} in the configuration:\n" + "\n".join(
        f"  {x}" for x in lines
    )
