"""Trains a run: index + stores -> run folder (weights, config, vocabulary, history, TensorBoard).

Command: `python -m model.train --run-name NAME --images P --captions P --visual STORE --panoptic STORE --settings JSON
--output RUN_DIR --state STATE_DIR --threads T --device auto --processes N`. What the network does not need (a panoptic
store) may be left out.

Several processes train as one, started by `--processes`, by `srun`, by torchrun or by `accelerate launch`: the batch, its
statistics and its hardest negatives are those of one process, and so is the result but for rounding (and for other
dropout masks).

Killed at any moment and started again with the same settings and data, training goes on from the last saved step (see
`model.training`); so does one that has ended, when `epochs` is raised.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.console import UserError, run_cli
from core.devices import claim_gpu, full_float32, pick_device
from core.files import digest_json, read_mapping
from core.machine import join_slurm_step, slurm_tasks_here
from core.messages import validated
from model.runs import imported_by_hand
from model.settings import Recipe, kind_needs
from model.training.processes import disconnect, launch, launched, one_of_several, processes_here
from stores.places import Location, location

if TYPE_CHECKING:
    from model.data import Features, Split
    from model.settings import Training
    from stores.reader import Store


def train_run(
    *,
    run: str,
    images: Path,
    captions: Path,
    visual: Location,
    panoptic: Location | None,
    settings: Recipe,
    output: Path,
    state: Path,
    device: str = "auto",
) -> None:
    """Everything between the command line and `train`: read index and stores, build the network, train it.

    Arguments as on the command line.
    """
    import torch

    from model.build import new_network
    from model.data import Features, TrainingPairs, read_split
    from model.odd_captions import odd_captions
    from model.pretrained import provenance
    from model.training.loop import train
    from model.training.mishaps import memory_explained
    from stores import open_store

    recipe, seed = settings.training, settings.seed or 0
    panoptic = panoptic if "panoptic" in kind_needs(settings.model.kind) else None
    stores = {place: open_store(place) for place in (visual, panoptic) if place is not None}
    features = Features(*stores.values())

    def split(name: str, first: int | None = None) -> Split:
        return read_split(
            images, captions, name, captions_per_image=recipe.captions_per_image, dropped=features.dropped, first=first
        )

    training = split(settings.train_split)
    validation = None if settings.val_split is None else split(settings.val_split, settings.val_images)
    features.check_index(training.index_digest)
    used = np.concatenate([part.image_rows for part in (training, validation) if part is not None])
    contents = [_contents(place, store, used) for place, store in stores.items()]
    with memory_explained("preloading the features", recipe.batch_size, recipe.precision):
        _preload(features, training, validation, recipe)

    torch.manual_seed(seed)
    network, tokenizer = new_network(
        settings, training.captions, img_dim=features.img_dim, num_categories=features.num_categories
    )
    pairs = TrainingPairs(
        training,
        features,
        tokenizer,
        batch_size=recipe.batch_size,
        token_drop=recipe.token_drop,
        token_drop_varies=recipe.token_drop_varies,
        word_augmentation=recipe.word_augmentation,
        keep_last=recipe.keep_last_batch,
        seed=seed,
    )
    for note in odd_captions(tokenizer, training.captions, training.caption_ids, pairs.pieces):
        print(f"note: training: {note}", flush=True)
    pretrained = {"pretrained": provenance(settings.text.pretrained)} if settings.text.pretrained else {}
    train(
        network,
        pairs,
        recipe,
        output=output,
        state=state,
        run=run,
        config={
            "settings": settings.model_dump() | {"seed": seed},
            "features": features.describe(),
            "training_images": len(training.image_rows),
            "training_captions": len(training.captions),
            **pretrained,
        },
        contents=digest_json(contents) if all(contents) else "",
        origin={"text": settings.text.model_dump(), **pretrained},
        validation=validation,
        seed=seed,
        device=device,
    )


def _contents(place: Location, store: Store, rows: np.ndarray) -> str:
    """Digest of what the features of some rows were made from; of all there are where the store does not know it, "" where nobody does."""
    from stores.receipts import recorded_contents

    if all(known := store.content_hashes(rows)):
        return digest_json(known)
    return recorded_contents(place, store.attributes.get("plan", {}))


def _preload(features: Features, split: Split, validation: Split | None, recipe: Training) -> None:
    """Hold the rows of both splits in memory, if told to or if they fit."""
    rows = np.concatenate([split.image_rows, *([validation.image_rows] if validation is not None else [])])
    # Every process of this machine holds its own copy.
    size = features.nbytes(len(np.unique(rows))) * processes_here()
    if recipe.preload is True or (recipe.preload == "auto" and size <= recipe.preload_gib * 2**30):
        features.preload(rows)
    elif recipe.preload == "auto":
        limit = recipe.preload_gib
        print(f"features of {size / 2**30:.1f} GiB exceed preload_gib {limit}: reading per batch", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m model.train", description=__doc__.splitlines()[0])
    # torchrun takes a `--run` behind the module's name for an abbreviation of its own options.
    parser.add_argument("--run-name", "--run", dest="run", required=True, help="name of the run")
    parser.add_argument("--images", required=True, type=Path, help="images.parquet of the index")
    parser.add_argument("--captions", required=True, type=Path, help="captions.parquet of the index")
    parser.add_argument("--visual", required=True, type=location, help="store of visual tokens (regions or grids)")
    parser.add_argument("--panoptic", type=location, help="store of panoptic features, for networks that need it")
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
    arguments = parser.parse_args(argv)
    if arguments.processes < 1 or (launched() and arguments.processes not in (1, processes_here())):
        raise UserError(
            f"--processes {arguments.processes}: must be at least 1, and is not needed when torchrun starts them"
        )
    settings = validated(Recipe, read_mapping(arguments.settings, flag="--settings"), place="--settings")
    for line in settings.missing():
        raise UserError(f"--settings: {line}")
    if imported_by_hand(arguments.output):
        raise UserError(
            f"--output: {arguments.output} holds a run that somebody put there, which a training would overwrite; train into "
            "another folder"
        )
    if arguments.panoptic is None and "panoptic" in kind_needs(settings.model.kind):
        raise UserError(f"--panoptic: missing; the network {settings.model.kind} reads panoptic features")
    for path in (arguments.images, arguments.captions, arguments.visual, arguments.panoptic):
        if isinstance(path, Path) and not path.exists():
            raise UserError(f"{path} does not exist; make the index and the features first")
    if arguments.processes > 1 and not launched():
        launch("model.train", argv, arguments.processes, arguments.threads)

    if arguments.device == "auto" and not launched():
        claim_gpu()
    import torch

    # Each task of a Slurm step has processors of its own.
    torch.set_num_threads(max(1, arguments.threads * slurm_tasks_here() // processes_here()))
    device, _ = pick_device(arguments.device)
    full_float32(device)
    train_run(
        run=arguments.run,
        images=arguments.images,
        captions=arguments.captions,
        visual=arguments.visual,
        panoptic=arguments.panoptic,
        settings=settings,
        output=arguments.output,
        state=arguments.state,
        device=device,
    )
    disconnect()


if __name__ == "__main__":
    join_slurm_step()
    run_cli((lambda: one_of_several(main)) if launched() else main)
