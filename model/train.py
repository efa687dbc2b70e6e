"""Trains a run: index + stores -> run folder (weights, config, vocabulary, history, TensorBoard).

Command: `python -m model.train --run-name NAME --images P --captions P --visual STORE --panoptic STORE --settings JSON
--output RUN_DIR --state STATE_DIR --threads T --device auto --processes N`.

Several processes train as one, started by `--processes`, by `srun`, by torchrun or by `accelerate launch`: the batch, its
statistics and its hardest negatives are those of one process, and so is the result but for rounding (and for other
dropout masks).

The resume state lies outside the run folder, because a workflow manager deletes the outputs of a job that failed.
Killed at any moment and started again with the same settings and data, training goes on from the last saved step; on a
CPU it ends with the weights of an uninterrupted run, as every batch and every dropout mask depends on seed and step
alone.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import math
import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.console import UserError, progress, run_cli
from core.devices import claim_gpu
from core.files import atomic_path, digest_json, read_mapping
from core.machine import join_slurm_step, slurm_tasks_here
from stores.places import Location, location

if TYPE_CHECKING:
    import torch

    from model.data import Batch, Features, Split, TrainingPairs
    from model.network import ThreeSHNet
    from model.tokenizer import CaptionTokenizer

STATE_VERSION = 2
STATE_FILE, HISTORY_FILE, TENSORBOARD = "state.pt", "history.csv", "tensorboard"
HISTORY_COLUMNS = (
    *("epoch", "step", "lr", "train_loss", "seconds"),
    *(f"{way}_{key}" for way in ("i2t", "t2i") for key in ("r1", "r5", "r10", "medr", "meanr")),
    "rsum",
)
_LOG_STEPS = 20  # between TensorBoard points of the training loss


@dataclass
class _State:
    """Where training stands; saved whole, with the weights and the optimiser."""

    epoch: int = 0  # the epoch that is running or about to start
    position: int = 0  # batches of it that are done
    step: int = 0  # batches done in all
    loss_sum: float = 0.0  # over the pairs of this epoch so far
    seconds: float = 0.0  # spent in this epoch so far
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_rsum: float | None = None


def train(
    network: ThreeSHNet,
    pairs: TrainingPairs,
    *,
    output: str | os.PathLike[str],
    state: str | os.PathLike[str],
    run: str = "run",
    config: Mapping[str, Any] | None = None,
    validation: Split | None = None,
    epochs: int = 25,
    learning_rate: float = 5e-4,
    text_lr_factor: float = 0.1,
    lr_decay_epochs: Sequence[int] = (15,),
    lr_decay_factor: float = 0.1,
    lr_warmup_steps: int = 0,
    weight_decay: float = 1e-4,
    gradient_clip: float = 2.0,
    margin: float = 0.2,
    all_negatives_epochs: int = 1,
    mask_same_image: bool = False,
    precision: str = "fp32",
    validate_every: int = 1,
    save_every: int = 200,
    workers: int = 0,
    compile: bool = False,
    seed: int = 0,
    device: str = "auto",
    stop_after: int | None = None,
) -> dict[str, Any] | None:
    """Train a network and write its run folder.

    Called by several connected processes with the same arguments, they train as one and process 0 writes the files.

    Args:
        network: with the weights to start from.
        pairs: training pairs; their batch size is the batch size.
        output: run folder. state: folder of the resume state; removed when training has ended.
        run: name, for messages and the config. config: recorded in the run's config; a change of it starts afresh.
        validation: split scored every `validate_every` epochs (and after the last), whose rSum picks the weights that
            are kept; without one the last weights are kept.
        epochs, learning_rate, text_lr_factor (of BERT), weight_decay: AdamW. lr_decay_epochs: at the start of each of
            these epochs (from 0) the rate is multiplied by lr_decay_factor; lr_warmup_steps: linear warm-up from zero.
        gradient_clip: largest norm of the gradient, 0 for none.
        margin, all_negatives_epochs, mask_same_image: the loss; all negatives count in the first so many epochs, the
            hardest ones afterwards; captions of one image are each other's negatives unless masked.
        precision: "fp32", or "bf16" for autocast. compile: use torch.compile for BERT's layers.
        save_every: steps between two saved states (one is also saved after each epoch).
        workers: threads that prepare batches ahead of time.
        seed: of dropout. device: "auto", "cpu" or "cuda".
        stop_after: end early, as if killed, after this many steps in all (to test resuming).

    Returns:
        The last row of the history, or None if stopped early.

    Raises:
        UserError: the loss is not finite, memory ran out, the device is not there, or there are more processes than
            pairs in a batch.
    """
    import torch

    from model import parallel

    if pairs.batch_size < 2:
        raise UserError(f"training.batch_size is {pairs.batch_size}; batch statistics and negatives need at least 2")
    accelerator = _accelerator(device, precision)
    process, processes = parallel.process(), parallel.processes()
    if pairs.batch_size < processes:
        raise UserError(
            f"training.batch_size is {pairs.batch_size}, but there are {processes} processes and each needs a pair; "
            f"start at most {pairs.batch_size}"
        )
    main, on_gpu = process == 0, accelerator.device.type == "cuda"
    output, state_dir = Path(output), Path(state)
    recipe = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "text_lr_factor": text_lr_factor,
        "lr_decay_epochs": list(lr_decay_epochs),
        "lr_decay_factor": lr_decay_factor,
        "lr_warmup_steps": lr_warmup_steps,
        "weight_decay": weight_decay,
        "gradient_clip": gradient_clip,
        "margin": margin,
        "all_negatives_epochs": all_negatives_epochs,
        "mask_same_image": mask_same_image,
        "precision": precision,
        "validate_every": validate_every,
        "seed": seed,
    }
    fingerprint = _fingerprint(network, pairs, validation, config, recipe)
    network.to(accelerator.device)
    optimizer = accelerator.prepare(_optimizer(network, learning_rate, text_lr_factor, weight_decay))
    now = _load_state(state_dir, fingerprint, network, optimizer, run=run)
    if now is None:
        now = _State()
        if main:
            shutil.rmtree(output / TENSORBOARD, ignore_errors=True)
    if compile:
        # BERT's layers are what there is to fuse: the image side is large matrix products, a sort and an attention. Layer by
        # layer, because all of them then share what was compiled for one.
        for layer in network.text.bert.encoder["layer"]:
            layer.compile(dynamic=True)
    model = _across_processes(network) if processes > 1 else network
    writer = None
    if main:
        if processes > 1:
            print(f"{run}: {processes} processes train as one", file=sys.stderr)
        writer = _writer(output / TENSORBOARD, now.step)
        _remove_leftovers(output)

    while now.epoch < epochs:
        started, hardest = time.perf_counter() - now.seconds, now.epoch >= all_negatives_epochs
        model.train()
        batches = pairs.batches(
            now.epoch, start=now.position, workers=workers, process=process, processes=processes, pin=on_gpu
        )
        if main:
            desc = f"{run}: epoch {now.epoch + 1}/{epochs}"
            batches = progress(batches, total=len(pairs) - now.position, desc=desc, unit="batch")
        for batch in batches:
            decays = sum(now.epoch >= epoch for epoch in lr_decay_epochs)
            warmup = min(1.0, (now.step + 1) / lr_warmup_steps) if lr_warmup_steps else 1.0
            rate = learning_rate * warmup * lr_decay_factor**decays
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            # Dropout then depends on seed, step and process alone, so a resumed run draws the same masks.
            torch.manual_seed(((seed << 32) + (process << 26) + now.step) % 2**63)
            try:
                with _explained_memory_errors("a training step", pairs.batch_size, precision):
                    loss = _step(
                        accelerator,
                        model,
                        optimizer,
                        batch.to(accelerator.device),
                        margin=margin,
                        hardest=hardest,
                        mask_same_image=mask_same_image,
                        gradient_clip=gradient_clip,
                    )
            except FloatingPointError as error:
                raise _diverged(str(error), run, now, pairs, batch, state_dir) from None
            now.step, now.position = now.step + 1, now.position + 1
            now.loss_sum += loss
            now.seconds = time.perf_counter() - started
            if writer and now.step % _LOG_STEPS == 0:
                writer.add_scalar("train/loss", loss / pairs.batch_size, now.step)
                writer.add_scalar("train/lr", rate, now.step)
            if main and now.step % save_every == 0 and now.position < len(pairs):
                _save_state(state_dir, fingerprint, network, optimizer, now)
            if now.step == stop_after:
                if writer:
                    writer.close()
                return None

        row = {"epoch": now.epoch + 1, "step": now.step, "lr": rate}
        row["train_loss"] = now.loss_sum / (len(pairs) * pairs.batch_size)
        last = now.epoch + 1 == epochs
        if validation is not None and ((now.epoch + 1) % validate_every == 0 or last):
            with _explained_memory_errors("validation", pairs.batch_size, precision):
                scores = _validate(network, pairs, validation, run=run, workers=workers)
            row |= {f"{way}_{key}": value for way in ("i2t", "t2i") for key, value in scores[way].items()}
            row["rsum"] = scores["rsum"]
            if now.best_rsum is None or scores["rsum"] > now.best_rsum:
                now.best_epoch, now.best_rsum = now.epoch, scores["rsum"]
                if main:
                    _save_weights(state_dir / f"best-{now.epoch}.safetensors", network)
        row["seconds"] = time.perf_counter() - started
        now.history.append(row)
        now.epoch, now.position, now.loss_sum, now.seconds = now.epoch + 1, 0, 0.0, 0.0
        if writer:
            _save_state(state_dir, fingerprint, network, optimizer, now)
            _write_history(output / HISTORY_FILE, now.history)
            for key, value in row.items():
                if key not in ("epoch", "step"):
                    writer.add_scalar(f"epoch/{key}", value, now.step)
            writer.flush()
            print(_epoch_line(run, row, now, epochs), file=sys.stderr)

    if writer:
        writer.close()
        _write_history(output / HISTORY_FILE, now.history)
        _publish(output, state_dir, network, pairs.tokenizer, now, run=run, config=config)
        # The state first: killed in between, what is left must not look like a state whose best weights are lost.
        (state_dir / STATE_FILE).unlink(missing_ok=True)
        shutil.rmtree(state_dir, ignore_errors=True)
    return now.history[-1]


def _step(
    accelerator: Any,
    model: Any,
    optimizer: Any,
    batch: Batch,
    *,
    margin: float,
    hardest: bool,
    mask_same_image: bool,
    gradient_clip: float,
) -> float:
    """One optimiser step; the loss, summed over the pairs of the whole batch.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the weights are as they were.
    """
    import torch

    from model.losses import triplet_loss
    from model.parallel import gather_batch

    same_image = batch.images[:, None] == batch.images[None, :] if mask_same_image else None
    optimizer.zero_grad()
    with accelerator.autocast():
        images, captions = model(*batch.inputs())
    images, captions = (gather_batch(emb, len(batch.images)) for emb in (images, captions))
    loss = triplet_loss(images, captions, margin, hardest, same_image)
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), gradient_clip or math.inf)
    # Read together: a device is waited for once a step.
    value, norm = torch.stack((loss.detach(), norm.detach())).tolist()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss became {value}")
    if not math.isfinite(norm):
        raise FloatingPointError(f"the loss is {value:g}, but its gradient became {norm}")
    optimizer.step()
    return value


def _across_processes(network: ThreeSHNet) -> Any:
    """The network, its gradients averaged over the processes; all start from the weights of process 0."""
    from torch.nn.parallel import DistributedDataParallel

    # Wrapped here and not by Accelerate, whose wrapper would move the lengths to the device. Running statistics are the
    # same in every process, so nothing has to pass them on.
    with warnings.catch_warnings():
        # Newer versions of torch want another name for `broadcast_buffers`, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def _validate(network: ThreeSHNet, pairs: TrainingPairs, split: Split, *, run: str, workers: int) -> dict[str, Any]:
    """The retrieval scores of a split. Processes share the encoding; process 0 ranks and tells the others."""
    from model.embed import embed_captions, embed_images
    from model.parallel import everyones, process
    from model.ranking import ranks_from_embeddings, retrieval_scores

    network.eval()
    images = embed_images(network, pairs.features, split.image_rows, workers=workers)
    captions = embed_captions(network, pairs.tokenizer, split.captions)
    scores = None
    if process() == 0:
        try:
            scores = retrieval_scores(*ranks_from_embeddings(images, captions, split.caption_image))
        except ValueError as error:
            raise UserError(f"run {run}: validation on split {split.name!r} failed: {error}") from error
    return everyones(scores)[0]


def _accelerator(device: str, precision: str) -> Any:
    import torch
    from accelerate import Accelerator

    local, cuda = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: torch finds no CUDA device; use --device auto or cpu")
    if device != "cpu" and cuda and local > torch.cuda.device_count():
        raise UserError(
            f"started as {local} processes, but torch finds {torch.cuda.device_count()} CUDA devices on this machine; "
            "start one process per device (and let each see all of them), or use --device cpu"
        )
    # Left to itself Accelerate would not connect processes without a GPU.
    on_cpu = device == "cpu" or (not cuda and int(os.environ.get("WORLD_SIZE", "1")) > 1)
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if precision == "bf16" else "no")


def _optimizer(
    network: ThreeSHNet, learning_rate: float, text_lr_factor: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW over the parameters; those of BERT learn at `text_lr_factor` times the rate, as in the reference."""
    import torch

    bert = {id(parameter) for parameter in network.text.bert.parameters()}
    without_effect = {id(bias) for bias in _biases_without_effect(network)}
    trained = [parameter for parameter in network.parameters() if id(parameter) not in without_effect]
    groups = [
        {"params": [p for p in trained if id(p) not in bert], "lr": learning_rate, "factor": 1.0},
        {
            "params": [p for p in trained if id(p) in bert],
            "lr": learning_rate * text_lr_factor,
            "factor": text_lr_factor,
        },
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)


def _biases_without_effect(network: ThreeSHNet) -> list[torch.nn.Parameter]:
    """Biases whose shift is taken back: by the batch norm behind them, or (BERT's keys) by the softmax.

    Their gradient is zero but for rounding, which AdamW would blow up to full steps, other ones for every number of
    processes or threads. So they stay as they are.
    """
    from model.layers import MLP

    image = network.image
    return [
        *(module.hidden.bias for module in image.modules() if isinstance(module, MLP)),
        image.spatial.map_conv.bias,
        image.spatial.fusion_mlp.output.bias,  # it reaches nothing but the first layer of the fusion
        *(layer.attention.self["key"].bias for layer in network.text.bert.encoder["layer"]),
    ]


def _fingerprint(
    network: ThreeSHNet,
    pairs: TrainingPairs,
    validation: Split | None,
    config: Mapping[str, Any] | None,
    recipe: Mapping[str, Any],
) -> str:
    """Digest of everything that a saved state must agree with for training to go on from it."""
    from model.checkpoint import network_config

    def of(split: Split | None) -> Any:
        return split and [split.index_digest, split.image_ids, split.captions]

    return digest_json(
        {
            "state_version": STATE_VERSION,
            "network": network_config(network),
            "config": dict(config or {}),
            "features": pairs.features.describe(),
            "splits": [of(pairs.split), of(validation)],
            "pairs": [pairs.batch_size, pairs.token_drop, pairs.word_augmentation, pairs.seed],
            "vocabulary": pairs.tokenizer.vocabulary,
            "recipe": dict(recipe),
        }
    )


def _save_state(directory: Path, fingerprint: str, network: ThreeSHNet, optimizer: Any, now: _State) -> None:
    import torch

    content = {
        "fingerprint": fingerprint,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        **now.__dict__,
    }
    with atomic_path(directory / STATE_FILE) as temporary:
        torch.save(content, temporary)
    # Only now may the weights that the previous state called best go.
    for path in directory.glob("best-*.safetensors"):
        if path.name != f"best-{now.best_epoch}.safetensors":
            path.unlink(missing_ok=True)


def _load_state(directory: Path, fingerprint: str, network: ThreeSHNet, optimizer: Any, *, run: str) -> _State | None:
    """Go on from the saved state, if there is one of these settings and data; every process reads it."""
    import torch

    from model.parallel import everyones, process

    path = directory / STATE_FILE
    content, stale = None, False
    if path.exists():
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling raises nearly anything on a broken file
            raise UserError(
                f"run {run}: cannot read the state {path}: {error}; remove {directory} to start afresh"
            ) from error
        stale = content.pop("fingerprint", None) != fingerprint
    # Nothing is removed before every process has read.
    found = everyones((None if content is None else content["step"], stale))
    if len(set(found)) > 1:
        raise UserError(
            f"run {run}: the processes find different states in {directory} (steps {[step for step, _ in found]}); "
            "the folder must lie on a file system that they share"
        )
    if process() == 0:
        _remove_leftovers(directory)
        if stale:
            print(f"{run}: the state in {directory} is of other settings or data; starting afresh", file=sys.stderr)
            shutil.rmtree(directory)
    if content is None or stale:
        return None
    network.load_state_dict(content.pop("model"))
    optimizer.load_state_dict(content.pop("optimizer"))
    now = _State(**content)
    if process() == 0:
        print(f"{run}: going on from epoch {now.epoch + 1}, step {now.step}", file=sys.stderr)
    return now


def _remove_leftovers(directory: Path) -> None:
    """Delete the temporary files of a run that was killed while it wrote."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _save_weights(path: Path, network: ThreeSHNet) -> None:
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({key: value.cpu().contiguous() for key, value in network.state_dict().items()}, temporary)


def _publish(
    output: Path,
    state_dir: Path,
    network: ThreeSHNet,
    tokenizer: CaptionTokenizer,
    now: _State,
    *,
    run: str,
    config: Mapping[str, Any] | None,
) -> None:
    from safetensors.torch import load_file

    from model.checkpoint import save_run

    kept = now.epoch - 1
    if now.best_epoch is not None:
        kept = now.best_epoch
        network.load_state_dict(load_file(state_dir / f"best-{kept}.safetensors"))
    row = now.history[kept]
    recorded = {"run": run, **(config or {}), "kept": {key: row[key] for key in HISTORY_COLUMNS if key in row}}
    save_run(output, network, tokenizer, config=recorded)


def _write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, HISTORY_COLUMNS, restval="")
        table.writeheader()
        table.writerows(history)


def _writer(directory: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory), purge_step=step + 1)


def _epoch_line(run: str, row: Mapping[str, Any], now: _State, epochs: int) -> str:
    line = f"{run}: epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, {row['seconds']:.1f} s"
    if "rsum" in row:
        line += f", rSum {row['rsum']:.1f} (best {now.best_rsum:.1f} in epoch {now.best_epoch + 1})"
    return line


def _diverged(what: str, run: str, now: _State, pairs: TrainingPairs, batch: Batch, state_dir: Path) -> UserError:
    """What to say of a loss or gradient that is not finite: where it was, and which images are to blame if any are."""
    import numpy as np

    split, images = pairs.split, np.unique(batch.images.numpy())
    found = pairs.features.rows(split.image_rows[images])
    bad = ~np.all(
        [np.isfinite(found[name]).reshape(len(images), -1).all(axis=1) for name in ("features", "seg_features")], axis=0
    )
    if bad.any():
        advice = f"The stores hold NaN or infinite features for {_some(split.image_ids[i] for i in images[bad])}: extract them again"
    else:
        advice = "The features of its images are finite: lower training.learning_rate, or use training.precision fp32"
    if (state_dir / STATE_FILE).exists():
        advice += f". The last good state is kept in {state_dir}"
    return UserError(
        f"run {run}: {what} at step {now.step + 1} (epoch {now.epoch + 1}, batch {now.position + 1} of {len(pairs)}: "
        f"captions {_some(split.caption_ids[i] for i in batch.captions)} of images "
        f"{_some(split.image_ids[i] for i in batch.images.tolist())}). {advice}"
    )


def _some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names of many."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@contextlib.contextmanager
def _explained_memory_errors(place: str, batch_size: int, precision: str) -> Iterator[None]:
    """Turns running out of memory, on a GPU or a CPU, into a message that says what to lower."""
    import torch

    from model.parallel import processes

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in text for words in _MEMORY_WORDS):
            raise
        bf16 = " set training.precision: bf16," if precision == "fp32" else ""
        raise UserError(
            f"out of memory in {place}: lower training.batch_size (now {batch_size}) or text.max_tokens,{bf16} train in "
            f"more processes (now {processes()}; each takes its part of the batch), or set training.preload: false "
            f"({text.partition(chr(10))[0] or type(error).__name__})"
        ) from error


# As the allocators of torch for CPUs (on Linux and Windows) and CUDA's libraries word it.
_MEMORY_WORDS = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def build_text(
    captions: Sequence[str], *, embed_size: int, pool_position_size: int, pool_hidden_size: int, **text: Any
) -> tuple[Any, CaptionTokenizer]:
    """The text encoder and its tokenizer from a run's `text` settings (see `model.settings.TEXT`).

    With `pretrained` both are a published BERT's; otherwise the vocabulary is made from `captions`, those of the
    training split, and the encoder starts from random weights.
    """
    from model.bert import Bert, BertConfig, load_pretrained
    from model.encoders import TextEncoder
    from model.tokenizer import CaptionTokenizer, train_vocabulary

    if text["pretrained"]:
        bert, path, lowercase = load_pretrained(text["pretrained"], dropout=text["dropout"])
        limit = min(text["max_tokens"], bert.config.max_positions)
        tokenizer = CaptionTokenizer.from_file(path, lowercase=lowercase, max_tokens=limit)
        if len(tokenizer.vocabulary) > bert.config.vocabulary_size:
            raise UserError(
                f"text.pretrained: {path} has {len(tokenizer.vocabulary)} pieces, more than the "
                f"{bert.config.vocabulary_size} that the weights know"
            )
    else:
        vocabulary = train_vocabulary(
            captions, vocabulary_size=text["vocabulary_size"], min_frequency=text["min_frequency"]
        )
        tokenizer = CaptionTokenizer(vocabulary, max_tokens=text["max_tokens"])
        bert = Bert(
            BertConfig(
                vocabulary_size=len(vocabulary),
                hidden_size=text["hidden_size"],
                layers=text["layers"],
                heads=text["heads"],
                intermediate_size=text["intermediate_size"],
                max_positions=text["max_tokens"],
                dropout=text["dropout"],
            )
        )
    encoder = TextEncoder(bert, embed_size, pool_position_size=pool_position_size, pool_hidden_size=pool_hidden_size)
    return encoder, tokenizer


def train_run(
    *,
    run: str,
    images: Path,
    captions: Path,
    visual: Location,
    panoptic: Location,
    settings: Mapping[str, Any],
    output: Path,
    state: Path,
    device: str = "auto",
) -> None:
    """Everything between the command line and `train`: read index and stores, build the network, train it.

    Args:
        settings: complete, see `model.settings.complete`.
        The others: as on the command line.
    """
    import torch

    from model.data import Features, TrainingPairs, read_split
    from model.encoders import ImageEncoder
    from model.network import ThreeSHNet
    from stores import open_store

    model, text, training = settings["model"], settings["text"], dict(settings["training"])
    stores = open_store(visual), open_store(panoptic)
    dropped = set(stores[0].dropped) | set(stores[1].dropped)
    limit = training.pop("captions_per_image")
    train_split = read_split(images, captions, settings["train_split"], captions_per_image=limit, dropped=dropped)
    validation = None
    if settings["val_split"] is not None:
        validation = read_split(images, captions, settings["val_split"], captions_per_image=limit, dropped=dropped)
    features = Features(*stores, index_digest=train_split.index_digest)
    with _explained_memory_errors("preloading the features", training["batch_size"], training["precision"]):
        _preload(features, train_split, validation, training.pop("preload"), training.pop("preload_gib"))

    torch.manual_seed(settings["seed"])
    encoder = ImageEncoder(features.img_dim, num_categories=features.num_categories, **model)
    sizes = {key: model[key] for key in ("embed_size", "pool_position_size", "pool_hidden_size")}
    text_encoder, tokenizer = build_text(train_split.captions, **sizes, **text)
    pairs = TrainingPairs(
        train_split,
        features,
        tokenizer,
        batch_size=training.pop("batch_size"),
        token_drop=training.pop("token_drop"),
        word_augmentation=training.pop("word_augmentation"),
        seed=settings["seed"],
    )
    train(
        ThreeSHNet(encoder, text_encoder),
        pairs,
        output=output,
        state=state,
        run=run,
        config={
            "settings": dict(settings),
            "features": features.describe(),
            "training_images": len(train_split.image_rows),
            "training_captions": len(train_split.captions),
        },
        validation=validation,
        seed=settings["seed"],
        device=device,
        **training,
    )


def _preload(features: Features, split: Split, validation: Split | None, preload: bool | str, limit_gib: float) -> None:
    """Hold the rows of both splits in memory, if told to or if they fit."""
    import numpy as np

    rows = np.concatenate([split.image_rows, *([validation.image_rows] if validation is not None else [])])
    # Every process of this machine holds its own copy.
    size = features.nbytes(len(np.unique(rows))) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if preload is True or (preload == "auto" and size <= limit_gib * 2**30):
        features.preload(rows)
    elif preload == "auto":
        print(f"features of {size / 2**30:.1f} GiB exceed preload_gib {limit_gib}: reading per batch", file=sys.stderr)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m model.train", description=__doc__.splitlines()[0])
    # torchrun takes a `--run` behind the module's name for an abbreviation of its own options.
    parser.add_argument("--run-name", "--run", dest="run", required=True, help="name of the run")
    parser.add_argument("--images", required=True, type=Path, help="images.parquet of the index")
    parser.add_argument("--captions", required=True, type=Path, help="captions.parquet of the index")
    parser.add_argument("--visual", required=True, type=location, help="store of visual tokens (regions or grids)")
    parser.add_argument("--panoptic", required=True, type=location, help="store of panoptic features")
    parser.add_argument(
        "--settings", required=True, help="inline JSON or a file: train_split, val_split, seed, model, ..."
    )
    parser.add_argument("--output", required=True, type=Path, help="run folder to write")
    parser.add_argument("--state", required=True, type=Path, help="folder of the resume state")
    parser.add_argument(
        "--threads", type=int, default=1, help="of all processes on this machine (of a Slurm task) together"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--processes", type=int, default=1, help="to train in, on this machine; several machines: srun or torchrun"
    )
    arguments = parser.parse_args()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if arguments.processes < 1 or (_launched() and arguments.processes not in (1, local)):
        raise UserError(
            f"--processes {arguments.processes}: must be at least 1, and is not needed when torchrun starts them"
        )

    from model.settings import complete

    settings = complete(read_mapping(arguments.settings, flag="--settings"))
    for path in (arguments.images, arguments.captions, arguments.visual, arguments.panoptic):
        if isinstance(path, Path) and not path.exists():
            raise UserError(f"{path} does not exist; make the index and the features first")
    if arguments.processes > 1 and not _launched():
        _launch(arguments.processes, arguments.threads)

    if arguments.device == "auto" and "LOCAL_RANK" not in os.environ:
        claim_gpu()
    import torch

    from core.devices import matmul_precision

    # Each task of a Slurm step has processors of its own.
    torch.set_num_threads(max(1, arguments.threads * slurm_tasks_here() // local))
    if arguments.device == "cpu" or not torch.cuda.is_available():
        torch.set_float32_matmul_precision(matmul_precision("cpu"))
    train_run(
        run=arguments.run,
        images=arguments.images,
        captions=arguments.captions,
        visual=arguments.visual,
        panoptic=arguments.panoptic,
        settings=settings,
        output=arguments.output,
        state=arguments.state,
        device=arguments.device,
    )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _launched() -> bool:
    """Whether this is one of the processes that torchrun or `accelerate launch` started."""
    return "LOCAL_RANK" in os.environ


def _launch(processes: int, threads: int) -> None:
    """Become the launcher of so many processes with this command line; does not return."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads // processes)))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "--"]
    os.execv(sys.executable, [sys.executable, *launcher, "model.train", *sys.argv[1:]])


def _one_of_several() -> None:
    """`main` of a launched process. It ends at once on any error, lest the others wait for it, and with its launcher."""

    def end_with(launcher: int) -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        main()
    except UserError as error:
        print(f"error: process {os.environ['RANK']}: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    else:
        return
    sys.stderr.flush()
    # Not sys.exit: that would wait for threads, and for connections to processes that wait for this one.
    os._exit(1)


if __name__ == "__main__":
    join_slurm_step()
    run_cli(_one_of_several if _launched() else main)
