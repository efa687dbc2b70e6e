"""Results that were copied without their times get them back, and only they."""

import os
import shutil
from pathlib import Path

import pytest

from rules import times as module
from rules.records import read_record, write_record
from rules.times import forget_records, note_times, restore_times

#: In the order in which jobs made them, a second apart.
MADE = ("a/index.parquet", "a/scenes/1.png", "runs/r/model.safetensors", "evaluation/embeddings.zarr/c/0")
NAMED = (MADE[0], "a/scenes", MADE[2], "evaluation/embeddings.zarr", "report/not_there.html", "../elsewhere")


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for number, (name, named) in enumerate(zip(MADE, NAMED, strict=False)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        stamp = folder / named
        if stamp.is_dir():
            (stamp := stamp / ".snakemake_timestamp").touch()
        os.utime(stamp, ns=(0, 10**18 + number * 10**9 + 7))
    note_times(str(folder), [str(folder / name) for name in NAMED])
    return folder


def copied(results: Path, name: str = "copy") -> Path:
    """The same with the times of a moment, the last one made the oldest."""
    copy = results.with_name(name)
    shutil.copytree(results, copy, copy_function=shutil.copyfile)
    for age, path in enumerate(sorted(copy.rglob("*"))):
        os.utime(path, (age, age))
    return copy


def seconds(results: Path) -> list[int]:
    """Of what jobs made, since the first."""
    paths = [results / name for name in NAMED[:4]]
    carriers = [path / ".snakemake_timestamp" if path.is_dir() else path for path in paths]
    return [(path.stat().st_mtime_ns - 10**18) // 10**9 for path in carriers]


def test_a_copy_gets_its_times_back(results):
    copy = copied(results)
    assert seconds(copy) != [0, 1, 2, 3]
    restore_times(str(copy))
    assert seconds(copy) == [0, 1, 2, 3]
    for path in (results.with_name("elsewhere"), results / "report"):
        assert not path.exists()


def test_what_is_missing_is_no_other_content(results):
    copy = copied(results)
    shutil.rmtree(copy / "runs")
    restore_times(str(copy))
    (copy / "runs/r").mkdir(parents=True)
    (copy / MADE[2]).write_text("made again")
    assert [second for number, second in enumerate(seconds(copy)) if number != 2] == [0, 1, 3]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("huge", [False, True])
def test_other_content_keeps_all_times(results, which, huge, monkeypatch):
    """Jobs have run since, of a workflow that was killed: what they have read nobody knows."""
    if huge:
        monkeypatch.setattr(module, "HUGE", 8)
        note_times(str(results), [])
    copy = copied(results)
    before = copy / MADE[which]
    before.write_text(before.read_text().upper())  # as many bytes
    times = seconds(copy)
    restore_times(str(copy))
    assert seconds(copy) == times
    before.write_text(MADE[which])  # as it was once, but who has read the other?
    times = seconds(copy)
    restore_times(str(copy))
    assert seconds(copy) == times


def test_whole_seconds_are_times_enough(results, monkeypatch):
    for name in NAMED[:4]:
        path = results / name
        path = path / ".snakemake_timestamp" if path.is_dir() else path
        second = path.stat().st_mtime_ns // 10**9 * 10**9
        os.utime(path, ns=(second, second))
    monkeypatch.setattr(module, "_digest", lambda path: pytest.fail(f"{path} was read"))
    restore_times(str(results))


def test_only_what_is_new_is_read(results, monkeypatch):
    read, digest = [], module._digest
    monkeypatch.setattr(module, "_digest", lambda path: read.append(os.path.relpath(path, results)) or digest(path))
    (results / "tables.csv").write_text("x")
    (results / MADE[0]).write_text("another index")
    note_times(str(results), [str(results / name) for name in (*NAMED, "tables.csv")])
    assert read == [MADE[0], "tables.csv"]


@pytest.fixture
def remembered(results, monkeypatch):
    """What Snakemake remembers of one of the files, which is noted."""
    monkeypatch.chdir(results.parent)
    record = {
        "rule": "train_model",
        "input": ["results/a/index.parquet"],
        "params": ["'results'", '{"results": "results"}', "myresults/x"],
    }
    write_record(f"results/{MADE[2]}", record)
    note_times("results", [f"results/{name}" for name in NAMED])
    return record


@pytest.mark.parametrize("copy", [False, True])
def test_what_snakemake_remembers_comes_back(results, remembered, copy):
    """Its own folder was cleaned up, stayed behind, or is of other results."""
    for other in (None, remembered | {"params": ["'other'"]}):
        shutil.rmtree(results.parent / ".snakemake")
        if other:
            write_record(f"results/{MADE[2]}", other)
        if copy:
            copied(results, "moved").rename(results.parent / "new")
            shutil.rmtree(results)
            (results.parent / "new").rename(results)
        restore_times("results")
        assert read_record(f"results/{MADE[2]}") == remembered
        assert (results.parent / ".snakemake/incomplete").is_dir()


def test_in_a_folder_of_another_name_too(results, remembered):
    results.rename(results.parent / "old (1)")
    restore_times("old (1)")
    found = read_record(f"old (1)/{MADE[2]}")
    assert found["input"] == ["old (1)/a/index.parquet"]
    assert found["params"] == ["'old (1)'", '{"results": "old (1)"}', "myresults/x"]
    note_times("old (1)", [])
    shutil.rmtree(results.parent / ".snakemake")
    (results.parent / "old (1)").rename(results)
    restore_times("results")
    assert read_record(f"results/{MADE[2]}") == remembered


def test_what_was_made_anew_or_is_to_be_forgotten_does_not_come_back(results, remembered):
    notes = (results / "times.json").stat()
    for none in ([], ["results/none"]):
        forget_records("results", none)
    assert (results / "times.json").stat() == notes, "nothing to forget, nothing to write"
    forget_records("results", [f"results/{MADE[2]}", "results/none"])
    shutil.rmtree(results.parent / ".snakemake")
    restore_times("results")
    assert read_record(f"results/{MADE[2]}") is None
    write_record(f"results/{MADE[2]}", remembered)
    note_times("results", [f"results/{MADE[2]}"])
    newer = remembered | {"rule": "other"}
    write_record(f"results/{MADE[2]}", newer)
    (results / MADE[2]).write_text("made again by a workflow that was killed")
    restore_times("results")
    assert read_record(f"results/{MADE[2]}") == newer


def test_records_lie_where_snakemake_looks_for_them(tmp_path, monkeypatch):
    from snakemake.persistence.file import FilePersistence

    monkeypatch.chdir(tmp_path)
    for path in ("results/a.json", "results/" + "long/" * 120 + "a.json", "résultats/x"):
        write_record(path, {"rule": "r", "params": ["'1'"]})
        found = FilePersistence()._read_record(path)
        assert (found.rule, found.params) == ("r", ["'1'"]) and read_record(path) == {"rule": "r", "params": ["'1'"]}


def test_a_note_that_cannot_be_read_counts_as_none(results):
    for content in ("", "[]", '{"version": 99, "files": {}}', '{"version": 1}'):
        (results / "times.json").write_text(content)
        times = seconds(copy := copied(results, f"copy{len(content)}"))
        restore_times(str(copy))
        assert seconds(copy) == times
