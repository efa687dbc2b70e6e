"""A further recall costs one line: `core.scores.CUTOFFS`."""

from __future__ import annotations

import json
import subprocess
import sys

FURTHER = """
import sys, types
from pathlib import Path

path = Path("core/scores.py")
source, changed = path.read_text(), path.read_text().replace("CUTOFFS = (1, 5, 10)", "CUTOFFS = (1, 5, 10, 20)")
assert source != changed
import core
core.scores = sys.modules["core.scores"] = types.ModuleType("core.scores")
exec(compile(changed, str(path), "exec"), vars(core.scores))

import json
import numpy as np
from evaluation.embeddings import Embeddings
from evaluation.metrics import all_metrics
from evaluation.table import FORMATTERS
from evaluation.tables.blocks import configured_entries
from reporting.artefacts import Artefacts
from reporting.report import build, render

rows, owner = np.random.default_rng(0).normal(size=(60, 8)).astype("f4"), np.arange(60, dtype="i4")
metrics = all_metrics(
    Embeddings(rows, rows[::-1].copy(), owner, owner.astype(str), owner.astype(str)), folds=2, seed=0, resamples=5
)
results = Path(sys.argv[1])
file = results / "evaluation" / "one" / "held_out" / "metrics.json"
file.parent.mkdir(parents=True)
file.write_text(json.dumps(metrics | {"images": 5000}))  # as many as COCO has: published results are shown too
config = {"runs": {"one": {}}, "testsets": {"held_out": {"benchmark": "coco"}}}
(results / "page.html").write_text(render(build(Artefacts(results, config), queries=2, seed=0)))
for name, formatter in FORMATTERS.items():
    (results / name).write_text(formatter(configured_entries(results, config)))
"""


def test_a_further_recall_is_computed_written_and_shown_everywhere(tmp_path, repository):
    done = subprocess.run(
        [sys.executable, "-c", FURTHER, str(tmp_path)], cwd=repository, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "evaluation/one/held_out/metrics.json").read_text())
    blocks = [metrics, metrics["folds"], metrics["control"], metrics["chance"]]
    for block in [*blocks, metrics["intervals"]]:
        assert "r20" in block["i2t"] and "r20" in block["t2i"]
    for block in blocks:  # rSum stays the field's
        six = [block[direction][recall] for direction in ("i2t", "t2i") for recall in ("r1", "r5", "r10")]
        assert abs(block["rsum"] - sum(six)) < 1e-9
    shown = f"{metrics['t2i']['r20']:.1f}"
    for name in ("text", "markdown", "latex"):
        table = (tmp_path / name).read_text()
        assert table.count("R@20") >= 2 and shown in table and "434.3" in table, name
    assert "t2i_r20_low" in (tmp_path / "csv").read_text()
    assert (tmp_path / "page.html").read_text().count(">R@20</th>") == 2, "a heading for each direction"
