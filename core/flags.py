"""What commands share on the command line: the same words and the same help everywhere.

A command is its function: `main(argv)` puts the flags together and hands them over by name.

    def main(argv: Sequence[str] | None = None) -> None:
        parser = command("package.module", __doc__)
        add_index(parser)
        add_device(parser)
        function(**vars(parser.parse_args(argv)))
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from core.features import COMPRESSIONS, FEATURES
from core.files import location, read_mapping

_MAPPING = "JSON, or a JSON or YAML file"


def command(name: str, doc: str, **options: Any) -> argparse.ArgumentParser:
    """The parser of `python -m {name}`; the first line of `doc`, its module's, says what it does."""
    return argparse.ArgumentParser(prog=f"python -m {name}", description=doc.splitlines()[0], **options)


def add_mapping(parser: Any, flag: str, what: str, **options: Any) -> None:
    """A flag that takes settings, read into a dict."""
    parser.add_argument(flag, type=partial(read_mapping, flag=flag), help=f"{what}: {_MAPPING}", **options)


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes a whole number of at least `least`, and of `most` at most."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < least or (most is not None and int(text) > most):
            limit = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {limit}")
        return int(text)

    return read


def add_images(parser: argparse.ArgumentParser) -> None:
    """`images`: half of the index."""
    parser.add_argument("--images", required=True, type=Path, help="images.parquet of the index")


def add_index(parser: argparse.ArgumentParser) -> None:
    """`images` and `captions`: the index."""
    add_images(parser)
    parser.add_argument("--captions", required=True, type=Path, help="captions.parquet of the index")


def add_store(parser: argparse.ArgumentParser) -> None:
    """`store`: one that is written or checked."""
    parser.add_argument("--store", required=True, type=location, help="folder or s3:// address ending in .zarr")


def add_stores(parser: argparse.ArgumentParser) -> None:
    """`visual` and `panoptic`: sealed stores that are read."""
    parser.add_argument("--visual", required=True, type=location, help="store of regions or grids")
    parser.add_argument("--panoptic", type=location, help="store of panoptic features, where they are used")


def add_receipts(parser: argparse.ArgumentParser) -> None:
    """`receipts`: of all shards of a store."""
    parser.add_argument("--receipts", required=True, nargs="+", type=Path, help="one per shard, in order")


def add_shard(parser: argparse.ArgumentParser, *, one_by_default: bool = False) -> None:
    """`feature`, `images`, `store`, `receipt`, `shard`, `shards`, `compression`, `wanted`: what every producer of rows takes.

    Args:
        one_by_default: without `--shard` and `--shards` the store is made in one.
    """
    parser.add_argument("--feature", required=True, choices=FEATURES)
    add_images(parser)
    add_store(parser)
    parser.add_argument("--receipt", required=True, type=Path, help="JSON file, written last")
    needed = {"required": not one_by_default, "type": int}
    parser.add_argument("--shard", default=0, help="0-based", **needed)
    parser.add_argument("--shards", default=1, help="how many shards the store is made in", **needed)
    parser.add_argument("--compression", choices=COMPRESSIONS, default=COMPRESSIONS[0], help="(default: %(default)s)")
    add_mapping(parser, "--wanted", "how many numbers a visual token must have, by what takes so many", default={})


def add_results(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`results`: the root of the tree in `core.layout`."""
    parser.add_argument("--results", required=required, help="the results folder")


def add_device(parser: argparse.ArgumentParser, *, threads: int | None = None) -> None:
    """`device` and `threads`, for `core.devices.open_device`."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add_threads(parser, threads)


def add_threads(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """`threads` of torch."""
    shown = "torch's" if default is None else default
    parser.add_argument("--threads", type=int, default=default, help=f"of the network on the CPU (default: {shown})")
