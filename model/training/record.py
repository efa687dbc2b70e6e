"""What a run folder tells of its training: `history.csv`, TensorBoard, and a line an epoch in the log."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from core.files import atomic_path
from core.layout import HISTORY
from core.scores import DIRECTIONS, METRICS
from model.parallel import processes
from model.training.state import Progress, remove_leftovers

TENSORBOARD = "tensorboard"
HISTORY_COLUMNS = (
    *("epoch", "step", "lr", "train_loss", "seconds"),
    *(f"{way}_{key}" for way in DIRECTIONS for key in METRICS),
    "rsum",
)
_LOG_STEPS = 20  # between TensorBoard points of the training loss


class Record:
    """Written by process 0 alone. `fresh`: training starts from the beginning, so what is there is of another."""

    def __init__(self, output: str | os.PathLike[str], now: Progress, epochs: int, *, fresh: bool, run: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._output, self._epochs, self._run = Path(output), epochs, run
        if processes() > 1:
            print(f"{run}: {processes()} processes train as one", file=sys.stderr)
        if fresh:
            shutil.rmtree(self._output / TENSORBOARD, ignore_errors=True)
        self._writer = SummaryWriter(str(self._output / TENSORBOARD), purge_step=now.step + 1)
        remove_leftovers(self._output)
        if now.history:  # killed before the last epoch's line was written
            self._write_history(now)

    def step(self, now: Progress, loss: float, rate: float) -> None:
        """A step has been done; `loss` is of a pair."""
        if now.step % _LOG_STEPS == 0:
            self._writer.add_scalar("train/loss", loss, now.step)
            self._writer.add_scalar("train/lr", rate, now.step)

    def epoch(self, now: Progress) -> None:
        """An epoch has ended."""
        self._write_history(now)
        row = now.history[-1]
        for key, value in row.items():
            if key not in ("epoch", "step"):
                self._writer.add_scalar(f"epoch/{key}", value, now.step)
        self._writer.flush()
        print(self._line(row, now), file=sys.stderr)

    def close(self) -> None:
        """Training has ended, or is left."""
        self._writer.close()

    def _write_history(self, now: Progress) -> None:
        path = self._output / HISTORY
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, HISTORY_COLUMNS, restval="")
            table.writeheader()
            table.writerows(now.history)

    def _line(self, row: dict[str, Any], now: Progress) -> str:
        line = f"{self._run}: epoch {row['epoch']}/{self._epochs}: loss {row['train_loss']:.4f}, {row['seconds']:.1f} s"
        if "rsum" in row:
            line += f", rSum {row['rsum']:.1f} (best {now.best_rsum:.1f} in epoch {now.best_epoch + 1})"
        return line
