"""Everything the report reads, as plain records. Only finished artefacts are read; what is missing becomes a note."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog.index import Index, read_index
from core import embedded, layout
from core.console import UserError
from evaluation.ranks import Ranked, read_ranks
from evaluation.scores import Scored, read_scored
from stores import open_store
from stores.reader import Store

WHY_VERSION = 1  # of what `reporting.why` writes
SECONDS = ("decode", "network", "write", "startup")


@dataclass(frozen=True)
class System:
    """What is scored: a run (its own only member) or an ensemble. `datasets`: those its members were trained on."""

    name: str
    members: tuple[str, ...]
    ensemble: bool
    datasets: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One feature of one dataset, summed over its shards; times are seconds summed over jobs.

    Attributes:
        reused: images whose rows came from a former store. extracted: images that a network has seen, in `working` seconds without
            the start of the programs; shards in which none has seen any count in neither.
    """

    dataset: str
    feature: str
    shards: int
    images: int
    seconds: dict[str, float]
    reused: int
    extracted: int
    working: float
    devices: tuple[str, ...]
    failures: tuple[dict[str, str], ...]
    dropped: tuple[str, ...]
    sealed: bool

    @property
    def images_per_second(self) -> float | None:
        """Throughput once the programs have started; None where nothing was extracted or timed."""
        return self.extracted / self.working if self.extracted and self.working > 0 else None

    @property
    def parts(self) -> list[tuple[str, float]]:
        """Shares of the total time, in %, with what the receipts do not name as `other`."""
        total = self.seconds.get("total", 0.0)
        if total <= 0:
            return []
        parts = [(name, 100 * self.seconds[name] / total) for name in SECONDS if self.seconds.get(name)]
        # Decoding can overlap the network in worker processes, so the parts may exceed the whole.
        scale = max(1.0, sum(share for _, share in parts) / 100)
        parts = [(name, share / scale) for name, share in parts]
        rest = 100 - sum(share for _, share in parts)
        return [*parts, ("other", rest)] if rest > 0.5 else parts


@dataclass(frozen=True)
class History:
    """`history.csv` of a run: column -> values per epoch (NaN where a cell is empty or no number)."""

    run: str
    columns: dict[str, list[float]]

    def column(self, *names: str) -> list[float] | None:
        """The first of `names` that exists."""
        return next((self.columns[name] for name in names if name in self.columns), None)


@dataclass
class Artefacts:
    """Reader of one results folder for one configuration; `notes` collects what was looked for and not found.

    `stores` is where the data of the stores lies, if not in the results folder.
    """

    results: Path
    config: dict[str, Any]
    stores: str | None = None
    notes: list[str] = field(default_factory=list)
    _indexes: dict[str, Index | None] = field(default_factory=dict)
    _stores: dict[tuple[str, str], Store | None] = field(default_factory=dict)
    _stages: dict[tuple[str, str], Stage | None] = field(default_factory=dict)

    def section(self, name: str) -> dict[str, Any]:
        """A section of the configuration; empty if absent."""
        return self.config.get(name) or {}

    @property
    def features(self) -> list[str]:
        """The features the configuration describes."""
        return [name for name, settings in self.section("features").items() if isinstance(settings, dict)]

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def systems(self) -> list[System]:
        """Runs, then ensembles, in the configuration's order."""
        runs = self.section("runs")
        systems = [System(name, (name,), False, (str(run.get("dataset", "")),)) for name, run in runs.items()]
        for name, ensemble in self.section("ensembles").items():
            members = tuple(ensemble.get("runs") or ())
            datasets = tuple(dict.fromkeys(str(runs.get(run, {}).get("dataset", "")) for run in members))
            systems.append(System(name, members, True, datasets))
        return systems

    def metrics(self, system: System, testset: str) -> dict[str, Any] | None:
        """The metrics of a system on a test set; None (and a note) if they do not exist."""
        where = layout.ensemble_metrics if system.ensemble else layout.metrics
        path = Path(where(self.results, system.name, testset))
        metrics = self._json(path)
        if metrics is None:
            self.note(f"{system.name} has no metrics on {testset}: {path} does not exist.")
        elif not {"i2t", "t2i", "rsum"} <= metrics.keys():
            raise UserError(f"{path} is not a metrics file: i2t, t2i or rsum is missing; run the evaluation again")
        return metrics

    def ranks(self, system: System, testset: str) -> Ranked | None:
        """The ranks behind a system's metrics; None where they were not kept."""
        where = layout.ensemble_ranks if system.ensemble else layout.ranks
        path = Path(where(self.results, system.name, testset))
        return read_ranks(path) if path.is_file() else None

    def index(self, dataset: str) -> Index | None:
        """The index of a dataset; None (and a note) if it does not exist."""
        if dataset not in self._indexes:
            path = Path(layout.images(self.results, dataset))
            self._indexes[dataset] = read_index(path) if path.is_file() else None
            if self._indexes[dataset] is None:
                self.note(f"Dataset {dataset} has no index: {path} does not exist.")
        return self._indexes[dataset]

    def store(self, dataset: str, feature: str) -> Store | None:
        """The sealed store of a feature; None if it does not exist or is not sealed."""
        key = (dataset, feature)
        if key not in self._stores:
            sealed = Path(layout.sealed(self.results, dataset, feature)).is_file()
            store = layout.store(self.stores or self.results, dataset, feature)
            self._stores[key] = open_store(store) if sealed else None
        return self._stores[key]

    def unfamiliar(self, dataset: str) -> list[str]:
        """The features that the embedded detectors made of a dataset that is not the embedded renderer's."""
        if self.section("datasets").get(dataset, {}).get("source") == embedded.SOURCE:
            return []
        stores = {feature: self.store(dataset, feature) for feature in self.features}
        return [
            feature
            for feature, store in stores.items()
            if store is not None and embedded.knows_drawings_only(store.attributes.get("weights_digest"))
        ]

    def stage(self, dataset: str, feature: str) -> Stage | None:
        """The receipts of a feature, summed; None if there are none."""
        key = (dataset, feature)
        if key not in self._stages:
            self._stages[key] = self._stage(dataset, feature)
        return self._stages[key]

    def _stage(self, dataset: str, feature: str) -> Stage | None:
        folder = Path(layout.receipts_of(layout.store(self.results, dataset, feature)))
        receipts = [receipt for path in sorted(folder.glob("*.json")) if (receipt := self._json(path))]
        if not receipts:
            return None
        store = self.store(dataset, feature)
        # Receipts of an earlier number of shards stay in the folder; the store knows which ones it is made of.
        current = store.attributes.get("fingerprint") if store is not None else None
        receipts = [receipt for receipt in receipts if current in (None, receipt.get("fingerprint"))]
        seconds: dict[str, float] = {}
        for receipt in receipts:
            for name in receipt.get("seconds") or {}:
                seconds[name] = seconds.get(name, 0.0) + _seconds(receipt, name)
        worked = [(receipt, images) for receipt in receipts if (images := _extracted(receipt))]
        failures = [failure for receipt in receipts for failure in receipt.get("failures") or ()]
        return Stage(
            dataset=dataset,
            feature=feature,
            shards=len(receipts),
            images=sum(int(receipt.get("images", 0)) for receipt in receipts),
            seconds=seconds,
            reused=sum(int(receipt.get("taken_over", 0)) for receipt in receipts),
            extracted=sum(images for _, images in worked),
            working=sum(_seconds(receipt, "total") - _seconds(receipt, "startup") for receipt, _ in worked),
            devices=tuple(sorted({str(receipt.get("device", "")) for receipt in receipts} - {"", "none"})),
            failures=tuple(sorted(failures, key=lambda failure: str(failure.get("image_id")))),
            dropped=tuple(sorted(store.dropped)) if store is not None else (),
            sealed=store is not None,
        )

    def history(self, run: str) -> History | None:
        """The training history of a run; None (and a note) if it does not exist."""
        path = Path(layout.run_file(self.results, layout.HISTORY, run))
        if not path.is_file():
            self.note(f"Run {run} has no training history: {path} does not exist.")
            return None
        columns: dict[str, list[float]] = {}
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name:
                        columns.setdefault(name, []).append(_number(value))
        return History(run, columns)

    def run_config(self, run: str) -> dict[str, Any] | None:
        """The configuration stored beside a run's weights."""
        return self._json(Path(layout.run_file(self.results, layout.CONFIG, run)))

    def scored(self, run: str, testset: str) -> Scored | None:
        """The embeddings or pair scores of a run on a test set; None (and a note) if they do not exist."""
        path = Path(layout.embeddings(self.results, run, testset))
        pairs = Path(layout.scores(self.results, run, testset))
        if Path(layout.seal_of(pairs)).is_file() and not Path(layout.seal_of(path)).is_file():
            path = pairs
        if not Path(layout.seal_of(path)).is_file():
            self.note(f"Run {run} has no embeddings of {testset}, so the gallery leaves it out: {path} does not exist.")
            return None
        return read_scored(path)

    def why(self, testset: str) -> dict[str, dict[str, Any]]:
        """What `reporting.why` wrote of a test set: of each run, by caption and image; empty if it did not."""
        content = self._json(Path(layout.why(self.results))) or {}
        return content.get("testsets", {}).get(testset, {}) if content.get("why_version") == WHY_VERSION else {}

    @staticmethod
    def _json(path: Path) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}): delete it and run the workflow again") from error
        if not isinstance(value, dict):
            raise UserError(f"{path} must hold a JSON object: delete it and run the workflow again")
        return value


def _seconds(receipt: dict[str, Any], name: str) -> float:
    return float((receipt.get("seconds") or {}).get(name) or 0.0)


def _extracted(receipt: dict[str, Any]) -> int:
    """How many images a network has seen in a shard: none where all rows were taken over or imported."""
    if receipt.get("device") in ("none", "import"):
        return 0
    return int(receipt.get("extracted", int(receipt.get("images", 0)) - int(receipt.get("taken_over", 0))))


def _number(value: str | None) -> float:
    try:
        return float(value) if value else math.nan
    except ValueError:
        return math.nan
