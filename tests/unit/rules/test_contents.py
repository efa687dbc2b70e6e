"""Content decides: a replaced file is noticed whatever its time, a touched one is not; settings without effect make nothing again."""

import json
import os
import shutil
from types import SimpleNamespace as W

import pytest
import yaml

from catalog.files import folder_state
from catalog.run import main
from core import remembered
from core.machine import IMAGES_ALONE
from rules import contents as module
from rules.contents import contents
from rules.plan import Plan
from settings import load_settings


@pytest.fixture(autouse=True)
def folder(working_folder):
    new_process()
    return working_folder


def new_process():
    """Forgets what a process remembers."""
    module._file.cache_clear(), remembered._known.cache_clear()


@pytest.mark.parametrize("large", [False, True])
def test_an_older_file_of_other_content_is_noticed_and_a_touched_one_is_not(tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr(module, "_LARGE", 1)
    (tmp_path / ".snakemake").mkdir()
    file = tmp_path / "captions.csv"
    file.write_text("a,b")
    before = contents(["captions.csv"])
    os.utime(file, (1, 1))
    assert contents(["captions.csv"]) == before
    (tmp_path / "new").write_text("a,c")
    os.utime(tmp_path / "new", (1, 1))
    os.replace(tmp_path / "new", file)
    assert contents(["captions.csv"]) != before
    assert (tmp_path / remembered.REMEMBERED).exists() == large
    file.unlink()
    assert contents(["captions.csv"]) not in (before, "") and contents([]) == ""


def test_a_large_file_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LARGE", 1)
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / "x.npy").write_bytes(b"12345")
    first = contents(["x.npy"])
    new_process()
    monkeypatch.setattr(module, "digest_file", None)
    assert contents(["x.npy"]) == first
    for damaged in ("damaged", "[]", json.dumps({str(tmp_path / "x.npy"): 1})):
        (tmp_path / remembered.REMEMBERED).write_text(damaged)
        new_process()
        with pytest.raises(TypeError):
            contents(["x.npy"])


@pytest.mark.parametrize("kept", [True, False, "read-only"])
def test_the_files_of_a_folder_are_read_once(tmp_path, monkeypatch, kept):
    """By the next process too, where there is a place to keep that and it can be written."""
    (tmp_path / "npz").mkdir()
    for name in ("a", "b"):
        (tmp_path / "npz" / f"{name}.npz").write_text(name)
    if kept:
        (tmp_path / ".snakemake").mkdir()
    if kept == "read-only":
        monkeypatch.setattr(remembered, "atomic_path", lambda path: open("/proc/nobody/may", "w"))
    read = []
    monkeypatch.setattr("catalog.files.digest_file", lambda path: read.append(path) or "x")
    first = contents(["npz"])
    assert contents(["npz"]) == first and read == ["npz/a.npz", "npz/b.npz"]
    new_process()
    assert contents(["npz"]) == first and len(read) == (2 if kept is True else 4)
    (tmp_path / "npz" / "a.npz").write_text("c")
    assert contents(["npz"]) == first and len(read) == (4 if kept is True else 6), (
        "the facts changed, what was read did not"
    )


def test_of_a_huge_file_samples_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HUGE", 1 << 20)
    content = bytearray(os.urandom(1 << 21))
    (tmp_path / "x.npy").write_bytes(content)
    os.utime(tmp_path / "x.npy", (5, 5))
    first = contents(["x.npy"])
    content[:] = os.urandom(1 << 21)
    (tmp_path / "x.npy").write_bytes(content)
    os.utime(tmp_path / "x.npy", (5, 5))
    assert contents(["x.npy"]) != first


def test_a_replaced_file_of_a_folder_is_noticed(tmp_path):
    (tmp_path / "npz" / "below").mkdir(parents=True)
    (tmp_path / "npz" / "below" / "a.npz").write_bytes(b"1")
    before = contents(["npz"])
    assert contents(["npz"]) == before
    path = tmp_path / "npz" / "below" / "a.npz"
    os.utime(path, (5, 5))
    assert contents(["npz"]) == before  # touched
    path.write_bytes(b"2")
    os.utime(path, (5, 5))
    assert contents(["npz"]) != before  # replaced, with the size and the time of before
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "npz" / "linked").symlink_to(tmp_path / "elsewhere")
    before = contents(["npz"])
    (tmp_path / "elsewhere" / "b.npz").write_bytes(b"1")
    assert contents(["npz"]) != before


def write(path, content, time):
    path.write_bytes(content)
    os.utime(path, (time, time))


def test_a_large_folder_is_told_by_samples_wherever_it_lies_and_by_all_bytes_where_a_time_moved(tmp_path, monkeypatch):
    monkeypatch.setattr("catalog.files._READ_WHOLE", 1)
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / "npz").mkdir()
    body = os.urandom(1 << 16)
    file = tmp_path / "npz" / "a.npz"
    write(file, body, 5), write(tmp_path / "npz" / "b.npz", b"small", 5)
    before = folder_state("npz", images_only=False)
    shutil.copytree(tmp_path / "npz", tmp_path / "copy")  # later times, another place
    assert folder_state("copy", images_only=False) == folder_state(f"{tmp_path}/copy/", images_only=False) == before
    os.chmod(file, 0o600), os.link(file, tmp_path / "linked")  # what changes facts, but no byte
    new_process()
    assert folder_state("npz", images_only=False) == before
    # Replaced, with the size and the time of before.
    write(file, body[::-1], 5)
    new_process()
    assert folder_state("npz", images_only=False) != before
    write(file, body, 5)
    assert folder_state("npz", images_only=False) == before
    # Between the samples, at another time.
    other = body[:9000] + b"other" + body[9005:]
    write(file, other, 6)
    new_process()
    states = [before, folder_state("npz", images_only=False)]
    write(file, body, 7)
    states.append(folder_state("npz", images_only=False))
    write(file, other, 8)
    assert len(set(states)) == 3 and folder_state("npz", images_only=False) == states[1]
    file.unlink(), file.symlink_to("nowhere")
    assert folder_state("npz", images_only=False) not in states


def test_a_large_folder_whose_times_all_moved_was_copied(tmp_path, monkeypatch):
    """Reading tens of gigabytes for it would take minutes."""
    monkeypatch.setattr("catalog.files._READ_WHOLE", 1)
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / "npz").mkdir()
    files = [tmp_path / "npz" / name for name in ("a.npz", "b.npz", "c.npz")]
    for file in files:
        write(file, os.urandom(1 << 15), 5)
    before = contents(["npz"])
    with monkeypatch.context() as patch:
        patch.setattr("core.samples.digest_file", None)
        for time in (6, 7):
            for file in files:
                os.utime(file, (time, time))
            new_process()
            assert contents(["npz"]) == before
    for file in files:
        os.utime(file, (8, 8))
    write(files[0], os.urandom(1 << 15), 8)
    new_process()
    assert contents(["npz"]) != before  # one of them was replaced as well


def test_damaged_notes_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("catalog.files._READ_WHOLE", 1)
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / "npz").mkdir()
    write(tmp_path / "npz" / "a.npz", b"12", 5)
    before = contents(["npz"])
    (notes,) = (tmp_path / ".snakemake" / "samples").iterdir()
    for damaged in ("", "[]", '{"a.npz": [1]}', '{"a.npz": 1}'):
        notes.write_text(damaged)
        (tmp_path / remembered.REMEMBERED).unlink()
        new_process()
        assert contents(["npz"]) == before and len(json.loads(notes.read_text())["a.npz"]) == 6


def own(tmp_path) -> dict:
    """A configuration that reads files of every kind."""
    for name in ("captions.csv", "train.txt", "features.tsv", "w.pkl", "own.py"):
        (tmp_path / name).write_text("x")
    (tmp_path / "own.py").write_text('class N(RetrievalNetwork):\n    needs = ("visual",)\n')
    (tmp_path / "images").mkdir()
    (tmp_path / "cxc").mkdir()
    for name in ("sits", "sis", "sts"):
        (tmp_path / "cxc" / f"{name}_test.csv").write_text("x")
    imports = {"regions": {"format": "tsv", "path": "features.tsv"}}
    dataset = {"source": "folder", "images": "images", "captions": "captions.csv", "split_files": {"test": "train.txt"}}
    run = {"dataset": "mine", "visual": "grids", "train_split": "test", "val_split": None, "model": {"kind": "own.py"}}
    return {
        "datasets": {"mine": dataset | {"imports": imports}},
        "features": {"grids": {"engine": "detectron2", "config": "x/y.yaml", "weights": "w.pkl"}},
        "runs": {"r": run | {"text": {"pretrained": None}}},
        "testsets": {"t": {"dataset": "mine", "protocols": ["cxc"], "positives": "cxc", "split": "test"}},
    }


@pytest.mark.parametrize(
    ("file", "method", "inputs"),
    [
        ("captions.csv", "index_contents", "index_sources"),
        ("train.txt", "index_contents", "index_sources"),
        ("features.tsv", "import_contents", "import_files"),
        ("w.pkl", "weights_contents", "weights"),
        ("own.py", "run_contents", "run_inputs"),
        ("own.py", "model_contents", "encode_inputs"),
        ("cxc/sits_test.csv", "protocol_contents", "protocol_files"),
    ],
)
def test_every_file_of_the_users_counts_by_content_and_not_by_time(tmp_path, file, method, inputs):
    asked = Plan(load_settings(own(tmp_path)), ancient=lambda path: f"old:{path}")
    job = W(dataset="mine", feature="regions" if file == "features.tsv" else "grids", run="r", testset="t")
    found = getattr(asked, inputs)(job)
    assert f"old:{file}" in (found.values() if isinstance(found, dict) else found)
    before = getattr(asked, method)(job)
    os.utime(tmp_path / file, (1, 1))
    assert getattr(asked, method)(job) == before
    (tmp_path / file).write_text((tmp_path / file).read_text() + "#")
    os.utime(tmp_path / file, (1, 1))
    assert getattr(asked, method)(job) != before


def marker(path, shards=2, compression="lz4", dropped=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: {"compression": compression} for name in ("features", "counts")}
    path.write_text(
        json.dumps({"attributes": {"plan": {"shards": shards}, "arrays": arrays, "dropped": list(dropped)}})
    )


def test_a_made_store_keeps_its_shards_and_compression(tmp_path, repository):
    config = yaml.safe_load((repository / "config.yaml").read_text())
    config["datasets"]["scenes"]["shards"] = 5
    config["features"] |= {"compression": "zstd", "on_bad_image": "drop"}
    asked, job = Plan(load_settings(config)), W(dataset="scenes", feature="grids")
    path = tmp_path / "results/scenes/features/grids.zarr/zarr.json"
    assert (asked.shards(job), len(asked.receipts(job)), asked.compression(job, None)) == (5, 5, "zstd")
    marker(path)
    assert (asked.shards(job), len(asked.receipts(job)), asked.compression(job, None)) == (2, 2, "lz4")
    assert asked.unwanted(job) is False
    config["features"]["on_bad_image"] = "fail"
    strict = Plan(load_settings(config))
    assert strict.unwanted(job) is False
    marker(path, dropped=["a"])
    assert strict.unwanted(job) is True and asked.unwanted(job) is False
    path.write_text("cut off")
    assert asked.shards(job) == 5
    # While it is made again it is not sealed: jobs that start then go on as the first did.
    marker(path)
    asked.remember_made()
    path.unlink()
    assert (asked.shards(job), asked.compression(job, None)) == (2, "lz4")
    marker(path, shards=5, compression="zstd")
    asked.remember_made()
    path.unlink()
    assert not list(path.parent.parent.rglob(".made.json")) and asked.shards(job) == 5
    marker(path)
    asked.remember_made()
    shutil.rmtree(tmp_path / "results")
    assert asked.shards(job) == 5


def test_how_a_training_is_fed_is_no_reason_to_train_again(repository):
    config = yaml.safe_load((repository / "config.yaml").read_text())
    before, job = Plan(load_settings(config)), W(run="grid")
    config["runs"]["grid"]["training"] = config["runs"]["grid"]["training"] | {"workers": 3, "preload": True}
    after = Plan(load_settings(config))
    assert after.run_recipe(job) == before.run_recipe(job) and after.run_settings(job) != before.run_settings(job)
    config["runs"]["grid"]["training"] |= {"margin": 0.3}
    assert Plan(load_settings(config)).run_recipe(job) != before.run_recipe(job)


def test_what_an_index_had_nothing_to_leave_out_of_is_no_reason_to_make_it_again(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.png").write_text(name)
    captions, job = tmp_path / "captions.csv", W(dataset="mine")
    mine = {"source": "folder", "images": "images", "captions": "captions.csv"}
    lenient = {"missing_images": "drop", "missing_captions": "keep", "copies": "one_split"}

    def reason(**setting):
        return Plan(load_settings({"datasets": {"mine": mine | setting}})).index_reason(job)

    def index(**setting):
        """As the workflow does it; its reason is the same afterwards, or all would be made again."""
        own, remembered = (
            Plan(load_settings({"datasets": {"mine": mine | setting}})).index_settings(job, None),
            reason(**setting),
        )
        files = ["--images", "results/mine/index/images.parquet", "--captions", "results/mine/index/captions.parquet"]
        main(["index", "--dataset", "mine", "--settings", own, "--reason", remembered, *files])
        assert reason(**setting) == remembered

    captions.write_text("image,caption,split\na,one,train\nb,two,test\n")
    assert reason() != reason(**lenient)
    index()
    assert reason() == reason(**lenient) != reason(captions_per_image=3)
    assert len({reason(), reason(captions_per_image=None), reason(captions_per_image=5)}) == 2
    assert reason() == reason(splits={"train": 0.5, "test": 0.5}, seed=4), "each row names its split"
    index(**lenient)
    assert reason() != reason(missing_images="drop") and reason(**lenient) == reason(**lenient | {"copies": "keep"})
    captions.write_text("image,caption,split\na,one,train\nc,two,test\n")
    index(**lenient)  # which leaves something out, so that each of them counts
    assert len({reason(), reason(missing_images="drop"), reason(missing_captions="keep")}) == 3
    assert reason(**lenient) == reason(**lenient | {"copies": "keep"})
    captions.write_text("image,caption,split\na,one,train\nb,two,\n")
    index(splits={"test": 1.0}, seed=3)
    assert (
        len({reason(splits={"test": 1.0}, seed=seed) for seed in (3, 4)} | {reason(splits={"val": 1.0}, seed=3)}) == 3
    )
    index()
    (tmp_path / "results/mine/index/images.parquet").write_text("damaged")
    assert reason() != reason(**lenient)


def test_an_index_without_captions_that_could_be_used_is_made_again_where_they_are_read(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("a")
    (tmp_path / "captions.csv").write_text("image,caption\na,one\nz,two\n")
    job = W(dataset="mine")
    plan = Plan(
        load_settings({"datasets": {"mine": {"source": "folder", "images": "images", "captions": "captions.csv"}}})
    )
    before = plan.index_reason(job)
    monkeypatch.setenv(IMAGES_ALONE, "yes")
    files = ["--images", "results/mine/index/images.parquet", "--captions", "results/mine/index/captions.parquet"]
    main(["index", "--dataset", "mine", "--settings", plan.index_settings(job, None), "--reason", before, *files])
    assert plan.index_reason(job) == before
    monkeypatch.delenv(IMAGES_ALONE)
    assert (wanted := plan.index_reason(job)) != before
    (tmp_path / "captions.csv").write_text("image,caption\na,one\n")
    main(["index", "--dataset", "mine", "--settings", plan.index_settings(job, None), "--reason", wanted, *files])
    assert plan.index_reason(job) == wanted, "made for that reason, it is not made again"
