"""The model and its training on CUDA devices, held to the CPU."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from core.console import UserError
from model.embed import embed_captions, embed_images
from model.losses import triplet_loss
from model.training.mishaps import memory_explained
from tests.unit.model import helpers
from tests.unit.model import test_parallel as parallel
from tests.unit.model.conftest import make_world
from tests.unit.model.helpers import prepare, weights
from tests.unit.model.test_network import batch_of, small_network

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


def run(world, folder, *, device="cuda", seed=0, dropout=0.0, stop_after=None, **numbers):
    network, pairs = prepare(world, seed=seed, dropout=dropout)
    recipe = helpers.small_recipe(**({"epochs": 2, "learning_rate": 1e-4, "workers": 2} | numbers))
    return helpers.train(
        network,
        pairs,
        recipe,
        output=folder / "run",
        state=folder / "state",
        seed=seed,
        device=device,
        stop_after=stop_after,
    )


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_embeddings_loss_and_gradients_equal_the_cpus(mode):
    cpu = small_network(seed=3)
    cpu.train(mode == "train")
    gpu = copy.deepcopy(cpu).cuda()
    batch = batch_of([36, 1, 7, 20, 0], seed=3, longest=37)
    lengths = torch.tensor([5, 4, 3, 2, 5])
    ids = torch.randint(1, 50, (5, 5), generator=torch.Generator().manual_seed(1))
    ids[torch.arange(5) >= lengths[:, None]] = 0
    losses, embeddings = [], []
    for network in (cpu, gpu):
        images, captions = network(*batch, ids, lengths)
        losses.append(triplet_loss(images, captions, 0.2, hardest=False))
        losses[-1].backward()
        embeddings += [images.detach().cpu(), captions.detach().cpu()]
    for found, expected in zip(embeddings[2:], embeddings[:2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert losses[1].item() == pytest.approx(losses[0].item(), abs=1e-3)
    for (name, found), expected in zip(gpu.named_parameters(), cpu.parameters(), strict=True):
        if not found.requires_grad:
            continue
        error = (found.grad.cpu() - expected.grad).abs().max()
        assert error < 1e-3 * expected.grad.abs().max() + 1e-4, name
    for (name, found), expected in zip(gpu.named_buffers(), cpu.buffers(), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4, msg=name)


def test_embedding_a_split_equals_the_cpu(world):
    network, pairs = prepare(world, dropout=0.0)
    network.eval()
    rows = np.arange(len(world.ids))

    def embed():
        images = embed_images(network, pairs.features, rows, batch_size=10, workers=2)
        return images, embed_captions(network, pairs.tokenizer, world.texts, batch_size=16)

    expected = embed()
    network.cuda()
    for found, exact in zip(embed(), expected, strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-4)


def test_batches_are_pinned_and_arrive_whole(world):
    pairs = prepare(world)[1]
    plain = pairs.batch(0, 1)
    pinned = list(pairs.batches(0, start=1, workers=2, pin=True))[0]
    assert all(part.is_pinned() for part in pinned.inputs()) and not plain.image[0].is_pinned()
    for found, expected in zip(pinned.inputs(), plain.inputs(), strict=True):
        assert torch.equal(found, expected)


def test_training_follows_the_cpu(world, tmp_path):
    rows = []
    for device in ("cpu", "cuda"):
        rows.append(run(world, tmp_path / device, device=device))
    assert rows[1]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=1e-3)


@pytest.mark.parametrize("compile", [False, True])
def test_bf16_trains_close_to_fp32(world, tmp_path, compile):
    exact = run(world, tmp_path / "fp32", epochs=1)["train_loss"]
    rough = run(world, tmp_path / "bf16", epochs=1, precision="bf16", compile=compile)["train_loss"]
    assert rough != exact and rough == pytest.approx(exact, rel=0.02)


def test_stopped_and_started_again_goes_on(world, tmp_path):
    """Sums on a GPU may differ in their last digits from run to run, dropout masks do not."""
    run(world, tmp_path / "whole", dropout=0.1)
    for step in (3, 5):
        assert run(world, tmp_path / "parts", dropout=0.1, stop_after=step) is None
    run(world, tmp_path / "parts", dropout=0.1)
    parts = weights(tmp_path / "parts")
    for key, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(parts[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_out_of_memory_says_what_to_lower():
    total = torch.cuda.mem_get_info()[1]
    with pytest.raises(UserError, match=r"out of memory in a training step: lower .*CUDA out of memory"):
        with memory_explained("a training step", 256, "fp32"):
            torch.empty(2 * total, dtype=torch.uint8, device="cuda")


def start(folder, processes):
    line = [part if part != "cpu" else "auto" for part in parallel.command(folder, processes=processes)]
    environment = {key: value for key, value in parallel.ENVIRONMENT.items() if key != "CUDA_VISIBLE_DEVICES"}
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    assert line[0] == sys.executable
    return subprocess.run(
        line, cwd=parallel.ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@several
def test_two_processes_give_the_losses_and_weights_of_one(tmp_path):
    for processes in (1, 2):
        done = start(parallel.stores_in(tmp_path / str(processes)), processes)
        assert done.returncode == 0, done.stderr
    one, two = (parallel.losses_and_rates(tmp_path / name) for name in "12")
    np.testing.assert_allclose(two, one, rtol=1e-4)
    expected = weights(tmp_path / "1")
    for key, value in weights(tmp_path / "2").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-4, msg=key)


def test_more_processes_than_devices_are_refused(tmp_path):
    count = torch.cuda.device_count()
    done = start(parallel.stores_in(tmp_path / "many"), count + 1)
    assert done.returncode != 0
    assert f"started as {count + 1} processes, but torch finds {count} CUDA devices" in done.stderr
