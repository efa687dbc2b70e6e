"""Imports a shard of foreign features, or exports a dataset: `python -m exchange import | export`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from catalog.index import read_image_rows
from core.console import UserError, run_cli
from core.files import read_mapping
from stores.places import location
from stores.plan import ShardPlan
from stores.schema import COMPRESSIONS, FEATURES
from stores.writer import check_store_path


def import_command(args: argparse.Namespace) -> None:
    """Import one shard."""
    from exchange.importing import RECIPE, import_shard, open_reader

    if args.recipe not in (None, RECIPE):
        raise UserError(
            f"--recipe {args.recipe} is not the RECIPE {RECIPE} of exchange/importing.py: the program changed under a "
            "running workflow; start it again"
        )
    check_store_path(args.store)
    images = read_image_rows(args.images)
    ShardPlan(len(images.ids), args.shards).rows(args.shard)
    source = read_mapping(args.source, flag="--source")
    content = import_shard(
        args.feature,
        open_reader(args.feature, source, images),
        images,
        store=args.store,
        receipt=args.receipt,
        shard=args.shard,
        shards=args.shards,
        compression=args.compression,
    )
    rounding = content["rounding"]
    print(
        f"{args.feature} shard {args.shard + 1}/{args.shards}: {content['images']} images, "
        f"{len(content['failures'])} of them without features; float16 rounded {rounding['rounded']} of "
        f"{rounding['values']} values, by {rounding['error']:.3g} at most"
    )


def export_command(args: argparse.Namespace) -> None:
    """Export a dataset."""
    from exchange.exporting import export_dataset

    written = export_dataset(
        index=args.index,
        visual=args.visual,
        panoptic=args.panoptic,
        output=args.output,
        names=read_mapping(args.names, flag="--names"),
        class_order=args.class_order,
        seg_maps=args.seg_maps,
        repeat_images=args.repeat_images,
    )
    print(f"{args.output}: " + ", ".join(f"{prefix} {images} images" for prefix, images in written.items()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m exchange", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("import", help="files of another program -> one shard of a store; then stores.seal")
    command.add_argument("--feature", required=True, choices=FEATURES)
    command.add_argument("--source", required=True, help="format and options: JSON, or a JSON or YAML file")
    command.add_argument("--images", required=True, type=Path, help="the index' images.parquet")
    command.add_argument("--shard", type=int, default=0, help="0-based")
    command.add_argument("--shards", type=int, default=1, help="how many shards the store is made in")
    command.add_argument("--store", required=True, type=location, help="folder or s3:// address ending in .zarr")
    command.add_argument("--receipt", required=True, type=Path, help="JSON file, written last")
    command.add_argument("--recipe", type=int, help="the importer's RECIPE, as the workflow read it")
    command.add_argument("--compression", choices=COMPRESSIONS, default=COMPRESSIONS[0], help="(default: %(default)s)")
    command = commands.add_parser("export", help="stores -> .npy and .txt as SCAN, VSE-infinity and 3SHNet read them")
    command.add_argument("--index", required=True, type=Path, help="folder of images.parquet and captions.parquet")
    command.add_argument("--visual", required=True, type=location, help="store of regions or grids")
    command.add_argument("--panoptic", type=location, help="store of panoptic features, for 3SHNet's three arrays")
    command.add_argument("--output", required=True, type=Path, help="folder")
    command.add_argument(
        "--names", default='{"val": "dev"}', help="file prefix by split, as JSON (default: %(default)s)"
    )
    command.add_argument("--class-order", choices=("upsnet", "coco"), default="upsnet")
    command.add_argument("--seg-maps", choices=("raw", "standardised"), default="raw")
    command.add_argument("--repeat-images", action="store_true", help="every image five times")
    args = parser.parse_args(argv)
    {"import": import_command, "export": export_command}[args.command](args)


if __name__ == "__main__":
    run_cli(main)
