"""Where the demo's time goes: what processes note, and how it is summed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.demo import NOTES, OTHERS, WHOLE, by_command, noting, rows_of


def test_every_process_notes_what_it_used(tmp_path):
    code = "import os; os.fork() or os._exit(0); sum(range(3_000_000))"
    subprocess.run([sys.executable, "-c", code], env=noting(tmp_path), check=True)
    ((cpu, arguments),) = [line.split("\t") for line in (tmp_path / NOTES).read_text().splitlines()]
    assert 0.01 < float(cpu) < 10 and arguments == f"-c {code}"


def test_processes_are_summed_by_what_they_do():
    notes = (
        "2.5\t-m extractors.run --feature grids --images a.parquet\n1.5\t-m extractors.run --feature grids --images b\n"
        "0.5\t-m catalog.run index --dataset d\n3\t-m snakemake --cores 2\n0.25\t-c pass\n"
    )
    found = by_command(notes)
    assert found == {
        "extractors.run grids": (2, 4.0),
        "catalog.run index": (1, 0.5),
        "snakemake": (1, 3.0),
        "python": (1, 0.25),
    }
    rows = rows_of(found | {OTHERS: (0, 0.25), WHOLE: (5, 8.0)}, 9.0, {"region on t": 501.0})
    assert [row["what"] for row in rows][:3] == [WHOLE, "extractors.run grids", "snakemake"]
    assert rows[1]["note"] == "2 processes, 50 % of the CPU time"
    assert rows[-2]["ours"] == pytest.approx(9.0) and rows[-1] == {
        "what": "rSum of region on t",
        "ours": 501.0,
        "unit": "",
    }
