"""The training loop: epochs of steps, validation, saved states.

Killed at any moment and called again with the same arguments, training goes on from the last saved step; on a CPU it ends
with the weights of an uninterrupted run, as every batch and every dropout mask depends on seed and step alone. So does a
training that has ended, called again with more epochs.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from core.console import UserError, progress
from core.scores import DIRECTIONS
from model.data import Batch, Split, TrainingPairs
from model.embed import embed_captions, embed_images, score_pairs
from model.losses import triplet_loss_from_scores
from model.network import RetrievalNetwork
from model.parallel import everyones, gather_batch, process, processes
from model.ranking import ranks_from_embeddings, ranks_from_similarity, retrieval_scores
from model.settings import Training
from model.training.mishaps import diverged, memory_explained
from model.training.optimizer import new_optimizer, set_rate
from model.training.processes import across_processes, connect
from model.training.record import Record
from model.training.request import ended_on_request
from model.training.state import Progress, SavedState, facts


def train(
    network: RetrievalNetwork,
    pairs: TrainingPairs,
    recipe: Training,
    *,
    output: str | os.PathLike[str],
    state: str | os.PathLike[str],
    run: str = "run",
    config: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    contents: str = "",
    validation: Split | None = None,
    seed: int = 0,
    device: str = "auto",
    stop_after: int | None = None,
) -> dict[str, Any] | None:
    """Train a network and write its run folder.

    Called by several connected processes with the same arguments, they train as one and process 0 writes the files.

    Args:
        network: with the weights to start from.
        pairs: training pairs, in batches of the size to train with.
        recipe: its numbers are explained where they are declared.
        output: run folder. state: folder of the resume state; it stays when training has ended, to go on with more epochs.
        run: name, for messages and the config. config: recorded in the run's config.
        origin: where the first weights come from, besides seed and shape: from another origin a state is not gone on with.
        contents: digest of all features; with the same ones a finished training that the workflow asks for again is taken as it is.
        validation: split whose rSum picks the weights that are kept; without one the last weights are kept.
        seed: of dropout. device: "auto", "cpu" or "cuda".
        stop_after: end early, as if killed, after this many steps in all (to test resuming).

    Returns:
        The last row of the history, or None if stopped early.

    Raises:
        UserError: the loss is not finite, memory ran out, the device is not there, or there are more processes than
            pairs in a batch.
    """
    place = connect(device, batch_size=pairs.batch_size)
    network.to(place)
    optimizer = new_optimizer(network, recipe)
    saved = SavedState(
        state, facts(network, pairs, validation, recipe, seed=seed, origin=origin), run=run, contents=contents
    )
    found = saved.load(network, optimizer, recipe, validates=validation is not None)
    now = found or Progress()
    if recipe.compile:
        network.compile_layers()
    model = across_processes(network)
    record = Record(output, now, recipe.epochs, fresh=found is None, run=run) if process() == 0 else None

    with ended_on_request(lambda: saved.write(network, optimizer, now), run) as request:
        while now.epoch < recipe.epochs:
            started, hardest = time.perf_counter() - now.seconds, now.epoch >= recipe.all_negatives_epochs
            model.train()
            for batch in _batches(pairs, now, recipe, run=run, pin=place.type == "cuda"):
                rate = set_rate(optimizer, recipe, epoch=now.epoch, step=now.step)
                # Dropout then depends on seed, step and process alone, so a resumed run draws the same masks.
                torch.manual_seed(((seed << 32) + (process() << 26) + now.step) % 2**63)
                try:
                    with memory_explained("a training step", pairs.batch_size, recipe.precision):
                        loss = step(model, network, optimizer, batch, recipe, hardest=hardest)
                except FloatingPointError as error:
                    raise diverged(str(error), run, now, pairs, batch, saved) from None
                now.step, now.position = now.step + 1, now.position + 1
                now.loss_sum += loss
                now.seconds = time.perf_counter() - started
                if record:
                    record.step(now, loss / len(batch.captions), rate)
                    if now.step % recipe.save_every == 0 and now.position < len(pairs):
                        saved.write(network, optimizer, now)
                if now.step == stop_after:
                    if record:
                        record.close()
                    return None
                request.heed()

            rate = set_rate(optimizer, recipe, epoch=now.epoch, step=now.step - 1)
            row = {"epoch": now.epoch + 1, "step": now.step, "lr": rate}
            row["train_loss"] = now.loss_sum / pairs.per_epoch
            if validation is not None and recipe.validates_after(now.epoch + 1):
                with request.at_once(), memory_explained("validation", pairs.batch_size, recipe.precision):
                    scores = validate(network, pairs, validation, run=run, workers=recipe.workers)
                row |= {f"{way}_{key}": value for way in DIRECTIONS for key, value in scores[way].items()}
                row["rsum"] = scores["rsum"]
                if now.best_rsum is None or scores["rsum"] > now.best_rsum:
                    now.best_epoch, now.best_rsum = now.epoch, scores["rsum"]
                    if record:
                        saved.write_best(network, now)
            row["seconds"] = time.perf_counter() - started
            now.next_epoch(row)
            if record:
                saved.write(network, optimizer, now)
                record.epoch(now)

    if record:
        record.close()
        saved.publish(output, network, pairs.tokenizer, now, config=config)
    return now.history[-1]


def step(
    model: torch.nn.Module,
    network: RetrievalNetwork,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    recipe: Training,
    *,
    hardest: bool,
) -> float:
    """One optimiser step; the loss, summed over the pairs of the whole batch. `model` is `network` across processes.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the weights are as they were.
    """
    same_image = batch.images[:, None] == batch.images[None, :] if recipe.mask_same_image else None
    optimizer.zero_grad()
    with torch.autocast(network.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        images, captions = model(*batch.inputs())
    scores = network.similarity(*_whole(images, batch), *_whole(captions, batch))
    loss = triplet_loss_from_scores(scores, recipe.margin, hardest, same_image)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip or math.inf)
    # Read together: a device is waited for once a step.
    value, norm = torch.stack((loss.detach(), norm.detach())).tolist()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss became {value}")
    if not math.isfinite(norm):
        raise FloatingPointError(f"the loss is {value:g}, but its gradient became {norm}")
    optimizer.step()
    return value


def validate(
    network: RetrievalNetwork, pairs: TrainingPairs, split: Split, *, run: str, workers: int
) -> dict[str, Any]:
    """The retrieval scores of a split. Processes share the encoding; process 0 ranks and tells the others."""
    network.eval()
    if network.scores == "pairs":
        similarity = score_pairs(network, pairs.features, split.image_rows, pairs.tokenizer, split.captions)
        return retrieval_scores(*ranks_from_similarity(similarity, split.caption_image))
    images = embed_images(network, pairs.features, split.image_rows, workers=workers)
    captions = embed_captions(network, pairs.tokenizer, split.captions)
    scores = None
    if process() == 0:
        try:
            scores = retrieval_scores(*ranks_from_embeddings(images, captions, split.caption_image))
        except ValueError as error:
            raise UserError(f"run {run}: validation on split {split.name!r} failed: {error}") from error
    return everyones(scores)[0]


def _batches(pairs: TrainingPairs, now: Progress, recipe: Training, *, run: str, pin: bool) -> Iterable[Batch]:
    """What is left of the epoch, this process's part of it; process 0 shows how far it is."""
    batches = pairs.batches(
        now.epoch,
        start=now.position,
        workers=recipe.workers,
        process=process(),
        processes=processes(),
        pin=pin,
    )
    if process():
        return batches
    desc = f"{run}: epoch {now.epoch + 1}/{recipe.epochs}"
    return progress(batches, total=len(pairs) - now.position, desc=desc, unit="batch")


def _whole(side: Tensor | tuple[Tensor, ...], batch: Batch) -> list[Tensor]:
    """What an encoder gives for the whole batch, from what it gave in each process."""
    return [gather_batch(part, len(batch.images)) for part in (side if isinstance(side, tuple) else (side,))]
