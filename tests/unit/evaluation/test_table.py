from __future__ import annotations

import csv
import json
import re
import subprocess
import sys

import pytest

from core.console import UserError
from evaluation import table as module
from evaluation.published import IMAGES, PUBLISHED
from evaluation.tables import latex, markdown, spreadsheet
from evaluation.tables import text as terminal
from evaluation.tables.blocks import LAYOUTS, configured_entries, found_entries


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
    text = terminal.render(configured_entries(results, CONFIG))
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
    assert "both (ensemble)" in terminal.render(entries)


def test_command_line(results, capsys):
    module.main(["--results", str(results), "--config", json.dumps(CONFIG)])
    configured = capsys.readouterr().out
    assert "not computed" in configured
    module.main(["--results", str(results)])
    found = capsys.readouterr().out
    assert "region" in found and "not computed" not in found
    module.main(list(map(str, sorted(results.glob("*/*/*/metrics.json")))))
    assert capsys.readouterr().out == found


def bounds(scores, width=2.0):
    around = {d: {k: [v - width, v + width] for k, v in scores[d].items()} for d in scores if d in ("i2t", "t2i")}
    return {"level": 0.95, "resamples": 10, "seed": 0, **around, "rsum": [scores["rsum"] - 9, scores["rsum"] + 9]}


@pytest.fixture
def coco(tmp_path):
    """A run and an ensemble on COCO's test set: 5K, five folds of 1K, CxC without and with its inner retrievals, ECCV."""
    precise = {"map_at_r": 21.25, "r_precision": 31.25, "r1": 71.25}
    recall = {"r1": 44.0, "r5": 74.0, "r10": 84.0, "medr": 2.0, "meanr": 8.0}
    for number, folder in enumerate(("evaluation/my_run", "ensembles/both")):
        fold = {"count": 5, "images_per_fold": 1000, "images_left_out": 0, **scores(60 + number)}
        cxc = scores(45 + number) | ({} if number else {"i2i": recall, "t2t": recall | {"r1": 43.0}})
        content = metrics(
            41 + number,
            folds=fold | {"intervals": bounds(fold)},
            intervals=bounds(scores(41 + number)),
            protocols={"cxc": cxc, "eccv": {"i2t": precise, "t2i": precise | {"r1": 70.0}}},
        ) | {"images": 5000, "captions": 25000}
        path = tmp_path / folder / "coco" / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    return tmp_path


def coco_entries(coco, benchmark="coco"):
    systems = {"runs": {"my_run": {}}, "ensembles": {"both": {}}}
    return configured_entries(coco, systems | {"testsets": {"coco": {"benchmark": benchmark}}})


def test_the_text_table_shows_intervals_and_protocols(coco):
    text = terminal.render(coco_entries(coco))
    assert row(text, "my_run").endswith("340.8  [331.8, 349.8]")
    lines = text.splitlines()
    below = lines[lines.index(row(text, "my_run")) + 1 :]
    assert below[0].split()[-3:] == ["454.8", "[445.8,", "463.8]"]
    assert below[1].split() == ["CxC", "45.0", "65.0", "75.0", "39.8", "65.0", "75.0", "364.8"]
    assert below[2].split()[-6:] == ["44.0", "74.0", "84.0", "43.0", "74.0", "84.0"]
    assert below[3].split()[-6:] == ["21.2", "31.2", "71.2", "21.2", "31.2", "70.0"]
    assert "interval" in lines[1]


def test_without_intervals_no_column_is_named(results):
    assert "interval" not in terminal.render(configured_entries(results, CONFIG))


def test_published_results_are_shown_on_their_benchmark_alone(coco, results):
    text = terminal.render(coco_entries(coco))
    assert row(text, "VSE∞ region (published)").split()[-1] == "434.3"
    assert "538.0" in text, "3SHNet's published folds"
    formats = (terminal, markdown, latex)
    assert all("Equal scores count as misses" in one.render(coco_entries(coco)) for one in formats)
    for other in (coco_entries(coco, None), configured_entries(results, CONFIG)):
        assert not any("published" in one.render(other) for one in formats)
    # 1,000 images are needed to compare with Flickr30K, and five folds of 1,000 for COCO 1K.
    assert "published" not in terminal.render(coco_entries(coco, "flickr30k"))
    entries = coco_entries(coco)
    for entry in entries:
        entry.metrics["folds"]["count"] = 4
    assert "538.0" not in terminal.render(entries) and "434.3" in terminal.render(entries)


def test_published_rows_add_up():
    for published in PUBLISHED:
        if len(published.values) == 7 and None not in published.values:
            # Seven numbers rounded one by one.
            assert sum(published.values[:6]) == pytest.approx(published.values[6], abs=0.35), published
        assert published.source and published.benchmark in IMAGES
        assert len(published.values) == 6 + LAYOUTS[published.block].rsum


def test_markdown(coco):
    text = markdown.render(coco_entries(coco))
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert titles[:2] == [
        "### MS-COCO (coco): 5000 images, 25000 captions",
        "### MS-COCO (coco): mean of 5 folds of 1000 images",
    ]
    assert len(titles) == 5
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("| |")]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, "every line has all columns"
    assert "| my_run | 41.0 | 61.0 | 71.0 | 3.0 | 9.5 | 35.8 | 61.0 | 71.0 | 3.0 | 9.5 | 340.8 |" in tables[0]
    assert tables[0][-1].startswith("| 95 % interval | [40.0, 44.0] |")
    assert "| both (ensemble) | 42.0 |" in "\n".join(tables[0])
    numbers = set(re.findall(r"published (\[\d\])", text))
    assert numbers == set(re.findall(r"^(\[\d\]) \S", text, re.M)), "every source is listed"


def test_latex(coco):
    text = latex.render(coco_entries(coco))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 5
    assert r"my\_run & 41.0 & 61.0 & 71.0 & 3.0 & 9.5 & 35.8 & 61.0 & 71.0 & 3.0 & 9.5 & 340.8 \\" in text
    assert r"VSE$\infty$ grid (published [" in text and r"\multicolumn{5}{c}{image $\to$ text}" in text
    for part in text.split(r"\begin{tabular}")[1:]:
        columns = 1 + int(re.match(r"\{l\*\{(\d+)\}", part).group(1))
        rows = [line for line in part.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert len(rows) >= 3 and {line.count("&") for line in rows} == {columns - 1}
    assert not re.search(r"(?<!\\)[_#]", re.sub(r"^%.*$", "", text, flags=re.M))


def test_csv(coco):
    rows = list(csv.DictReader(spreadsheet.render(coco_entries(coco)).splitlines()))
    mine = {r["protocol"]: r for r in rows if r["system"] == "my_run" and r["kind"] == "run"}
    assert set(mine) == {"recall", "folds", "cxc", "cxc_intra", "eccv"}
    recall = mine["recall"]
    assert [recall[key] for key in ("t2i_medr", "i2t_meanr", "i2t_meanr_high")] == ["3.0", "9.5", "11.5"]
    assert [float(recall[key]) for key in ("i2t_r1", "t2i_r1_low", "rsum", "rsum_high")] == [41, 33.75, 340.75, 349.75]
    assert mine["cxc_intra"]["i2i_r1"] == "44.0" and mine["cxc_intra"]["i2t_r1"] == ""
    assert mine["eccv"]["t2i_map_at_r"] == "21.25"
    published = [r for r in rows if r["kind"] == "published"]
    assert {r["protocol"] for r in published} == {"recall", "folds", "cxc", "cxc_intra"}
    assert all(r["source"] for r in published) and not any(r["source"] for r in rows if r not in published)
    assert {r["kind"] for r in rows} == {"published", "run", "ensemble", "chance"}


def test_files_are_written_by_suffix(coco, capsys):
    config = json.dumps({"runs": {"my_run": {}}, "testsets": {"coco": {"benchmark": "flickr30k"}}})
    out = [str(coco / "tables" / f"results.{suffix}") for suffix in ("csv", "md", "tex", "txt")]
    module.main(["--results", str(coco), "--config", config, "--out", *out])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no published results are shown for coco: it has 5000 images, Flickr30K's test set has 1000" in captured.err
    starts = [open(path, encoding="utf-8").readline() for path in out]
    assert starts[0].startswith("testset,protocol,system") and starts[1].startswith("### Flickr30K (coco)")
    assert starts[2].startswith("% needs") and "image -> text" in starts[3]
    for arguments in (["--format", "latex"], ["--format", "latex", "--out", str(coco / "x.unknown")]):
        module.main(["--results", str(coco), *arguments])
    assert (coco / "x.unknown").read_text() == capsys.readouterr().out
    with pytest.raises(UserError, match="x.xls: give it one of the suffixes .csv, .md, .tex, .txt"):
        module.main(["--results", str(coco), "--out", "x.xls"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --results DIR or"),
        (["--results", "{empty}"], "no metrics under"),
        (["{broken}"], "is not a metrics file"),
        (["--results", "{empty}", "--config", "[1]"], "neither inline JSON nor a readable file"),
    ],
)
def test_wrong_use(tmp_path, arguments, message):
    (tmp_path / "broken.json").write_text('{"i2t": {}}')
    names = {"empty": tmp_path / "empty", "broken": tmp_path / "broken.json"}
    with pytest.raises(UserError, match=message):
        module.main([argument.format(**names) for argument in arguments])


def test_the_table_starts_without_torch():
    code = "import sys, evaluation.table; sys.exit(bool({'torch', 'zarr', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
