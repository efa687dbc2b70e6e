"""Training in several processes: really started, and held to what one process gives."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from core.console import UserError
from model import parallel
from model import train as training
from model.build import new_network
from model.data import Features, TrainingPairs, read_split
from model.parallel import share
from model.settings import Recipe
from stores.schema import SCHEMA_VERSION
from tests.unit.model.conftest import make_world
from tests.unit.model.helpers import prepare, run, weights, write_store

ROOT = Path(__file__).parents[3]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launcher(processes):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def launch(processes, script, *arguments):
    command = [*launcher(processes), "--", str(script), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("total", "processes"), [(25, 2), (7, 3), (3, 3), (256, 8)])
def test_shares_are_consecutive_and_even(total, processes):
    shares = [share(total, process, processes) for process in range(processes)]
    assert [i for part in shares for i in range(total)[part]] == list(range(total))
    sizes = [part.stop - part.start for part in shares]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


PIECES = """
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from model import parallel
from model.embed import embed_captions, embed_images
from tests.unit.model.conftest import make_world
from tests.unit.model.test_network import batch_of, small_network
from tests.unit.model.helpers import prepare

torch.set_num_threads(1)


def alone(function):
    # Not connected yet: what one process gives.
    assert parallel.processes() == 1 and parallel.process() == 0
    return function()


def close(a, b, **options):
    torch.testing.assert_close(a, b, **({"rtol": 1e-5, "atol": 1e-5} | options))


# Batch norm over rows far from zero; 7 items of 5 rows, so that the shares are uneven.
TOTAL, ROWS = 7, 5
generator = torch.Generator().manual_seed(0)
rows = torch.randn(TOTAL, ROWS, 6, generator=generator) * 3 + torch.arange(6) * 10
weights = torch.randn(TOTAL, ROWS, 6, generator=generator)


def norm_of(own):
    norm = parallel.BatchNorm(6)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 7)), norm.bias.copy_(torch.arange(6.0))
    given = rows[own].clone().requires_grad_()
    found = norm(given.flatten(0, 1)).view_as(given)
    (found.square() * weights[own]).sum().backward()
    return norm, found.detach(), given.grad


# The whole image encoder, in training mode: padding, batch statistics of all eight norms, the map's moments.
network = small_network(seed=1, dropout=0.0).train()
batch = batch_of([36, 1, 7, 20, 3, 36, 2], seed=1, longest=37)
direction = torch.randn(TOTAL, 16, generator=generator)


def encode(own):
    network.load_state_dict(start)
    network.zero_grad()
    embeddings = parallel.gather_batch(network.encode_images(*(part[own] for part in batch)), TOTAL)
    (embeddings * direction).sum().backward()
    return embeddings.detach(), network.image.state_dict(), {
        name: parameter.grad.clone() for name, parameter in network.image.named_parameters() if parameter.requires_grad
    }


start = {key: value.clone() for key, value in network.state_dict().items()}
embed_folder = Path(sys.argv[1]) / os.environ["RANK"]
embed_folder.mkdir(parents=True)
world = make_world(embed_folder)
other, pairs = prepare(world)
other.eval()


def embed():
    rows = torch.arange(len(world.ids)).numpy()
    return (
        torch.from_numpy(embed_images(other, pairs.features, rows, batch_size=10, workers=1)),
        torch.from_numpy(embed_captions(other, pairs.tokenizer, world.texts, batch_size=16)),
        torch.from_numpy(embed_images(other, pairs.features, rows[:3], batch_size=10)),
    )


everything = slice(0, TOTAL)
expected = alone(lambda: norm_of(everything))
whole = alone(lambda: encode(everything))
whole = whole[0], {key: value.clone() for key, value in whole[1].items()}, whole[2]
embedded = alone(embed)

dist.init_process_group("gloo")
own = parallel.share(TOTAL, parallel.process(), parallel.processes())
assert parallel.processes() == 3 and own.stop - own.start in (2, 3)

norm, found, gradient = norm_of(own)
close(found, expected[1][own], atol=1e-4)
close(gradient, expected[2][own], rtol=1e-4, atol=1e-4)
for name, parameter in norm.named_parameters():
    close(parallel.summed(parameter.grad.clone()), dict(expected[0].named_parameters())[name].grad, rtol=1e-4)
for key, value in norm.state_dict().items():
    close(value, expected[0].state_dict()[key], rtol=1e-6)

embeddings, state, gradients = encode(own)
close(embeddings, whole[0])
for key, value in state.items():
    close(value, whole[1][key])
for name, parameter in gradients.items():
    # Averaged over the processes, as DistributedDataParallel does.
    mean = parallel.summed(parameter) / parallel.processes()
    assert (mean - whole[2][name]).abs().max() < 1e-4 * whole[2][name].abs().max() + 1e-5, name

for shared, single in zip(embed(), embedded, strict=True):
    assert torch.equal(shared, single)

# In evaluation mode nothing is shared: one process may encode while the others do not.
if parallel.process() == 0:
    network.eval().encode_images(*batch)
dist.barrier()
dist.destroy_process_group()
"""


def test_statistics_gradients_and_embeddings_are_those_of_one_process(tmp_path):
    script = tmp_path / "pieces.py"
    script.write_text(PIECES)
    done = launch(3, script, tmp_path)
    assert done.returncode == 0, done.stderr


TRAIN = """
import os
import sys
from pathlib import Path

import torch

from tests.unit.model.conftest import make_world
from tests.unit.model.test_parallel import train_exactly, train_in_double, train_scan_in_double

torch.set_num_threads(1)
world = Path(sys.argv[1]) / f"world{os.environ['RANK']}"
world.mkdir()
world = make_world(world)
train_exactly(world, Path(sys.argv[1]))
weights = train_in_double(world, Path(sys.argv[1]) / "double")
torch.save(weights, Path(sys.argv[1]) / f"double{os.environ['RANK']}.pt")
weights = train_scan_in_double(world, Path(sys.argv[1]) / "scan")
torch.save(weights, Path(sys.argv[1]) / f"scan{os.environ['RANK']}.pt")
"""


@contextlib.contextmanager
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train_exactly(world, folder):
    """12 steps without dropout, of both kinds of loss; 25 pairs do not divide by two."""
    prepared = prepare(world, dropout=0.0, batch_size=25)
    run(world, folder, prepared=prepared, epochs=3, learning_rate=1e-4, save_every=3, workers=1, mask_same_image=True)


def train_in_double(world, folder):
    """12 steps at a high rate in float64, where rounding has no say; returns the weights."""
    network, pairs = prepare(world, dropout=0.0, batch_size=25)
    network.double()
    run(world, folder, validate=False, prepared=(network, pairs), epochs=3, learning_rate=3e-3)
    return network.state_dict()


def train_scan_in_double(world, folder):
    """The same of SCAN, whose sets of regions and words the processes put together; the last batch is smaller."""
    recipe = Recipe(model={"kind": "scan", "embed_size": 16}, text={"kind": "bigru", "word_size": 8, "min_count": 1})
    split, features = read_split(world.images, world.captions, "train"), Features(world.visual, None)
    torch.manual_seed(0)
    network, tokenizer = new_network(recipe, split.captions, img_dim=features.img_dim)
    pairs = TrainingPairs(split, features, tokenizer, batch_size=25, keep_last=True)
    run(world, folder, prepared=(network.double(), pairs), epochs=3, learning_rate=3e-3)
    return network.state_dict()


def losses_and_scores(folder):
    with open(folder / "run/history.csv") as file:
        return [[float(row["train_loss"]), float(row["rsum"])] for row in csv.DictReader(file)]


def assert_close_weights(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_two_processes_give_the_losses_and_weights_of_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    done = launch(2, script, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 3/3: loss") == 3  # of three runs: one process speaks for both
    world = make_world(tmp_path / "one")
    with one_thread():
        train_exactly(world, tmp_path / "one")
        double = train_in_double(world, tmp_path / "one/double")
        scan = train_scan_in_double(world, tmp_path / "one/scan")
    for place in ("", "scan"):
        found, alone = (losses_and_scores(tmp_path / number / place) for number in ("two", "one"))
        np.testing.assert_allclose(found, alone, rtol=1e-5)
    assert_close_weights(weights(tmp_path / "two"), weights(tmp_path / "one"))
    assert (tmp_path / "two/state/finished").exists()
    # Of the run with a validation, process 0 alone goes back to the best epoch's weights: it writes them.
    for name, alone in (("double0", double), ("double1", double), ("scan0", scan)):
        for key, found in torch.load(tmp_path / f"two/{name}.pt").items():
            torch.testing.assert_close(found, alone[key], rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
    start = prepare(world, dropout=0.0)[0].state_dict()
    moved = [(weights(tmp_path / "two")[key] - start[key]).abs().max() for key in ("image.fusion_mlp.output.weight",)]
    assert min(moved) > 2e-4


def files(folder):
    names = {"images": "images.parquet", "captions": "captions.parquet", "visual": "visual", "panoptic": "panoptic"}
    return {key: folder / name for key, name in (names | {"output": "run", "state": "state"}).items()}


def settings(epochs):
    """Without dropout, and a low rate for weights that stay comparable over many steps."""
    model = {"embed_size": 16, "spatial_size": 4, "pool_position_size": 4, "pool_hidden_size": 4, "dropout": 0.0}
    text = {"pretrained": None, "layers": 1, "hidden_size": 16, "intermediate_size": 16, "max_tokens": 16}
    recipe = {"batch_size": 25, "learning_rate": 1e-5, "text_lr_factor": 1.0, "save_every": 1, "validate_every": 8}
    return {"model": model, "text": text | {"dropout": 0.0}, "training": recipe | {"epochs": epochs}}


def command(folder, *, processes, epochs=12):
    """The command line for stores in `folder`."""
    options = {"run-name": "r", **files(folder), "settings": json.dumps(settings(epochs)), "device": "cpu"}
    options |= {"processes": processes, "threads": processes}
    return [
        *(sys.executable, "-m", "model.train"),
        *(part for key, value in options.items() for part in (f"--{key}", str(value))),
    ]


def stores_in(folder):
    folder.mkdir()
    world = make_world(folder)
    for name in ("visual", "panoptic"):
        write_store(folder / name, getattr(world, name), SCHEMA_VERSION)
    return folder


def workers_of(pid):
    """Pids of a process's children."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(status.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_processes_end_all_and_any_number_goes_on(tmp_path):
    """One worker is killed, then the launcher; then one process finishes, with an uninterrupted run's weights."""
    folder, whole = stores_in(tmp_path / "killed"), stores_in(tmp_path / "whole")
    state, seen = folder / "state/state.pt", 0

    def saved_again():
        nonlocal seen
        before, seen = seen, state.stat().st_mtime_ns if state.exists() else 0
        return seen not in (0, before)

    for victim in ("worker", "launcher"):
        process = subprocess.Popen(
            command(folder, processes=2), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda process=process: saved_again() or process.poll() is not None)
        workers = workers_of(process.pid)
        assert len(workers) == 2 and process.poll() is None
        time.sleep(0.05)
        os.kill(workers[1] if victim == "worker" else process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode != 0
        wait_for(lambda workers=workers: not any(map(alive, workers)), seconds=30)
        assert state.exists() and not (folder / "run/model.safetensors").exists()
        seen = state.stat().st_mtime_ns
    line = command(folder, processes=1)
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    with one_thread():
        training.train_run(run="r", **files(whole), settings=Recipe(**settings(12)), device="cpu")
    np.testing.assert_allclose(losses_and_rates(folder), losses_and_rates(whole), rtol=1e-5)
    assert_close_weights(weights(folder), weights(whole))


def losses_and_rates(folder):
    with open(folder / "run/history.csv") as file:
        return [[float(row["train_loss"]), float(row["lr"])] for row in csv.DictReader(file)]


FAILING = """
import os

import torch

from model import train
from model.training import loop
from model.training.processes import one_of_several

if os.environ["RANK"] == "1":

    def fail(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    loop.step = fail
one_of_several(train.main)
"""


def test_an_error_of_one_process_ends_all(tmp_path):
    folder = stores_in(tmp_path / "failing")
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    started = time.monotonic()
    done = launch(2, script, *command(folder, processes=1, epochs=1000)[3:])
    assert done.returncode != 0 and time.monotonic() - started < 120
    assert "error: process 1: out of memory in a training step: lower training.batch_size (now 25)" in done.stderr
    assert "more processes (now 2;" in done.stderr


def test_more_processes_than_pairs_are_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "processes", lambda: 30)
    monkeypatch.setattr(parallel, "process", lambda: 0)
    with pytest.raises(UserError, match="batch_size is 24, but there are 30 processes .*; start at most 24"):
        run(world, tmp_path)


def test_processes_that_find_different_states_are_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr("model.training.state.everyones", lambda own: [own, (7, False)])
    with pytest.raises(UserError, match=r"different states in .* \(steps \[None, 7\]\); the folder must lie on"):
        run(world, tmp_path)


def test_the_number_of_processes_is_checked(tmp_path):
    for given, environment in (("0", {}), ("3", {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "RANK": "0"})):
        line = command(tmp_path, processes=given)
        done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True)
        assert done.returncode == 1 and f"--processes {given}: must be at least 1" in done.stderr, done.stderr
