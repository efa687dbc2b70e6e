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
from model.build import described
from model.data import Split, TrainingPairs
from model.network import RetrievalNetwork
from model.parallel import everyones, process
from model.runs import save_run
from model.settings import Training
from model.tokenizer import CaptionTokenizer

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


def fingerprint(
    network: RetrievalNetwork,
    pairs: TrainingPairs,
    validation: Split | None,
    recipe: Training,
    *,
    seed: int,
    origin: Mapping[str, Any] | None,
) -> str:
    """Digest of everything but the epochs that a saved state must agree with for training to go on from it."""

    def of(split: Split | None) -> Any:
        return split and [split.index_digest, split.image_ids, split.captions]

    return digest_json(
        {
            "network": described(network),
            "origin": dict(origin or {}),
            "features": [pairs.features.describe(), _some_rows(pairs)],
            "splits": [of(pairs.split), of(validation)],
            "pairs": [pairs.batch_size, pairs.token_drop, pairs.word_augmentation, pairs.seed],
            "vocabulary": pairs.tokenizer.vocabulary,
            "recipe": recipe.model_dump(exclude=Training.WITHOUT_EFFECT | {"epochs"}),
            "seed": seed,
        }
    )


def _some_rows(pairs: TrainingPairs) -> str:
    """Digest of a few images' features: imported ones may be others though the store says the same of itself."""
    rows = np.unique(pairs.split.image_rows)
    values = pairs.features.rows(rows[:: max(1, len(rows) // 32)])
    return hashlib.sha256(b"".join(values[name].tobytes() for name in sorted(values))).hexdigest()


class SavedState:
    """The state folder of one training, which `fingerprint` tells from others."""

    def __init__(self, folder: str | os.PathLike[str], fingerprint: str, *, run: str) -> None:
        self.path = Path(folder) / STATE
        self._folder, self._run = Path(folder), run
        self._mark = {"version": STATE_VERSION, "fingerprint": fingerprint}

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
            elif content["fingerprint"] != self._mark["fingerprint"]:
                stale = "is of other settings or data"
            else:
                stale = self._aside(Progress(**content["now"]), recipe, validates=validates)
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
            print(f"{self._run}: going on from epoch {now.epoch + 1}, step {now.step}", file=sys.stderr)
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
        (self._folder / FINISHED).touch()

    def _aside(self, now: Progress, recipe: Training, *, validates: bool) -> str | None:
        """Why a state that differs in `epochs` at most is not on the way to this recipe's last one; None if it is.

        Rates and losses depend on step and epoch alone; that the last epoch is always validated does not.
        """
        from safetensors import SafetensorError, safe_open

        if now.epoch > recipe.epochs or (now.epoch == recipe.epochs and now.position):
            return f"has gone beyond epochs: {recipe.epochs}"
        if now.epoch == recipe.epochs and (self._folder / FINISHED).exists():
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

    def _best(self, now: Progress) -> Path:
        return self._folder / BEST.format(epoch=now.best_epoch)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a run that was killed while it wrote."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
