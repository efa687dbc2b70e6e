"""Builds what the rest of the workflow starts from: `python -m catalog.run render | unpack | index`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.archives import unpack_images
from catalog.folder import Annotations, read_folder
from catalog.index import CAPTIONS_SCHEMA, describe_images, write_index
from catalog.karpathy import read_karpathy
from catalog.precomputed import read_precomputed
from core.console import UserError, run_cli
from core.flags import add_index, add_mapping, command


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


def render(*, dataset: str, settings: dict[str, Any], output: Path) -> None:
    """Render a scenes dataset."""
    from catalog.scenes_dataset import write_dataset

    write_dataset(output, seed=settings["seed"], splits=settings["splits"], style=settings["style"])


def unpack(*, dataset: str, archive: Path, output: Path) -> None:
    """Unpack a dataset's images."""
    count = unpack_images(archive, output)
    print(f"{dataset}: {count} images of {archive}")


def index(
    *,
    dataset: str,
    settings: dict[str, Any],
    images: Path,
    captions: Path,
    annotations: Path | None,
    unpacked: Path | None,
    threads: int,
) -> None:
    """Write images.parquet and captions.parquet of a dataset."""
    source = settings["source"]
    if source == "scenes":
        from catalog.scenes_dataset import read_dataset

        found: Annotations = read_dataset(annotations)
    elif source == "folder":
        found = read_folder(
            str(unpacked or settings["images"]),
            settings.get("captions"),
            settings.get("splits"),
            settings.get("seed", 0),
            split_files=settings.get("split_files"),
            missing_images=settings.get("missing_images", "fail"),
            missing_captions=settings.get("missing_captions", "fail"),
        )
    elif source == "karpathy":
        found = read_karpathy(
            settings["annotations"],
            settings["images"],
            settings.get("member"),
            settings.get("splits"),
            settings.get("missing_images", "fail"),
            settings.get("missing_captions", "fail"),
        )
    elif source == "precomputed":
        found, table = read_precomputed(settings["folder"], settings["splits"], settings["features"], threads)
    else:
        raise UserError(
            f"datasets.{dataset}.source: unknown source {source!r}; choose scenes, folder, karpathy or precomputed"
        )
    if source != "precomputed":
        table = describe_images(found.image_ids, found.paths, found.splits, threads * 2)
    for note in found.notes:
        print(f"note: {note}")
    texts = captions_table(found)
    write_index(images, captions, table, texts)
    counts: dict[str, int] = {}
    for name in found.splits:
        counts[name] = counts.get(name, 0) + 1
    bad = sum(e is not None for e in table.column("error").to_pylist())
    print(
        f"{dataset}: {table.num_rows} images ({', '.join(f'{k} {v}' for k, v in sorted(counts.items()))}), "
        f"{texts.num_rows} captions" + (f", {bad} files with a broken header" if bad else "")
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("catalog.run", __doc__)
    commands = parser.add_subparsers(metavar="command", required=True)
    for function in (render, unpack, index):
        own = commands.add_parser(function.__name__, help=function.__doc__)
        own.set_defaults(function=function)
        own.add_argument("--dataset", required=True)
        if function is not unpack:
            add_mapping(own, "--settings", "the dataset's settings", required=True)
        if function is not index:
            own.add_argument("--output", required=True, type=Path, help="folder; an earlier one is replaced")
    commands.choices["unpack"].add_argument("--archive", required=True, type=Path, help="zip file")
    own = commands.choices["index"]
    own.add_argument("--annotations", type=Path, help="folder that `render` made (source scenes)")
    own.add_argument("--unpacked", type=Path, help="folder that `unpack` made (source folder, images in a zip)")
    add_index(own)
    own.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = vars(parser.parse_args(argv))
    options.pop("function")(**options)


if __name__ == "__main__":
    run_cli(main)
