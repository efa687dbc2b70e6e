"""Engines: whose program runs a feature's network. A new engine is a file and a line here, a new feature a file of its own.

An engine's file has `RUNNERS`: for each feature it can make, a function of the engine's own settings that gives a
`loading.NetworkRunner`. It is imported when the engine is chosen, and imports packages that may not be there when it runs.
A feature's file, `extractors/{feature}.py`, has `RECIPE` and `EXTRACTOR`: what turns a runner's results into rows, whichever
engine it is of.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from core.console import UserError
from core.features import Feature

if TYPE_CHECKING:
    from extractors.loading import NetworkExtractor

ENGINES = {
    "native": "extractors.loading",
    "detectron2": "extractors.detectron",
    "transformers": "extractors.transformers_engine",
}


def build_extractor(
    feature: Feature,
    *,
    engine: str = "native",
    batch_size: int = 8,  # of the command that feeds the extractor; listed so that other unknown settings are errors
    **settings: Any,
) -> NetworkExtractor:
    """The extractor of a feature around an engine's runner, from flat settings (config section `features.{feature}`).

    Raises:
        UserError: this engine does not make this feature, or settings that neither knows or that the engine lacks. And what
            the two themselves refuse.
    """
    if engine not in ENGINES or feature not in _runners(engine):
        known = [name for name in ENGINES if feature in _runners(name)]
        raise UserError(f"unknown engine {engine!r}; choose one of {', '.join(known)}")
    extractor, runner = importlib.import_module(f"extractors.{feature}").EXTRACTOR, _runners(engine)[feature]
    kept = {name: settings.pop(name) for name in inspect.signature(extractor).parameters if name in settings}
    try:
        inspect.signature(runner).bind(**settings)
    except TypeError as error:
        raise UserError(f"settings of engine {engine}: {error}") from error
    return extractor(runner(**settings), **kept)


def _runners(engine: str) -> dict[Feature, Any]:
    return importlib.import_module(ENGINES[engine]).RUNNERS
