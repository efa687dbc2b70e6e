"""Builds what the rest of the workflow starts from: `python -m catalog.run render | unpack | index`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pyarrow as pa

from catalog.archives import unpack_images
from catalog.folder import Annotations, read_folder
from catalog.index import CAPTIONS_SCHEMA, describe_images, write_index
from catalog.karpathy import read_karpathy
from catalog.precomputed import read_precomputed
from core.console import UserError, run_cli


def captions_table(annotations: Annotations) -> pa.Table:
    """The captions table of the index."""
    return pa.Table.from_pydict(
        {
            "caption_id": annotations.caption_ids,
            "image_id": annotations.caption_images,
            "text": annotations.texts,
        },
        schema=CAPTIONS_SCHEMA,
    )


def render(args: argparse.Namespace) -> None:
    """Render a scenes dataset."""
    from catalog.scenes_dataset import write_dataset

    settings = json.loads(args.settings)
    write_dataset(args.output, seed=settings["seed"], splits=settings["splits"], style=settings["style"])


def unpack(args: argparse.Namespace) -> None:
    """Unpack a dataset's images."""
    count = unpack_images(args.archive, args.output)
    print(f"{args.dataset}: {count} images of {args.archive}")


def index(args: argparse.Namespace) -> None:
    """Write images.parquet and captions.parquet of a dataset."""
    settings = json.loads(args.settings)
    source = settings["source"]
    if source == "scenes":
        from catalog.scenes_dataset import read_dataset

        annotations: Annotations = read_dataset(args.annotations)
    elif source == "folder":
        annotations = read_folder(
            str(args.unpacked or settings["images"]),
            settings.get("captions"),
            settings.get("splits"),
            settings.get("seed", 0),
            split_files=settings.get("split_files"),
            missing_images=settings.get("missing_images", "fail"),
            missing_captions=settings.get("missing_captions", "fail"),
        )
    elif source == "karpathy":
        annotations = read_karpathy(
            settings["annotations"],
            settings["images"],
            settings.get("member"),
            settings.get("splits"),
            settings.get("missing_images", "fail"),
            settings.get("missing_captions", "fail"),
        )
    elif source == "precomputed":
        annotations, images = read_precomputed(
            settings["folder"], settings["splits"], settings["features"], args.threads
        )
    else:
        raise UserError(
            f"datasets.{args.dataset}.source: unknown source {source!r}; choose scenes, folder, karpathy or precomputed"
        )
    if source != "precomputed":
        images = describe_images(annotations.image_ids, annotations.paths, annotations.splits, args.threads * 2)
    for note in annotations.notes:
        print(f"note: {note}")
    captions = captions_table(annotations)
    write_index(args.images, args.captions, images, captions)
    counts: dict[str, int] = {}
    for name in annotations.splits:
        counts[name] = counts.get(name, 0) + 1
    bad = sum(e is not None for e in images.column("error").to_pylist())
    print(
        f"{args.dataset}: {images.num_rows} images ({', '.join(f'{k} {v}' for k, v in sorted(counts.items()))}), "
        f"{captions.num_rows} captions" + (f", {bad} files with a broken header" if bad else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m catalog.run", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("render", "unpack", "index"):
        command = commands.add_parser(name)
        command.add_argument("--dataset", required=True)
        if name == "unpack":
            command.add_argument("--archive", required=True, type=Path, help="zip file")
            command.add_argument("--output", required=True, type=Path, help="folder; an earlier one is replaced")
            continue
        command.add_argument("--settings", required=True, help="the dataset's settings as JSON")
    commands.choices["render"].add_argument("--output", required=True, type=Path)
    command = commands.choices["index"]
    command.add_argument("--annotations", type=Path, help="folder that `render` made (source scenes)")
    command.add_argument("--unpacked", type=Path, help="folder that `unpack` made (source folder, images in a zip)")
    command.add_argument("--images", required=True, type=Path)
    command.add_argument("--captions", required=True, type=Path)
    command.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    {"render": render, "unpack": unpack, "index": index}[args.command](args)


if __name__ == "__main__":
    run_cli(main)
