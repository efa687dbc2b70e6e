"""Checks sealed stores: `python -m stores.verify` reads every file and says which are damaged and how to mend them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catalog.index import ImageRows, read_image_rows
from core import layout
from core.console import UserError, run_cli
from core.files import write_json
from core.flags import add_images, add_receipts, add_store, command
from core.machine import snakemake_command, snakemake_target
from stores.arrays import ShardedArray, open_array
from stores.places import Location, place_of
from stores.plan import ShardPlan
from stores.reader import open_store
from stores.schema import described_arrays
from stores.seal import REDO_COMMAND, damaged_files, read_parts, redo_with, store_attributes
from stores.writer import encode_metadata, without_members


def verify(
    *,
    store: Location,
    receipts: Sequence[Path],
    images: ImageRows,
    redo_command: str = REDO_COMMAND,
    seal_command: str | None = None,
) -> dict[str, int]:
    """Read all of a sealed store and compare it with its receipts; nothing is changed.

    Args:
        store, receipts, images, redo_command: as for `seal.seal`.
        seal_command: how the store is sealed again, for messages.

    Returns:
        `files` and `bytes` of the store.

    Raises:
        UserError: the store is not sealed; or a list of all files that are missing, damaged or too many, with array, chunk
            and the command that makes them again.
    """
    opened = open_store(store)
    place = place_of(store)
    plan = ShardPlan(len(images.ids), len(receipts))
    seal_again = "seal the store again with: " + (
        seal_command or f"{snakemake_command()} --force {snakemake_target(layout.seal_of(store))}"
    )

    def explain(key: str) -> str:
        name, _, index = key.split("/")[:3]
        try:
            array = open_array(place, name)
            found = array.damage(int(index)) if isinstance(array, ShardedArray) else []
        except UserError as error:
            return str(error)
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return f"array {name!r}: " + (", ".join(found[:3]) + more if found else "readable, but other data")

    redo = redo_with(redo_command, receipts)
    contents, problems = read_parts(receipts, plan, images.digest, redo)
    problems += damaged_files(place, contents, plan, redo, explain)
    others = {
        shard for shard, content in contents.items() if content["fingerprint"] != opened.attributes["fingerprint"]
    }
    problems += [f"shard {shard}: was made again after the seal; {seal_again}" for shard in sorted(others)]
    keys = place.keys()
    if len(contents) == plan.shards and not others:
        arrays = described_arrays(contents[0]["store"])
        metadata = encode_metadata(arrays, plan, images.ids, store_attributes(contents), images.content_hashes)
        for key, data in sorted(metadata.items()):
            if key not in keys:
                problems.append(f"{place}/{key} is missing; {seal_again}")
            elif (found := place.read(key)) != data and not _sealed_before(key, found, data):
                problems.append(f"{place}/{key} is not what was written; {seal_again}")
        wanted = {key for content in contents.values() for key in content["files"]} | metadata.keys()
        problems += [f"{place}/{key} is no part of the store; {seal_again}" for key in keys if key not in wanted]
    if problems:
        raise UserError(f"{store} is damaged:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return {"files": len(keys), "bytes": sum(place.size(key) or 0 for key in keys)}


def _sealed_before(key: str, found: bytes, wanted: bytes) -> bool:
    """Whether a root's metadata are as they should be but for those of its arrays, which it did not hold once."""
    try:
        return key == "zarr.json" and json.loads(found) == without_members(wanted)
    except ValueError:
        return False


def verify_store(*, images: Path, report: Path | None, **options: Any) -> None:
    """`verify` of a store of the index with this images.parquet; what was found in a line and, if wanted, as JSON."""
    found = verify(images=read_image_rows(images), **options)
    print(f"{options['store']} is whole: {found['files']} files, {found['bytes'] / 1e6:.1f} MB")
    if report:
        write_json(report, found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("stores.verify", __doc__)
    add_store(parser)
    add_receipts(parser)
    add_images(parser)
    parser.add_argument("--report", type=Path, help="JSON file to write when nothing is wrong")
    verify_store(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
