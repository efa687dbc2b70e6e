"""Embeddings of one split by one run: each image once, each caption once. Of a run that scores pairs, those scores.

The features must come from the extractor that the run was trained with; a data set of its own, such as another one to
score on without training again, is fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.console import UserError, run_cli
from core.devices import full_float32, keep_freed_memory, open_device
from core.flags import add_device, add_index, add_stores, command
from evaluation.embeddings import Embeddings, write_embeddings
from evaluation.scores import PairScores, Scored, write_scores
from model.runs import check_same_extractor
from stores.places import Location


def encode(
    *,
    run_dir: Path,
    images: Path,
    captions: Path,
    split: str,
    visual: Location,
    panoptic: Location | None,
    batch_size: int = 128,
    device: str = "cpu",
    precision: str = "fp32",
) -> Scored:
    """Embed the images and captions of a split; if the run's network scores pairs, score all of them.

    Images that were dropped from a store or have no caption are left out.

    Args:
        run_dir: see `model.runs.load_run`. images, captions: the index. split: its name.
        visual, panoptic: sealed stores of that index; the latter where the run's network needs it. batch_size: images at a time. device: a torch device.
        precision: "fp32", or "bf16": bfloat16 where torch's autocast takes it. Embeddings are float32 either way.

    Raises:
        UserError: no such split, stores of another index or of another extractor than the run's, or a run without a
            vocabulary.
    """
    from model.data import Features, read_split
    from model.embed import embed_captions, embed_images, score_pairs
    from model.odd_captions import odd_captions
    from model.runs import load_run
    from stores import open_store

    network, config, tokenizer = load_run(run_dir)
    run = str(config.get("run") or Path(run_dir).name)
    if "panoptic" not in network.needs:
        panoptic = None
    elif panoptic is None:
        raise UserError(f"--panoptic: missing; the network of run {run} reads panoptic features")
    features = Features(open_store(visual), panoptic and open_store(panoptic))
    items = read_split(images, captions, split, dropped=sorted(features.dropped))
    features.check_index(items.index_digest)
    check_same_extractor(config.get("features"), features.describe(), run=run)
    features.check_network(network, run)
    if tokenizer is None:
        raise UserError(
            f"run {run} in {run_dir} has no vocabulary, so it cannot read captions: import it again with --vocabulary"
        )
    for note in odd_captions(tokenizer, items.captions, items.caption_ids):
        print(f"note: {note}", flush=True)
    import torch

    network = network.to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        if network.scores == "pairs":
            similarity = score_pairs(
                network, features, items.image_rows, tokenizer, items.captions, images_at_once=batch_size
            )
        else:
            image_embeddings = embed_images(network, features, items.image_rows, batch_size=batch_size)
            caption_embeddings = embed_captions(network, tokenizer, items.captions)
    described = {
        "caption_image": items.caption_image.astype(np.int32),
        "image_ids": np.array(items.image_ids, dtype=str),
        "caption_ids": np.array(items.caption_ids, dtype=str),
        "attributes": {
            "run": run,
            "split": split,
            "precision": precision,
            "index_digest": items.index_digest,
            "skipped_images": items.skipped,
            "features": features.describe(),
        },
    }
    if network.scores == "pairs":
        if not np.isfinite(similarity.sum(axis=1, dtype=np.float64)).all():
            raise UserError(
                f"run {run} gives scores that are not finite: its training has diverged, or the input features hold NaN"
            )
        return PairScores(similarity, **described)
    embeddings = Embeddings(image_embeddings, caption_embeddings, **described)
    for name in ("images", "captions"):
        bad = np.flatnonzero(~np.isfinite(getattr(embeddings, name)).all(axis=1))
        if len(bad):
            ids = embeddings.image_ids if name == "images" else embeddings.caption_ids
            raise UserError(
                f"run {run} gives embeddings that are not finite for {len(bad)} {name}, the first is "
                f"{str(ids[bad[0]])!r}: its training has diverged, or the input features hold NaN"
            )
    return embeddings


def encode_split(*, run: Path, output: Path, batch_size: int, device: str, threads: int | None, **options: Any) -> None:
    """`encode` on the device of this name, written to `output`."""
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {batch_size}")

    from model.runs import read_config

    read_config(run)  # a wrong folder should not cost the seconds that importing torch takes

    opened, _ = open_device(device, threads=threads)
    full_float32(opened)
    if opened == "cpu":
        keep_freed_memory()
    found = encode(run_dir=run, batch_size=batch_size, device=opened, **options)
    if isinstance(found, PairScores):
        write_scores(output, found)
    else:
        write_embeddings(output, found)
    skipped = found.attributes["skipped_images"]
    print(
        f"{output}: {len(found.image_ids)} images, {len(found.caption_ids)} captions"
        + (f"; {skipped} images left out as dropped or without a caption" if skipped else "")
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("evaluation.encode", __doc__)
    parser.add_argument("--run", required=True, type=Path, help="run folder")
    add_index(parser)
    parser.add_argument("--split", required=True)
    add_stores(parser)
    parser.add_argument("--output", required=True, type=Path, help="Zarr group to write")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    add_device(parser)
    encode_split(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
