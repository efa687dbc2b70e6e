"""Looks into every input of a configuration without computing anything: `python -m rules.check`, target `check`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.settings import DatasetSection
from core import layout
from core.console import UserError, run_cli
from core.features import VISUAL, Feature
from core.flags import add_mapping, command
from core.machine import snakemake_command
from model.settings import Run
from reporting.words import duration
from rules.checkpoints import cells_for
from settings import Settings, load_settings
from settings.checks import under
from settings.fits import checkpoint_faults, other_features

if TYPE_CHECKING:
    from catalog.annotations import Annotations

#: Rules whose jobs may take hours; each keeps a benchmark.
LONG = {"extract_shard", "import_shard", "train_model", "encode_testset", "score_pairs", "build_search"}
_REPOSITORY = Path(__file__).resolve().parent.parent


def engine_faults(settings: Settings) -> Iterator[str]:
    """Engines of features in use that cannot be imported by this Python."""
    for feature in _extracted(settings):
        engine = settings.features[feature]
        if engine.module and find_spec(engine.module) is None:
            yield (
                f"features.{feature}.engine: {engine.module} is not installed here; {engine.install}, or let Snakemake: "
                "--sdm conda (docs/engines.md)"
            )


def notes(settings: Settings) -> Iterator[str]:
    """What is no mistake but hardly meant."""
    yield from idle(settings)
    for name, run in settings.runs.items():
        if run.checkpoint is not None:
            continue
        late = [epoch for epoch in run.training.lr_decay_epochs if epoch >= run.training.epochs]
        if late:
            yield (
                f"runs.{name}.training.lr_decay_epochs: {late} lie beyond the last epoch (there are {run.training.epochs}, from 0): "
                "the rate does not fall then"
            )
    yield from leaks(settings)


def idle(settings: Settings) -> Iterator[str]:
    """Keys beside a checkpoint that only a training reads."""
    for name, run in settings.runs.items():
        if keys := run.idle():
            yield f"runs.{name}: {', '.join(keys)}: without effect, as a checkpoint is not trained; leave it out"


def leaks(settings: Settings) -> Iterator[str]:
    """Runs that learn, or choose their best epoch, from the very images that they are scored on."""
    for name, run in settings.runs.items():
        for key, does in (
            (("train_split", "trains"), ("val_split", "chooses its best epoch")) if run.checkpoint is None else ()
        ):
            split = getattr(run, key)
            for testset, scored in settings.testsets.items():
                if (scored.dataset, scored.split) == (run.dataset, split):
                    yield f"runs.{name}.{key}: {does} on split {split!r} of {run.dataset}, which testsets.{testset} scores it on"


def _extracted(settings: Settings) -> list[Feature]:
    found = {feature for dataset in settings.datasets.values() for feature in dataset.extracted()}
    return sorted(found)


class Check:
    """The faults that are found, a line each; what is found well is printed at once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.faults: list[str] = []
        self.widths: dict[tuple[str, Feature], int] = {}  # of visual tokens in files

    def run(self) -> None:
        """Look into everything."""
        self.faults += engine_faults(self.settings)
        splits: dict[str, Counter] = {}
        for name, dataset in self.settings.datasets.items():
            with self._listing(f"datasets.{name}"):
                splits[name] = self._dataset(name, dataset)
        for feature in _extracted(self.settings):
            with self._listing(f"features.{feature}"):
                self._extractor(feature)
        tried = []  # runs of an ensemble share their encoder
        for name, run in self.settings.runs.items():
            if run.checkpoint is None:
                self.faults += other_features(self.settings, name, self.widths)
                if run.text.pretrained is not None and os.path.isdir(run.text.pretrained):
                    asked = (run.text, run.training.word_augmentation > 0)
                    if asked not in tried:
                        with self._listing(f"runs.{name}"):
                            self._encoder(name, run)
                    tried.append(asked)
            elif os.path.isfile(run.checkpoint):
                with self._listing():
                    self._checkpoint(name, run)
        self._splits(splits)

    def _listing(self, where: str = "") -> _Listing:
        return _Listing(where and f"{where}: ", self.faults)

    def _dataset(self, name: str, dataset: DatasetSection) -> Counter:
        from catalog.index import ImageRows

        if dataset.source == "scenes":
            return Counter(dataset.splits)
        if dataset.source == "precomputed":
            from catalog.precomputed import read_parts

            parts = read_parts(dataset.folder, dataset.splits, dataset.features, dataset.captions_per_image)
            found = Counter({split: part.images for split, part in parts.items()})
            images = ImageRows([str(i) for i in range(sum(found.values()))], "")
            captions = None
        else:
            read = self._read(dataset)
            read.keep_first(dataset.caption_limit)
            found, captions = Counter(read.splits), len(read.texts)
            images = ImageRows(read.image_ids, "", read.paths, [(0, 0)] * len(read.image_ids))
            for note in read.notes:
                print(f"datasets.{name}: {note}")
            if not dataset.archive:
                self._decode(name, read.paths)
        shown = ", ".join(f"{split} {count}" for split, count in sorted(found.items()))
        texts = f", {captions} captions" if captions else ""
        print(f"datasets.{name}: {sum(found.values())} images ({shown}){texts}", flush=True)
        for feature in dataset.imported():
            from exchange.importing import open_reader

            reader = open_reader(feature, json.loads(dataset.import_source(feature)), images)
            for note in reader.notes:
                print(f"datasets.{name}: {note}")
            arrays = ", ".join(f"{array} {spec.shape}" for array, spec in reader.arrays.items())
            print(f"datasets.{name}: {feature} of files: {arrays}", flush=True)
            if feature in VISUAL:
                self.widths[name, feature] = reader.arrays["features"].shape[-1]
        self._broken(name, dataset)
        return found

    def _read(self, dataset: DatasetSection) -> Annotations:
        from catalog.archives import as_if_unpacked

        threads = os.cpu_count() or 1
        if not dataset.archive:
            return dataset.read(None, threads)
        with as_if_unpacked(Path(dataset.archive)) as folder:
            return dataset.read(folder, threads)

    def _decode(self, name: str, paths: Sequence[str]) -> None:
        from catalog.index import describe_images, listing

        some = list(paths[:: max(1, len(paths) // 20)])
        rows = describe_images(some, some, [""] * len(some)).to_pylist()
        if bad := [f"{row['path']}: {row['error']}" for row in rows if row["error"]]:
            looked = f" of the {len(some)} that were looked into" if len(some) < len(paths) else ""
            found = listing(f"images that cannot be read{looked}", bad)
            if self.settings.features.on_bad_image == "drop":
                print(f"datasets.{name}: {found}; they will be left out")
            else:
                self.faults.append(f"datasets.{name}: {found}; mend them, or set features.on_bad_image: drop")

    def _broken(self, name: str, dataset: DatasetSection) -> None:
        """Images that the index has found broken."""
        from catalog.index import read_images

        path = layout.images(self.settings.results).format(dataset=name)
        if self.settings.features.on_bad_image == "fail" and dataset.extracted() and os.path.isfile(path):
            table, _ = read_images(path)
            bad = [row for row in table.select(["path", "error"]).to_pylist() if row["error"]]
            if bad:
                raise UserError(
                    f"{len(bad)} images cannot be read, such as {bad[0]['path']} ({bad[0]['error']}); mend them, or set "
                    "features.on_bad_image: drop"
                )

    def _extractor(self, feature: Feature) -> None:
        section = self.settings.features[feature]
        if section.engine == "transformers" and os.path.isdir(section.weights) and find_spec(section.module):
            from extractors.engines import build_extractor

            attributes = build_extractor(feature, **section.model_dump()).attributes
            print(f"features.{feature}: {section.weights} is a {attributes['model']} model that can be run", flush=True)
        if section.engine != "native":
            return
        if not os.path.isfile(section.weights):
            print(f"features.{feature}: {section.weights} is yet to be fetched")
            return
        from extractors.loading import load_network

        load_network(section.architecture, section.weights)
        print(f"features.{feature}: {section.weights} fits {section.architecture}", flush=True)

    def _encoder(self, name: str, run: Run) -> None:
        import numpy as np

        from model.pretrained import load_encoder

        text = run.text
        encoder, tokenizer = load_encoder(text.pretrained, dropout=text.dropout, max_tokens=text.max_tokens)
        augmentation = {"augmentation": run.training.word_augmentation, "generator": np.random.default_rng(0)}
        tokenizer.batch(tokenizer.split(["a"]), np.arange(1), **augmentation)  # not every tokenizer can
        how = "packed" if encoder.config.packed else "padded"
        read = f"reads {tokenizer.max_tokens} tokens at most, {how}"
        print(f"runs.{name}: {text.pretrained} {read}", flush=True)

    def _checkpoint(self, name: str, run: Run) -> None:
        from model.checkpoint import recognise

        grids = cells_for(self.settings, name)
        known = None if grids is None else grids.model_dump()
        recognise(run.checkpoint, run.model.kind, run=name, visual=run.visual, grids=known)
        print(f"runs.{name}: {run.checkpoint} is a checkpoint of kind {run.model.kind}", flush=True)
        told = checkpoint_faults(self.settings, name, run.checkpoint, self.widths)
        self.faults += under(f"runs.{name}", told)

    def _splits(self, splits: dict[str, Counter]) -> None:
        """Splits that runs and test sets name, where the data alone could tell."""
        wanted = [(f"runs.{n}.{key}", run.dataset, getattr(run, key)) for n, run in self.settings.runs.items() if run.checkpoint is None for key in ("train_split", "val_split")]  # fmt: skip
        wanted += [
            (f"testsets.{n}.split", testset.dataset, testset.split) for n, testset in self.settings.testsets.items()
        ]
        for where, dataset, split in wanted:
            found = splits.get(dataset)
            if found and split is not None and not found[split]:
                self.faults.append(
                    f"{where}: dataset {dataset!r} has no image in {split!r} (it has {', '.join(sorted(found))})"
                )
        for name, testset in self.settings.testsets.items():
            found = splits.get(testset.dataset)
            if found and 0 < found[testset.split] < testset.folds:
                self.faults.append(
                    f"testsets.{name}.folds: {testset.folds} folds of {found[testset.split]} images cannot be made"
                )


class _Listing:
    """Adds a mistake that ends a look to the list of all."""

    def __init__(self, where: str, faults: list[str]) -> None:
        self.where, self.faults = where, faults

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> bool:
        if isinstance(error, UserError | OSError | ValueError):
            where = "" if str(error).startswith(self.where.removesuffix(": ")) else self.where
            self.faults.append(f"{where}{error}")
            return True
        return False


def what_would_run() -> str:
    """Snakemake's own table of jobs, of the whole configuration."""
    options = shlex.split(snakemake_command())[1:]
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(_REPOSITORY / "Snakefile"), *options]
    done = subprocess.run(
        [*words, "--dry-run", "--nolock", "--quiet", "rules"], capture_output=True, text=True, check=False
    )
    text = done.stdout + done.stderr
    table = text.partition("Job stats:\n")[2].partition("\n\n")[0]
    return (
        table if done.returncode == 0 and table else "nothing: all is there" if done.returncode == 0 else text.strip()
    )


def how_long(table: str, work: str) -> Iterator[str]:
    """What jobs of before tell of how long those to come will take: a sentence, or none where none are to come.

    Args:
        table: rules and how many jobs each has, as Snakemake prints it. work: where the benchmarks of before lie.
    """
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    # Those that take long are measured; the others take seconds.
    measured: dict[str, list[float]] = {}
    for rule in jobs.keys() & LONG:
        for path in Path(layout.benchmark(work, rule)).with_suffix("").rglob("*.tsv"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # of another version of Snakemake
                measured.setdefault(rule, []).append(float(path.read_text().splitlines()[1].split("\t")[0]))
    if measured:
        mean = {rule: sum(seconds) / len(seconds) for rule, seconds in measured.items()}
        whole = sum(mean[rule] * jobs[rule] for rule in mean)
        each = ", ".join(f"{jobs[rule]} of {rule} at {duration(mean[rule])}" for rule in jobs if rule in mean)
        yield f"If jobs take as long as those of before, {duration(whole)} one after another: {each}."
    if new := [rule for rule in jobs if rule in LONG and rule not in measured]:
        yield (
            f"How long {', '.join(new)} will take shows once a job runs: python -m core.progress --results {shlex.quote(work)}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("rules.check", __doc__)
    add_mapping(parser, "--config", "the configuration", required=True)
    parser.add_argument("--plan", action="store_true", help="also say what Snakemake would run")
    args = parser.parse_args(argv)
    settings = load_settings(args.config, check_files=False)  # Snakemake has; and weights may be yet to be fetched
    check = Check(settings)
    check.run()
    for note in notes(settings):
        print(f"Hardly meant: {note}")
    if check.faults:
        several = "" if len(check.faults) == 1 else "s"
        raise UserError(f"{len(check.faults)} fault{several}:\n" + "\n".join(f"  {line}" for line in check.faults))
    table = what_would_run() if args.plan else ""
    print("Nothing stands in the way." + (f" What would run:\n{table}" if table else ""))
    for line in how_long(table, layout.work_of(settings.results)):
        print(line)


if __name__ == "__main__":
    run_cli(main)
