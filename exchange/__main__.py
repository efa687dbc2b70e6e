"""Imports a shard of foreign features, or exports a dataset: `python -m exchange import | export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalog.layout import CAPTIONS_PER_IMAGE
from core.console import run_cli
from core.features import Feature
from core.flags import add_mapping, add_shard, add_stores, command
from exchange.per_image import FORMATS, export_images
from stores.job import check_recipe, job_index
from stores.places import Location

_DEV_IMAGES = 1000  # of 5,000 captions


def import_features(
    *,
    feature: Feature,
    source: Mapping[str, Any],
    images: Path,
    store: Location,
    shard: int,
    shards: int,
    recipe: int | None,
    **place: Any,
) -> None:
    """Import one shard."""
    from exchange.importing import RECIPE, import_shard, open_reader

    check_recipe(recipe, RECIPE, "exchange/importing.py")
    rows = job_index(images, store=store, shard=shard, shards=shards)
    reader = open_reader(feature, source, rows)
    for note in reader.notes:
        print(f"note: {note}")
    receipt = import_shard(feature, reader, rows, store=store, shard=shard, shards=shards, **place)
    rounding = receipt["rounding"]
    print(
        f"{feature} shard {shard + 1}/{shards}: {receipt['images']} images, "
        f"{len(receipt['failures'])} of them without features; float16 rounded {rounding['rounded']} of "
        f"{rounding['values']} values, by {rounding['error']:.3g} at most"
    )


def export_features(*, output: Path, formats: Sequence[str], **options: Any) -> None:
    """Export a dataset."""
    from exchange.exporting import export_dataset

    if "npy" in formats:
        written = export_dataset(output=output, **options)
        print(f"{output}: " + ", ".join(f"{prefix} {images} images" for prefix, images in written.items()))
        if 0 < written.get("dev", _DEV_IMAGES) < _DEV_IMAGES:
            print(
                f"note: dev has {written['dev']} images. SCAN, VSE-infinity and 3SHNet take its length for 5,000 captions "
                "whatever the file holds, and end in an IndexError at their first validation; in their data loader, set the "
                f"length of `dev` to {written['dev'] * CAPTIONS_PER_IMAGE}"
            )
    if others := [name for name in formats if name != "npy"]:
        output.mkdir(parents=True, exist_ok=True)
        images = export_images(formats=others, index=options["index"], visual=options["visual"], output=output)
        for name in others:
            print(f"{output}: {images[name]} images as {name}" if name in images else f"{name}: not of this feature")


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("exchange", __doc__)
    commands = parser.add_subparsers(metavar="command", required=True)
    importing = commands.add_parser("import", help="files of another program -> one shard of a store; then stores.seal")
    importing.set_defaults(function=import_features)
    add_shard(importing, one_by_default=True)
    add_mapping(importing, "--source", "format and options", required=True)
    importing.add_argument("--recipe", type=int, help="the importer's RECIPE, as the workflow read it")
    exporting = commands.add_parser("export", help="stores -> files as other programs read them")
    exporting.set_defaults(function=export_features)
    exporting.add_argument("--index", required=True, type=Path, help="folder of images.parquet and captions.parquet")
    add_stores(exporting)
    exporting.add_argument("--output", required=True, type=Path, help="folder")
    add_mapping(exporting, "--names", "file prefix by split (default: %(default)s)", default='{"val": "dev"}')
    exporting.add_argument("--formats", nargs="+", choices=("npy", *FORMATS), default=["npy"], help="(default: npy)")
    exporting.add_argument("--class-order", choices=("upsnet", "coco"), default="upsnet")
    exporting.add_argument("--seg-maps", choices=("raw", "standardised"), default="raw")
    exporting.add_argument("--repeat-images", action="store_true", help="every image five times")
    options = vars(parser.parse_args(argv))
    options.pop("function")(**options)


if __name__ == "__main__":
    run_cli(main)
