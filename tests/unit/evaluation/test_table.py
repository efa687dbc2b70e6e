from __future__ import annotations

import json
import subprocess
import sys

import pytest

from console import UserError
from evaluation import table as module
from evaluation.table import configured_entries, format_table, found_entries


def scores(base):
    recalls = {"r1": base, "r5": base + 20, "r10": base + 30, "medr": 3.0, "meanr": 9.5}
    return {"i2t": recalls, "t2i": {**recalls, "r1": base - 5.25}, "rsum": 6 * base + 94.75}


def metrics(base, **more):
    return scores(base) | {"images": 100, "captions": 500, "protocol": "standard", "chance": scores(6)} | more


@pytest.fixture
def results(tmp_path):
    files = {
        "evaluation/region/scenes_test": metrics(
            40, folds={"count": 5, "images_per_fold": 20, "images_left_out": 0, **scores(60)}, control=scores(7)
        ),
        "evaluation/grid/scenes_test": metrics(35),
        "ensembles/both/scenes_test": metrics(50, runs=["region", "grid"]),
    }
    for folder, content in files.items():
        path = tmp_path / folder / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    return tmp_path


CONFIG = {
    "runs": {"region": {}, "grid": {}},
    "ensembles": {"both": {"runs": ["region", "grid"]}},
    "testsets": {"scenes_test": {}, "other": {}},
}


def row(text, start):
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def test_configured_table(results):
    text = format_table(configured_entries(results, CONFIG))
    assert "scenes_test: 100 images, 500 captions" in text
    assert row(text, "region").split()[1:] == ["40.0", "60.0", "70.0", "34.8", "60.0", "70.0", "334.8"]
    assert row(text, "mean of 5 folds of 20 images").split()[-1] == "454.8"
    assert row(text, "both (ensemble)").split()[-1] == "394.8"
    assert row(text, "control: region, images shuffled").split()[-1] == "136.8"
    assert len([line for line in text.splitlines() if line.strip().startswith("chance")]) == 1
    # The other test set has not been scored: it is named, not hidden.
    assert text.count("not computed") == 3
    assert len({len(line) for line in text.splitlines() if line.endswith((".8", ".7"))}) == 1


def test_found_table_groups_by_test_set(results):
    entries = found_entries(sorted(results.glob("*/*/*/metrics.json")))
    assert [(entry.system, entry.ensemble) for entry in entries] == [("grid", False), ("region", False), ("both", True)]
    assert "both (ensemble)" in format_table(entries)


def test_command_line(results, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prog", "--results", str(results), "--config", json.dumps(CONFIG)])
    module.main()
    configured = capsys.readouterr().out
    assert "not computed" in configured
    monkeypatch.setattr(sys, "argv", ["prog", "--results", str(results)])
    module.main()
    found = capsys.readouterr().out
    assert "region" in found and "not computed" not in found
    monkeypatch.setattr(sys, "argv", ["prog", *map(str, sorted(results.glob("*/*/*/metrics.json")))])
    module.main()
    assert capsys.readouterr().out == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --results DIR or"),
        (["--results", "{empty}"], "no metrics under"),
        (["{broken}"], "is not a metrics file"),
        (["--results", "{empty}", "--config", "[1]"], "neither inline JSON nor a readable file"),
    ],
)
def test_wrong_use(tmp_path, monkeypatch, arguments, message):
    (tmp_path / "broken.json").write_text('{"i2t": {}}')
    names = {"empty": tmp_path / "empty", "broken": tmp_path / "broken.json"}
    monkeypatch.setattr(sys, "argv", ["prog", *(argument.format(**names) for argument in arguments)])
    with pytest.raises(UserError, match=message):
        module.main()


def test_the_table_starts_without_torch():
    code = "import sys, evaluation.table; sys.exit(bool({'torch', 'zarr', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
