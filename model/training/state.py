"""The resume state: where training stands, with the weights and the optimiser, and the best weights so far.

It lies outside the run folder, because a workflow manager deletes the outputs of a job that failed or is about to run again.
It stays when training has ended: with more epochs the same training goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.console import UserError
from core.files import atomic_path, digest_json
from core.layout import BEST, FINISHED, STATE
from core.machine import may_reuse
from model.build import described
from model.data import Split, TrainingPairs
from model.network import RetrievalNetwork
from model.parallel import everyones, process
from model.runs import save_run
from model.settings import Training
from model.tokenizer import CaptionTokenizer
from stores.schema import deciding

STATE_VERSION = 4


@dataclass
class Progress:
    """Where training stands."""

    epoch: int = 0  # the epoch that is running or about to start
    position: int = 0  # batches of it that are done
    step: int = 0  # batches done in all
    loss_sum: float = 0.0  # over the pairs of this epoch so far
    seconds: float = 0.0  # spent in this epoch so far
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_rsum: float | None = None

    def next_epoch(self, row: dict[str, Any]) -> None:
        """The epoch has ended; `row` is its line of the history."""
        self.history.append(row)
        self.epoch, self.position, self.loss_sum, self.seconds = self.epoch + 1, 0, 0.0, 0.0


def facts(
    network: RetrievalNetwork,
    pairs: TrainingPairs,
    validation: Split | None,
    recipe: Training,
    *,
    seed: int,
    origin: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything but the epochs that a saved state must agree with for training to go on from it.

    Of the index and the stores what the splits are of: images that are added beside them change nothing.
    """

    def of(split: Split | None) -> Any:
        return split and [split.contents, split.image_ids, split.captions]

    features = {kind: one | {"index_digest": None} for kind, one in _deciding(pairs.features.describe()).items()}
    # How many captions of an image count the splits tell.
    said_by_splits = {"captions_per_image": Training.model_fields["captions_per_image"].default}
    return {
        "network": described(network),
        "origin": dict(origin or {}),
        "features": [features, _some_rows(pairs)],
        "splits": [of(pairs.split), of(validation)],
        "pairs": [pairs.batch_size, pairs.token_drop, pairs.word_augmentation, pairs.seed],
        "vocabulary": pairs.tokenizer.vocabulary,
        "recipe": recipe.model_dump(exclude=Training.WITHOUT_EFFECT | {"epochs"}) | said_by_splits,
        "seed": seed,
    }


#: What those that are not kept with a state are called in messages.
_CALLED = {"features": "the features", "splits": "the images or captions of a split", "vocabulary": "the vocabulary"}
_CALLED |= {"network": "the model", "origin": "the weights that it starts from", "pairs": "how batches are drawn"}


def _kept(given: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as a state keeps them, to say what has changed: of large ones the digest."""
    return {name: value if name in ("recipe", "seed") else digest_json(value) for name, value in given.items()}


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of the facts that were kept is another now."""
    old, new = was["recipe"] | {"seed": was["seed"]}, now["recipe"] | {"seed": now["seed"]}
    settings = [f"{key} was {old.get(key)!r}, is {value!r}" for key, value in new.items() if old.get(key) != value]
    # What batches are follows from the settings.
    return ", ".join(settings or [said for name, said in _CALLED.items() if was[name] != now[name]])


def _deciding(features: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What of the stores' descriptions decides about their rows."""
    return {kind: {**one, "extractor": deciding(one["extractor"])} for kind, one in features.items()}


def _some_rows(pairs: TrainingPairs) -> str:
    """Digest of a few images' features: imported ones may be others though the store says the same of itself."""
    rows = np.unique(pairs.split.image_rows)
    values = pairs.features.rows(rows[:: max(1, len(rows) // 32)])
    return hashlib.sha256(b"".join(values[name].tobytes() for name in sorted(values))).hexdigest()


class SavedState:
    """The state folder of one training, which `facts` tell from others."""

    def __init__(
        self, folder: str | os.PathLike[str], facts: Mapping[str, Any], *, run: str, contents: str = ""
    ) -> None:
        """contents: digest of all features, "" where nobody knows it; with the same ones a finished training is not repeated."""
        self.path, self._contents = Path(folder) / STATE, contents
        self._folder, self._run, self._facts = Path(folder), run, facts
        self._mark = {"version": STATE_VERSION, "fingerprint": digest_json(facts), "facts": _kept(facts)}

    def write(self, network: RetrievalNetwork, optimizer: torch.optim.Optimizer, now: Progress) -> None:
        content = {**self._mark, "model": network.state_dict(), "optimizer": optimizer.state_dict(), "now": asdict(now)}
        with atomic_path(self.path) as temporary:
            torch.save(content, temporary)
        # Only now may the weights that the previous state called best go.
        for path in self._folder.glob(BEST.format(epoch="*")):
            if path != self._best(now):
                path.unlink(missing_ok=True)

    def write_best(self, network: RetrievalNetwork, now: Progress) -> None:
        """The weights of the epoch that `now` calls best."""
        from safetensors.torch import save_file

        with atomic_path(self._best(now)) as temporary:
            save_file({key: value.cpu().contiguous() for key, value in network.state_dict().items()}, temporary)

    def load(
        self, network: RetrievalNetwork, optimizer: torch.optim.Optimizer, recipe: Training, *, validates: bool
    ) -> Progress | None:
        """Go on from the saved state, if there is one of this training or its first epochs; every process reads it."""
        content, stale = None, None
        if self.path.exists():
            try:
                content = torch.load(self.path, map_location="cpu", weights_only=True)
            except Exception as error:  # unpickling raises nearly anything on a broken file
                raise UserError(
                    f"run {self._run}: cannot read the state {self.path}: {error}; remove {self._folder} to start afresh"
                ) from error
            if content.get("version") != STATE_VERSION:
                stale = "was saved by another version of this program"
            else:
                stale = self._other(content) or self._aside(Progress(**content["now"]), recipe, validates=validates)
        now = Progress(**content["now"]) if content and not stale else None
        # Nothing is removed before every process has read.
        found = everyones((now and now.step, bool(stale)))
        if len(set(found)) > 1:
            raise UserError(
                f"run {self._run}: the processes find different states in {self._folder} (steps "
                f"{[step for step, _ in found]}); the folder must lie on a file system that they share"
            )
        if process() == 0:
            remove_leftovers(self._folder)
            (self._folder / FINISHED).unlink(missing_ok=True)
            if stale:
                print(f"{self._run}: the state in {self._folder} {stale}; starting afresh", file=sys.stderr)
                shutil.rmtree(self._folder)
        if now is None:
            return None
        network.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        if process() == 0:
            done = now.epoch == recipe.epochs
            what = (
                "is trained already, on the very data"
                if done
                else f"going on from epoch {now.epoch + 1}, step {now.step}"
            )
            print(f"{self._run}: {what}", file=sys.stderr)
        return now

    def publish(
        self,
        output: str | os.PathLike[str],
        network: RetrievalNetwork,
        tokenizer: CaptionTokenizer,
        now: Progress,
        *,
        config: Mapping[str, Any] | None,
    ) -> None:
        """Training has ended: the run folder gets the weights that are kept; the state stays."""
        from safetensors.torch import load_file

        kept = now.epoch - 1
        if now.best_epoch is not None:
            kept = now.best_epoch
            network.load_state_dict(load_file(self._best(now)))
        recorded = {"run": self._run, **(config or {}), "kept": now.history[kept]}
        save_run(output, network, tokenizer, config=recorded)
        (self._folder / FINISHED).write_text(self._contents, encoding="utf-8")

    def _other(self, content: Mapping[str, Any]) -> str | None:
        """Why a state is of another training than this one; None if it is not. When the rate falls counts once it has."""
        if content["fingerprint"] == self._mark["fingerprint"]:
            return None
        was = content.get("facts")
        if was is None:  # of a state that was saved before they were kept
            return "is of other settings or data"
        now, falls = Progress(**content["now"]), was["recipe"]["lr_decay_epochs"]
        begun = now.epoch + (now.position > 0)
        as_it_was = {**self._facts, "recipe": self._facts["recipe"] | {"lr_decay_epochs": falls}}
        same_rates = [e for e in falls if e < begun] == [
            e for e in self._facts["recipe"]["lr_decay_epochs"] if e < begun
        ]
        if same_rates and digest_json(as_it_was) == content["fingerprint"]:
            return None
        return f"is of other settings or data ({_changes(was, self._mark['facts'])})"

    def _aside(self, now: Progress, recipe: Training, *, validates: bool) -> str | None:
        """Why a state that differs in `epochs` at most is not on the way to this recipe's last one; None if it is.

        Rates and losses depend on step and epoch alone; that the last epoch is always validated does not.
        """
        from safetensors import SafetensorError, safe_open

        if now.epoch > recipe.epochs or (now.epoch == recipe.epochs and now.position):
            return f"has gone beyond epochs: {recipe.epochs}"
        if now.epoch == recipe.epochs and (self._folder / FINISHED).exists() and not self._same_contents():
            return f"is of a finished training of epochs: {recipe.epochs}"
        for row in now.history if validates else ():
            if ("rsum" in row) != recipe.validates_after(row["epoch"]):
                was, does = ("was", "does not") if "rsum" in row else ("was not", "does")
                numbers = f"epochs: {recipe.epochs} with validate_every: {recipe.validate_every}"
                return f"{was} validated after epoch {row['epoch']}, as a training of {numbers} {does}"
        if now.best_epoch is not None:
            try:
                with safe_open(self._best(now), "pt"):  # its length is compared with what it should hold
                    pass
            except (OSError, SafetensorError) as error:
                return f"has lost its best weights ({self._best(now).name}: {error})"
        return None

    def _same_contents(self) -> bool:
        """Whether what the workflow asks for is what has been trained: the fingerprint looks at a few images' features only."""
        return may_reuse() and "" != self._contents == (self._folder / FINISHED).read_text(encoding="utf-8")

    def _best(self, now: Progress) -> Path:
        return self._folder / BEST.format(epoch=now.best_epoch)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a run that was killed while it wrote."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
