"""Pictures of a test set that runs have learnt from in another dataset; those of one dataset its own index tells."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from catalog.copies import same_pictures
from catalog.index import listing
from reporting.artefacts import Artefacts

_USES = {"train_split": "on which {} trained", "val_split": "by which {} chose the best epoch"}


def seen_in_training(artefacts: Artefacts) -> list[str]:
    """A sentence for each test set and split with pictures in common, byte by byte."""
    told = []
    for testset, scored in artefacts.section("testsets").items():
        for (dataset, split, use), runs in _learnt_from(artefacts).items():
            tables = [
                _pictures(artefacts, str(scored["dataset"]), str(scored["split"])),
                _pictures(artefacts, dataset, split),
            ]
            if dataset == scored["dataset"] or None in tables or not (pairs := same_pictures(*tables)):
                continue
            what = f"pictures of test set {testset} are also in split {split!r} of {dataset}, byte by byte, {use.format(', '.join(runs))}"
            told.append(listing(what, [f"{one} = {other} of {dataset}" for one, other in pairs]))
    return told


def _learnt_from(artefacts: Artefacts) -> dict[tuple[str, str, str], list[str]]:
    """(dataset, split, what for) -> the runs that it was used for."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, run in artefacts.section("runs").items():
        for key, use in _USES.items() if run.get("checkpoint") is None else ():
            if run.get(key):
                found.setdefault((str(run.get("dataset")), str(run[key]), use), []).append(name)
    return found


def _pictures(artefacts: Artefacts, dataset: str, split: str) -> pa.Table | None:
    index = artefacts.index(dataset)
    return None if index is None else index.images.filter(pc.equal(index.images["split"], split))
