"""The curves of all runs and the numbers behind them."""

from __future__ import annotations

import math
from typing import Any

from reporting.artefacts import Artefacts, History
from reporting.charts import Series, line_chart

TITLE = "Training"


def context(artefacts: Artefacts, queries: int, seed: int) -> dict[str, Any]:
    """Curves and numbers; the section is left out where there are no curves."""
    found = training(artefacts)
    return {"training": found, "shown": bool(found["charts"])}


PALETTE_SLOTS = 6
_LOSS = ("loss", "train_loss", "training_loss")
_RATE = ("lr", "learning_rate")
_RSUM = ("rsum", "val_rsum", "rSum", "validation_rsum")


TITLES = ("Training loss", "rSum on the validation split", "Learning rate at the end of each epoch")


def training(artefacts: Artefacts) -> dict[str, Any]:
    """The curves of all runs and, for those who cannot see them, the numbers behind."""
    trained = [name for name, run in artefacts.section("runs").items() if not run.get("checkpoint")]
    histories = [history for run in trained if (history := artefacts.history(run))]
    slots = {history.run: slot % PALETTE_SLOTS for slot, history in enumerate(histories)}
    charts = []
    for names, title, best in zip((_LOSS, _RSUM, _RATE), TITLES, ("", "max", ""), strict=True):
        series = [
            Series(history.run, _epochs(history), values, slots[history.run])
            for history in histories
            if (values := history.column(*names)) is not None
        ]
        if svg := line_chart(series, title=title, x_label="epoch", unit="", best=best):
            charts.append({"title": title, "svg": svg, "best": bool(best)})
    tables = [
        {"run": history.run, "columns": list(history.columns), "rows": _history_rows(history)}
        for history in histories
        if history.columns
    ]
    return {"charts": charts, "legend": list(slots.items()), "tables": tables}


def _epochs(history: History) -> list[float]:
    epochs = history.column("epoch")
    return epochs if epochs is not None else list(range(1, len(next(iter(history.columns.values()), [])) + 1))


def _history_rows(history: History) -> list[list[str]]:
    columns = list(history.columns.values())
    return [[f"{value:.5g}" if math.isfinite(value) else "" for value in row] for row in zip(*columns, strict=False)]
