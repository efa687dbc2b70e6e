from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from core.console import UserError
from core.messages import validated
from model import train as command
from model.data import read_split
from model.runs import load_run
from model.settings import Recipe
from model.training import loop, state
from model.training.optimizer import new_optimizer
from model.training.processes import connect
from tests.unit.model.helpers import equal, one_step, prepare, run, small_recipe, weights, write_store

ROOT = Path(__file__).parents[3]


def test_training_learns_and_leaves_a_whole_run(world, tmp_path):
    last = run(world, tmp_path, epochs=12)
    with open(tmp_path / "run/history.csv") as file:
        history = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in history] == list(range(1, 13))
    assert [int(row["step"]) for row in history] == list(range(5, 61, 5))
    losses = [float(row["train_loss"]) for row in history]
    # The second epoch turns to the hardest negatives only: other losses.
    assert losses[-1] < 0.9 * losses[1]
    sums = [float(row["rsum"]) for row in history]
    chance = 100 * 2 * (1 + 5 + 10) / 12
    assert max(sums) > 1.2 * chance
    assert (
        float(history[-1]["rsum"])
        == last["rsum"]
        == pytest.approx(sum(last[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)))
    )
    network, config, tokenizer = load_run(tmp_path / "run")
    assert config["kept"]["rsum"] == max(sums) and config["kept"]["epoch"] == 1 + int(np.argmax(sums))
    split = read_split(world.images, world.captions, "val")
    scores = loop.validate(network, prepare(world)[1], split, run="again", workers=0)
    assert scores["rsum"] == max(sums)  # the best weights, not the last, are what is kept
    assert tokenizer.max_tokens == 16
    assert list((tmp_path / "run/tensorboard").glob("events.*"))
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "model.safetensors", "config.json", "vocab.txt", "history.csv", "tensorboard",
    }  # fmt: skip


def test_same_seed_same_weights_other_seed_other_weights(world, tmp_path):
    for name, seed, workers in (("a", 5, 0), ("b", 5, 2), ("c", 6, 0)):
        run(world, tmp_path / name, seed=seed, workers=workers, epochs=1)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("stops", [(2,), (5,), (1, 3, 6, 8, 14)], ids=["mid-epoch", "epoch-end", "often"])
def test_stopped_and_started_again_ends_with_the_same_weights(world, tmp_path, stops):
    run(world, tmp_path / "whole")
    for step in stops:
        assert run(world, tmp_path / "parts", stop_after=step) is None
        assert not (tmp_path / "parts/run/model.safetensors").exists()
    run(world, tmp_path / "parts")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    rows = []
    for name in ("whole", "parts"):
        with open(tmp_path / name / "run/history.csv") as file:
            rows.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]


def test_going_on_really_goes_on(world, tmp_path, capsys):
    run(world, tmp_path, stop_after=7)
    run(world, tmp_path, stop_after=8)
    assert "going on from epoch 2, step 6" in capsys.readouterr().err  # saved every second step


@pytest.mark.parametrize("where", ["step", "validate"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_saves_its_state_and_goes_on_from_there(world, tmp_path, monkeypatch, capsys, where, number):
    run(world, tmp_path / "whole", save_every=100)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    real, calls = getattr(loop, where), []

    def interrupted(*arguments, **options):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, where, interrupted)
        with pytest.raises(
            UserError, match="run run: ended on request; its state is saved, and the same command goes on"
        ):
            run(world, tmp_path / "parts", save_every=100)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not (tmp_path / "parts/run/model.safetensors").exists()
    run(world, tmp_path / "parts", save_every=100)
    assert f"going on from {'epoch 1, step 2' if where == 'step' else 'epoch 2, step 10'}" in capsys.readouterr().err
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    rates = [
        [row["lr"] for row in csv.DictReader((tmp_path / name / "run/history.csv").open())]
        for name in ("whole", "parts")
    ]
    assert rates[0] == rates[1]


def test_a_state_of_other_settings_is_not_gone_on_from(world, tmp_path, capsys):
    run(world, tmp_path / "a", stop_after=7)
    run(world, tmp_path / "a", learning_rate=1e-3)
    assert re.search(
        r"of other settings or data \(learning_rate was .*, is 0.001\); starting afresh", capsys.readouterr().err
    )
    run(world, tmp_path / "b", learning_rate=1e-3)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    (tmp_path / "c/state").mkdir(parents=True)
    (tmp_path / "c/state/state.pt").write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"cannot read the state .*remove .*state to start afresh"):
        run(world, tmp_path / "c")


def test_learning_rates_follow_warm_up_decay_and_factor(world, tmp_path, monkeypatch):
    seen = []
    step = loop.step

    def spy(model, network, optimizer, batch, recipe, *, hardest):
        seen.append((*(group["lr"] for group in optimizer.param_groups), hardest))
        return step(model, network, optimizer, batch, recipe, hardest=hardest)

    monkeypatch.setattr(loop, "step", spy)
    run(
        world, tmp_path, validate=False, epochs=3, learning_rate=1.0e-3, text_lr_factor=0.1, lr_warmup_steps=4,
        lr_decay_epochs=[1, 2], lr_decay_factor=0.5, all_negatives_epochs=2,
    )  # fmt: skip
    rates = [1e-3 * min(1, (i + 1) / 4) * 0.5 ** (i // 5) for i in range(15)]
    assert [rate for rate, _, _ in seen] == pytest.approx(rates)
    assert [rate for _, rate, _ in seen] == pytest.approx([0.1 * rate for rate in rates])
    assert [hardest for *_, hardest in seen] == [False] * 10 + [True] * 5


def test_gradients_are_clipped(world, tmp_path):
    """One step of clipped plain SGD moves the weights by exactly the clipped norm; AdamW must see that gradient."""
    network, pairs = prepare(world, dropout=0.0)
    for clip, expected in ((0.0, None), (0.05, 0.05)):
        one_step(network, pairs, gradient_clip=clip)
        norm = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).norm().item()
        assert norm == pytest.approx(expected, rel=1e-3) if expected else norm > 1


def test_masking_same_images_changes_the_loss(world):
    network, pairs = prepare(world, dropout=0.0)
    losses = [one_step(network, pairs, mask_same_image=mask, gradient_clip=0.0) for mask in (False, True)]
    assert losses[1] < losses[0]


def test_a_loss_that_is_not_a_number_stops_with_its_place(world, tmp_path):
    row = np.flatnonzero(world.splits == "train")[3]
    world.visual.arrays["features"][row, :, 0] = np.nan
    place = r"run broken: the loss became nan at step \d \(epoch 1, batch \d of 5: captions image\d+#\d, .* of images"
    with pytest.raises(UserError, match=f"{place} .*NaN or infinite features for {world.ids[row]}: extract them again"):
        run(world, tmp_path, name="broken")
    assert not (tmp_path / "run/model.safetensors").exists()


def test_a_rate_that_is_too_high_is_named_with_its_place(world, tmp_path):
    with pytest.raises(
        UserError, match=r"run wild: the loss .*became .* at step .*lower training.learning_rate.*kept in"
    ):
        run(world, tmp_path, name="wild", learning_rate=1e30, gradient_clip=0.0, save_every=1)


def test_a_gradient_that_is_not_finite_changes_nothing(world, tmp_path, monkeypatch):
    network, pairs = prepare(world)
    network.text.projection.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = {key: value.clone() for key, value in network.named_parameters()}
    with pytest.raises(
        UserError, match=r"the loss is \d+.*, but its gradient became (nan|inf) at step 1 .* are finite"
    ):
        run(world, tmp_path, prepared=(network, pairs))
    assert all(torch.equal(value, before[key]) for key, value in network.named_parameters())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "linux", "cublas", "numpy"],
)
def test_running_out_of_memory_says_what_to_lower(world, tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", fail)
        with pytest.raises(UserError, match="out of memory in validation: lower"):
            run(world, tmp_path, epochs=1)
    monkeypatch.setattr(loop, "step", fail)
    with pytest.raises(
        UserError,
        match=r"in a training step: lower training.batch_size \(now 24\) or text.max_tokens, set training.precision: bf16",
    ):
        run(world, tmp_path)


def test_other_errors_stay_what_they_are(world, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop, "step", fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(world, tmp_path)


def test_settings_that_cannot_work_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="batch_size is 1;"):
        run(world, tmp_path, prepared=prepare(world, batch_size=1))
    with pytest.raises(UserError) as error:
        validated(Recipe, {"sede": 1, "model": {"embed": 3}, "training": {"epoch": 3, "epochs": 0}}, place="--settings")
    for line in (
        "sede: unknown key; did you mean 'seed'?",
        "model.embed: unknown key",
        "training.epoch: unknown key; did you mean 'epochs'?",
        "training.epochs: 0 - ",
    ):
        assert line in str(error.value)
    settings = validated(Recipe, {"seed": 4, "training": {"epochs": 2}}, place="--settings")
    assert settings.seed == 4 and settings.training.epochs == 2 and settings.training.margin == 0.2


def test_the_defaults_are_the_papers_recipe():
    """For COCO regions; the paper and its code give 25 epochs of 256 pairs, and the optimiser as below."""
    recipe = Recipe()
    paper = {
        "epochs": 25, "batch_size": 256, "learning_rate": 5e-4, "text_lr_factor": 0.1, "weight_decay": 1e-4,
        "gradient_clip": 2.0, "lr_decay_epochs": [15], "lr_decay_factor": 0.1, "margin": 0.2, "all_negatives_epochs": 1,
        "mask_same_image": False, "token_drop": 0.2, "word_augmentation": 0.2, "captions_per_image": 5,
    }  # fmt: skip
    assert {key: getattr(recipe.training, key) for key in paper} == paper
    assert (recipe.model.embed_size, recipe.model.spatial_size) == (1024, 128)
    assert recipe.text.pretrained == "bert-base-uncased"


def test_without_validation_the_last_weights_are_kept(world, tmp_path):
    network, pairs = prepared = prepare(world)
    run(world, tmp_path, validate=False, prepared=prepared, epochs=2)
    assert equal(weights(tmp_path), network.state_dict())
    assert "rsum" not in json.loads((tmp_path / "run/config.json").read_text())["kept"]


def test_killed_while_the_run_folder_is_written(world, tmp_path, monkeypatch):
    run(world, tmp_path / "whole")

    def fail(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(state.SavedState, "publish", fail)
        run(world, tmp_path / "parts")
    assert not (tmp_path / "parts/run/model.safetensors").exists()
    run(world, tmp_path / "parts", stop_after=0)  # nothing is left to train
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def losses_and_gradients(world, precision):
    """Of one batch, from the same weights, without dropout."""
    network, pairs = prepare(world, dropout=0.0)
    loss = one_step(network, pairs, precision=precision, gradient_clip=0.0)
    return loss, torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])


def test_bf16_trains_close_to_fp32(world, tmp_path):
    (exact, slope), (rough, rough_slope) = (losses_and_gradients(world, precision) for precision in ("fp32", "bf16"))
    assert exact != rough and rough == pytest.approx(exact, rel=0.01)
    assert slope.dtype == rough_slope.dtype == torch.float32
    assert torch.cosine_similarity(slope, rough_slope, dim=0) > 0.99
    losses = [
        run(world, tmp_path / precision, precision=precision, epochs=1)["train_loss"] for precision in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_training_is_the_same_training(world, tmp_path):
    """Equal losses but for rounding, and equal names in the state: a run goes on, and loads, without compiling."""
    losses = {}
    for compile in (False, True):
        folder, (network, pairs) = tmp_path / str(compile), prepare(world, dropout=0.0)
        names = list(network.state_dict())
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        run(world, folder, prepared=(network, pairs), compile=compile, epochs=2, stop_after=6, save_every=6)
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > before) == compile
        assert list(network.state_dict()) == names
        plain = prepare(world, dropout=0.0)
        losses[compile] = run(world, folder, prepared=plain, epochs=2)["train_loss"]
        assert list(weights(folder)) == names
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_the_optimiser_is_fused_and_leaves_biases_without_effect(world):
    """Shifting such a bias changes no embedding of a training batch, so there is nothing to learn."""
    network, pairs = prepare(world, dropout=0.0)
    optimizer = new_optimizer(network, small_recipe(text_lr_factor=0.1))
    assert optimizer.defaults["fused"]
    still = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    assert still
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not trained & {id(bias) for bias in still}
    assert len(trained) + len(still) == len(list(network.parameters()))
    network.train()
    batch = pairs.batch(0, 0)
    with torch.no_grad():
        before = network(*batch.inputs())
        for bias in still:
            bias += torch.randn_like(bias)
        for found, expected in zip(network(*batch.inputs()), before, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(UserError, match="--device cuda: this machine has 0 CUDA devices"):
        connect("cuda", batch_size=8)


SCRIPT = """
import sys
from pathlib import Path
from tests.unit.model.conftest import make_world
from tests.unit.model.helpers import run
folder = Path(sys.argv[1])
world = make_world(folder)
run(world, folder, epochs=12, validate_every=4, save_every=3)
"""


def test_killed_at_any_moment_and_started_again(tmp_path):
    """SIGKILL while it runs, again and again, at whatever point that meets: the weights are an uninterrupted run's."""
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    state, seen = folder / "state/state.pt", 0
    for delay in np.random.default_rng(0).uniform(0, 0.3, size=3):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if state.exists() and (changed := state.stat().st_mtime_ns) != seen:
                seen = changed
                time.sleep(delay)
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert state.exists() and not (folder / "run/model.safetensors").exists()
        seen = state.stat().st_mtime_ns
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    whole = tmp_path / "whole"
    whole.mkdir()
    # A process of its own as well: what other tests left set in this one (threads, precision) rounds differently.
    command[-1] = str(whole)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "going on from" not in done.stderr
    assert equal(weights(whole), weights(folder))


@pytest.mark.parametrize("preload", [True, False])
def test_the_whole_way_from_files_to_a_run(world, tmp_path, preload):
    from stores.schema import SCHEMA_VERSION

    for name in ("visual", "panoptic"):
        write_store(tmp_path / name, getattr(world, name), SCHEMA_VERSION)
    settings = {
        "seed": 2,
        "model": {"embed_size": 16, "spatial_size": 4, "pool_position_size": 4, "pool_hidden_size": 4},
        "text": {"pretrained": None, "layers": 1, "hidden_size": 16, "intermediate_size": 16, "max_tokens": 16},
        "training": {"epochs": 1, "batch_size": 40, "preload": preload, "captions_per_image": 4, "text_lr_factor": 1.0},
    }
    command.train_run(
        run="files", images=world.images, captions=world.captions, visual=tmp_path / "visual",
        panoptic=tmp_path / "panoptic", settings=Recipe(**settings), output=tmp_path / "run", state=tmp_path / "state",
        device="cpu",
    )  # fmt: skip
    network, config, tokenizer = load_run(tmp_path / "run")
    assert network.image.sizes.img_dim == 16 and config["training_captions"] == 24 * 4
    assert config["features"]["visual"] == world.visual.attributes
    assert config["settings"]["training"]["batch_size"] == 40 and config["settings"]["training"]["margin"] == 0.2
    assert "dog" in tokenizer.vocabulary and config["run"] == "files"
    assert config["kept"]["step"] == 2


def test_command_line_reports_mistakes_before_it_starts(tmp_path):
    def call(settings, images="none.parquet", **more):
        options = {"run": "r", "images": images, "captions": images, "visual": images, "panoptic": images}
        options |= {"settings": settings, "output": tmp_path / "run", "state": tmp_path / "state"} | more
        command.main([part for key, value in options.items() for part in (f"--{key}", str(value))])

    with pytest.raises(UserError, match="training.epoch: unknown key; did you mean 'epochs'"):
        call('{"training": {"epoch": 3}}')
    with pytest.raises(UserError, match="training.learning_rate: -1 - "):
        call('{"training": {"learning_rate": -1}}')
    with pytest.raises(UserError, match="none.parquet does not exist"):
        call("{}")
    done = subprocess.run(
        [sys.executable, "-m", "model.train", "--settings", '{"seed": "x"}', *sum(([f"--{k}", "n"] for k in
         ("run", "images", "captions", "visual", "panoptic", "output", "state")), [])],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


OPTIMISERS = """
import sys, torch
from model.settings import Training
from model.training.optimizer import new_optimizer, set_rate
class Network(torch.nn.Linear):
    def parameter_groups(self, factor):
        return [{"params": [self.weight], "factor": 1.0}, {"params": [self.bias], "factor": factor}]
def weights(recipe):
    torch.manual_seed(0)
    network = Network(4, 4)
    optimizer = new_optimizer(network, recipe)
    for step in range(6):
        set_rate(optimizer, recipe, epoch=0, step=step)
        optimizer.zero_grad()
        network(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    return torch.cat([network.weight.flatten(), network.bias]).tolist()
kinds = ("adamw", "adam")
print([weights(Training(lr_warmup_steps=3, optimizer=kind)) for kind in kinds])
print("torch._dynamo" in sys.modules)
print([weights(Training(lr_warmup_steps=3, optimizer=kind, compile=True)) for kind in kinds])
"""


def test_the_optimiser_is_torchs_own_without_its_compiler():
    done = subprocess.run([sys.executable, "-c", OPTIMISERS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain, imported, of_torch = done.stdout.splitlines()
    assert plain == of_torch and imported == "False"
