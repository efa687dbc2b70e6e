"""Killed jobs and masters, full disks, damaged files: the same command again ends in the same bytes, or says what is wrong.

`THREESHNET_KILLS=100` makes the test of random kills do so many.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from extractors.run import main as extract
from stores import open_store

from .conftest import TINY, Workflow

pytestmark = pytest.mark.workflow

KILLS = int(os.environ.get("THREESHNET_KILLS", "3"))
# Two shards of enough images that a kill meets them at work.
CONFIG = {"datasets": {"tiny": TINY["datasets"]["tiny"] | {"splits": {"train": 60}}}}
STORE = Path("tiny/features/grids.zarr")
SHARDS = 2


def digests(results: Path) -> dict[str, str]:
    files = (path for path in (results / STORE).rglob("*") if path.is_file())
    return {str(p.relative_to(results / STORE)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def copy_of(finished: Workflow, make_workflow) -> Workflow:
    """A workflow with the results of another, as old as they are."""
    workflow = make_workflow(CONFIG)
    shutil.copytree(finished.results, workflow.results)
    shutil.copytree(finished.folder / ".snakemake", workflow.folder / ".snakemake")
    return workflow


def ends_well(workflow: Workflow, *arguments: str) -> None:
    result = workflow.run("grids", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr


def processes_of(workflow: Workflow, *words: str) -> list[int]:
    """Python processes in the workflow's folder with all words in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            here = (folder / "cwd").resolve() == workflow.folder.resolve()
        except OSError:
            continue
        if here and "python" in Path(arguments[0]).name and all(any(w in a for a in arguments[1:]) for w in words):
            found.append(int(folder.name))
    return found


def wait_for(condition, master: subprocess.Popen, workflow: Workflow, seconds: float = 60):
    """The first true value of `condition()`, while Snakemake runs."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        log = (workflow.folder / "snakemake.log").read_text(errors="replace")
        assert master.poll() is None and time.monotonic() < end, log
        time.sleep(0.01)
    return found


def receipt(workflow: Workflow, shard: int) -> Path:
    return workflow.results / STORE.parent / "grids.receipts" / f"{shard}.json"


@pytest.fixture(scope="module")
def undisturbed(make_workflow):
    workflow = make_workflow(CONFIG)
    ends_well(workflow)
    return workflow


@pytest.fixture(scope="module")
def wanted(undisturbed):
    found = digests(undisturbed.results)
    assert len(found) > 10
    return found


def test_a_shard_killed_at_work_runs_again_alone(make_workflow, wanted):
    workflow = make_workflow(CONFIG)
    master = workflow.start("grids")
    # It works: images are being extracted when it dies.
    log = workflow.results / "logs" / "extract_shard" / "tiny_grids_1.log"
    wait_for(lambda: log.exists() and "image/s" in log.read_text(), master, workflow)
    for pid in processes_of(workflow, "extractors.run", str(Path("grids.receipts", "1.json"))):
        os.kill(pid, signal.SIGKILL)
    assert master.wait(120) != 0
    assert receipt(workflow, 0).is_file() and not receipt(workflow, 1).exists()
    assert not (workflow.results / STORE / "zarr.json").exists()
    before = receipt(workflow, 0).stat().st_mtime_ns
    assert workflow.planned("grids") == {"extract_shard": 1, "seal_store": 1}
    ends_well(workflow)
    assert digests(workflow.results) == wanted
    assert receipt(workflow, 0).stat().st_mtime_ns == before


@pytest.mark.parametrize(("command", "jobs"), [("catalog.run", 4), ("stores.seal", 1)])
def test_an_index_or_a_seal_killed_at_work_runs_again(make_workflow, undisturbed, wanted, command, jobs):
    workflow = copy_of(undisturbed, make_workflow)
    if command == "catalog.run":
        (workflow.results / "tiny" / "index" / "images.parquet").unlink()
        shutil.rmtree(workflow.results / STORE.parent)
    else:
        (workflow.results / STORE / "zarr.json").unlink()
    master = workflow.start("grids")
    # The shell that starts it has the same words in its command line.
    (pid, *_) = wait_for(lambda: processes_of(workflow, "-m", command), master, workflow)
    os.kill(pid, signal.SIGKILL)
    assert master.wait(60) != 0
    assert not (workflow.results / STORE / "zarr.json").exists()
    assert sum(workflow.planned("grids").values()) == jobs
    ends_well(workflow)
    assert digests(workflow.results) == wanted


def test_an_interrupted_or_killed_master_leaves_no_job_and_is_taken_up_again(make_workflow, wanted):
    workflow = make_workflow(CONFIG)

    def jobs() -> list[int]:
        return processes_of(workflow, "extractors.run", "grids.receipts")

    master = workflow.start("grids")
    wait_for(jobs, master, workflow)
    master.send_signal(signal.SIGINT)  # Snakemake alone, as `kill -INT` does
    assert master.wait(20) != 0 and not jobs()
    master = workflow.start("grids")
    wait_for(jobs, master, workflow)
    master.kill()
    master.wait()
    end = time.monotonic() + 20
    while jobs():
        assert time.monotonic() < end
        time.sleep(0.1)
    locked = workflow.run("grids")
    assert locked.returncode != 0 and "--unlock" in locked.stdout + locked.stderr
    assert workflow.run("--unlock").returncode == 0
    ends_well(workflow)
    assert digests(workflow.results) == wanted


def test_two_writers_of_one_shard(undisturbed, make_workflow, wanted):
    workflow = copy_of(undisturbed, make_workflow)
    for path in (workflow.results / STORE).glob("*/c"):
        shutil.rmtree(path)
    command = workflow.command()
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "extractors.run", *shard_arguments(workflow, shard)],
            cwd=workflow.folder,
            env=command["env"] | {"PYTHONPATH": str(workflow.repository), "PYTHONSAFEPATH": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for shard in (0, 0, 1)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
    ends_well(workflow)
    assert digests(workflow.results) == wanted


def shard_arguments(workflow: Workflow, shard: int, **settings) -> list[str]:
    """What the workflow gives `extractors.run`."""
    content = json.loads(receipt(workflow, shard).read_text())["store"]["extractor"]
    content |= settings
    recipe = content.pop("recipe")
    arguments = {
        "feature": "grids",
        "images": workflow.results / "tiny/index/images.parquet",
        "shard": shard,
        "shards": SHARDS,
        "store": workflow.results / STORE,
        "receipt": receipt(workflow, shard),
        "settings": json.dumps(content),
        "recipe": recipe,
    }
    return [text for key, value in arguments.items() for text in (f"--{key}", str(value))]


def test_a_full_disk(make_workflow, tmp_path):
    """Results on a file system of 1 MB: less than the store needs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode:
        pytest.skip("a small file system can be mounted by root only, and not in every container")
    try:
        photos = tmp_path / "photos"
        photos.mkdir()
        drawn = make_workflow({"datasets": {"tiny": CONFIG["datasets"]["tiny"]}})
        assert drawn.run("results/tiny/scenes").returncode == 0
        for path in (drawn.results / "tiny/scenes").rglob("*.png"):
            shutil.copy(path, photos / f"{path.parent.name}_{path.name}")
        dataset = {"source": "folder", "images": str(photos), "shards": SHARDS}
        workflow = make_workflow({"results": str(disk / "results"), "datasets": {"tiny": dataset}})
        full = workflow.run("grids")
        output = full.stdout + full.stderr
        assert full.returncode != 0 and "error: the disk is full" in output and "Traceback" not in output, output
        assert not (disk / "results" / STORE / "zarr.json").exists()
        assert not list((disk / "results").rglob("*.tmp")), "what could not be written is no ballast"

        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        ends_well(workflow)
        found = digests(disk / "results")
        elsewhere = make_workflow({"datasets": {"tiny": dataset}})
        ends_well(elsewhere)
        assert found == digests(elsewhere.results)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_verify_finds_damage_and_one_shard_repairs_it(make_workflow, undisturbed, wanted):
    workflow = copy_of(undisturbed, make_workflow)
    assert workflow.planned("verify")["verify_store"] == 3
    whole = workflow.run("results/verified/tiny/grids.json")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    store = workflow.results / STORE
    flipped, cut, deleted = (store / f"{key}" for key in ("features/c/0/0/0", "features/c/1/0/0", "counts/c/0"))
    data = bytearray(flipped.read_bytes())
    data[100] ^= 4
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-10])
    deleted.unlink()
    (store / "features/c/7").write_bytes(b"who put this here?")

    found = workflow.run("results/verified/tiny/grids.json")
    output = found.stdout + found.stderr
    assert found.returncode != 0
    command = (
        f"snakemake --cores all --snakefile {workflow.repository / 'Snakefile'} --configfile {workflow.configfile}"
    )
    again = [f"{command} --force results/tiny/features/grids.receipts/{k}.json"
             for k in range(SHARDS)]  # fmt: skip
    assert f"{flipped.relative_to(workflow.folder)} is not what was written (array 'features': row " in output
    assert "fails its checksum" in output and f"{deleted.relative_to(workflow.folder)} is missing" in output
    assert f"{cut.relative_to(workflow.folder)} is not what was written (array 'features': the index fails" in output
    assert "features/c/7 is no part of the store; seal the store again with: " in output
    assert all(command in output for command in again)

    # A reader says the same of the part that it meets.
    reader = open_store(store)
    with pytest.raises(
        Exception, match=r"array 'features' is damaged: .*/features/c/0/0/0: row .* --force .*receipts/0.json"
    ):
        reader.rows("features", range(len(reader))[::-1])

    for shard in range(SHARDS):
        result = workflow.run("--force", f"results/tiny/features/grids.receipts/{shard}.json")
        assert result.returncode == 0, result.stdout + result.stderr
    assert workflow.planned("grids") == {"seal_store": 1}
    ends_well(workflow)
    assert digests(workflow.results) == wanted
    assert workflow.run("results/verified/tiny/grids.json").returncode == 0


def test_shards_of_other_settings_or_weights_are_never_mixed(make_workflow, undisturbed, monkeypatch):
    workflow = copy_of(undisturbed, make_workflow)
    monkeypatch.chdir(workflow.folder)
    weights = workflow.folder / "other.safetensors"
    tensors = safetensors.torch.load_file(workflow.repository / "weights/scenes_grids.safetensors")
    with safetensors.safe_open(workflow.repository / "weights/scenes_grids.safetensors", "pt") as file:
        metadata = file.metadata()
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    safetensors.torch.save_file(tensors | {name: tensors[name] * 1.01}, weights, metadata)
    for settings in ({"weights": str(weights)}, {"grid": 5}):
        extract(shard_arguments(workflow, 0, **settings))
        # The other shard's receipt is of before, and nothing about its time says so.
        os.utime(receipt(workflow, 1))
        result = workflow.run("--force", str(Path("results") / STORE / "zarr.json"), "--rerun-triggers", "mtime")
        assert result.returncode != 0 and "made with other" in result.stdout + result.stderr
        assert not (workflow.results / STORE / "zarr.json").exists()


def test_images_in_a_zip_and_a_hostile_one(make_workflow, undisturbed):
    workflow = make_workflow({"datasets": {"tiny": {"source": "folder", "images": "photos.zip"}}})
    pictures = sorted((undisturbed.results / "tiny/scenes").rglob("*.png"))[:5]
    archive = workflow.folder / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for picture in pictures:
            file.write(picture, f"photos/{picture.name}")
    ends_well(workflow)
    store = open_store(workflow.results / STORE)
    assert list(store.image_ids) == [f"photos/{picture.stem}" for picture in pictures]
    assert np.isfinite(store.rows("features", [0])).all()
    assert workflow.planned("grids") == {}

    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../../escaped.png", pictures[0].read_bytes())
    result = workflow.run("grids")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "photos.zip is refused" in output and "lead out of the archive: '../../escaped.png'" in output
    assert not list(workflow.folder.parent.rglob("escaped.png"))


def test_random_kills_of_everything_end_in_the_same_bytes(make_workflow, wanted):
    """Snakemake and all of its jobs die at a random moment, again and again; whenever it gets to its end, it starts anew."""
    workflow = make_workflow(CONFIG)
    generator = random.Random(KILLS)
    kills = starts = 0
    while kills < KILLS:
        starts += 1
        master = workflow.start("grids", "--nolock")
        try:
            code = master.wait(generator.uniform(0.5, 12.0))
        except subprocess.TimeoutExpired:
            os.killpg(master.pid, signal.SIGKILL)
            master.wait()
            kills += 1
            if (workflow.results / STORE / "zarr.json").exists():
                assert digests(workflow.results) == wanted, "what opens is whole"
            continue
        assert code == 0, (workflow.folder / "snakemake.log").read_text()[-5000:]
        assert digests(workflow.results) == wanted
        shutil.rmtree(workflow.results)
    ends_well(workflow, "--nolock")
    assert digests(workflow.results) == wanted
    print(f"{starts} starts, {kills} of them killed")
