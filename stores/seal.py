"""Seals a store: `python -m stores.seal` checks every part, then makes it openable, or says all that is wrong."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from catalog.index import ImageRows, listing, read_image_rows
from core.console import UserError, progress, run_cli
from core.files import atomic_path
from core.flags import add_images, add_receipts, add_store, command
from core.machine import snakemake_command
from stores.former import drop_formers
from stores.places import Location, Place, place_of
from stores.plan import ShardPlan
from stores.receipts import read_receipt
from stores.schema import SCHEMA_VERSION, described_arrays, shard_key
from stores.writer import check_store_path, unseal, write_metadata

REDO_COMMAND = snakemake_command().replace("{", "{{").replace("}", "}}") + " --force {receipt}"


def seal(
    *,
    store: Location,
    receipts: Sequence[Path],
    images: ImageRows,
    on_bad_image: str = "fail",
    redo_command: str = REDO_COMMAND,
    marker: Path | None = None,
) -> dict[str, Any]:
    """Verify all parts of `store` and seal it; safe to repeat. Files below `store` that are no part of it are removed.

    Args:
        store: folder or address ending in `.zarr`. receipts: one path per shard job, in order, whether or not there is a file.
        images: of the index; without content hashes no later extraction can take rows over (see `stores.former`).
        on_bad_image: "fail" refuses a store with images that could not be read, "drop" lists them in its attribute
            `dropped`.
        redo_command: how to make one shard again; `{receipt}` and `{shard}` are filled in.
        marker: a copy of the root metadata, written last, for who waits for the seal and does not see the store's place.

    Returns:
        The store's root attributes.

    Raises:
        UserError: listing every missing, foreign, changed or failed part, and the command that makes it again. The
            store stays unsealed.
    """
    check_store_path(store)
    unseal(store)
    place = place_of(store)
    plan = ShardPlan(len(images.ids), len(receipts))
    redo = redo_with(redo_command, receipts)
    contents, problems = read_parts(receipts, plan, images.digest, redo)
    problems += _mixtures(contents, receipts, redo)
    problems += damaged_files(place, contents, plan, redo)
    failures = [failure for content in contents.values() for failure in content["failures"]]
    if failures and on_bad_image == "fail":
        problems += [f"image {f['image_id']!r} ({f['path']}): {f['error']}" for f in failures]
        problems.append(
            f"{len(failures)} unusable image(s): mend or remove them and start again, or set features.on_bad_image: "
            "drop to go on without them"
        )
    elif len(failures) == plan.images:
        problems.append(f"none of the {plan.images} images could be read, the first because: {failures[0]['error']}")
    if problems:
        raise UserError(f"{store} cannot be sealed:\n" + "\n".join(f"  - {problem}" for problem in problems))

    arrays = described_arrays(contents[0]["store"])
    _remove_foreign(place, {key for content in contents.values() for key in content["files"]})
    attributes = store_attributes(contents)
    root = write_metadata(store, arrays, plan, images.ids, attributes, images.content_hashes)
    if marker is not None:
        with atomic_path(marker) as temporary:
            temporary.write_bytes(root)
    drop_formers(store)
    return attributes


def redo_with(command: str, receipts: Sequence[Path]) -> Callable[[int], str]:
    """A function that says how a shard is made again; `{receipt}` and `{shard}` of `command` are filled in."""

    def redo(shard: int) -> str:
        filled = command.replace("{receipt}", shlex.quote(str(receipts[shard])))
        return "make it again with: " + filled.replace("{shard}", str(shard))

    return redo


def read_parts(
    receipts: Sequence[Path], plan: ShardPlan, index_digest: str, redo: Callable[[int], str]
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Receipts by shard, and what is wrong with the others."""
    problems: list[str] = []
    contents: dict[int, dict[str, Any]] = {}
    for shard, path in enumerate(receipts):
        try:
            content = read_receipt(path)
            shards = content["store"]["plan"]["shards"]
            if (content["shard"], shards) != (shard, plan.shards):
                raise ValueError(f"is of shard {content['shard']} of {shards}, not {shard} of {plan.shards}")
            if content["store"]["index_digest"] != index_digest:
                raise ValueError("was made from another version of the index")
            rows = plan.rows(shard)
            if content["rows"] != [rows.start, rows.stop]:
                raise ValueError(f"has rows {content['rows']}, not {[rows.start, rows.stop]}")
        except FileNotFoundError:
            problems.append(f"shard {shard}: {path} is missing; {redo(shard)}")
        except ValueError as error:
            problems.append(f"shard {shard}: {path} {error}; {redo(shard)}")
        else:
            contents[shard] = content
    return contents, problems


def store_attributes(contents: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Root attributes of the store that all shards' receipts describe."""
    description = contents[0]["store"]
    failures = [failure for _, content in sorted(contents.items()) for failure in content["failures"]]
    return {
        **description["attributes"],
        "schema_version": SCHEMA_VERSION,
        "feature": description["feature"],
        "arrays": description["arrays"],
        "plan": description["plan"],
        "extractor": description["extractor"],
        "weights_digest": description["weights_digest"],
        "index_digest": description["index_digest"],
        "fingerprint": contents[0]["fingerprint"],
        "dropped": [failure["image_id"] for failure in failures],
        "failures": failures,
    }


def _mixtures(contents: dict[int, dict[str, Any]], receipts: Sequence[Path], redo: Callable[[int], str]) -> list[str]:
    """Shards made with other settings, weights or program than the one made last."""
    if len({content["fingerprint"] for content in contents.values()}) < 2:
        return []
    newest = max(contents, key=lambda shard: receipts[shard].stat().st_mtime_ns)
    wanted = contents[newest]
    problems = []
    for shard, content in contents.items():
        if content["fingerprint"] != wanted["fingerprint"]:
            differing = [key for key, value in wanted["store"].items() if content["store"].get(key) != value]
            problems.append(
                f"shard {shard}: made with other {', '.join(differing)} than shard {newest}, the newest; {redo(shard)}"
            )
    return problems


def damaged_files(
    place: Place,
    contents: dict[int, dict[str, Any]],
    plan: ShardPlan,
    redo: Callable[[int], str],
    explain: Callable[[str], str] = lambda key: "damaged or changed",
) -> list[str]:
    """Shard files that are not what their receipts say; `explain` adds what is wrong with one."""
    problems = []
    wanted: list[tuple[int, str, str]] = []
    for shard, content in contents.items():
        arrays = described_arrays(content["store"])
        keys = {shard_key(name, index, spec) for index, _ in plan.zarr_shards(shard) for name, spec in arrays.items()}
        if keys != content["files"].keys():
            problems.append(f"shard {shard}: its receipt names other files than the plan; {redo(shard)}")
        wanted += [(shard, key, content["files"][key]) for key in sorted(keys & content["files"].keys())]
    for shard, key, digest in progress(
        wanted, total=len(wanted), desc=f"verify {str(place).rsplit('/', 1)[-1]}", unit="file"
    ):
        found = place.digest(key)
        if found is None:
            problems.append(f"shard {shard}: {place}/{key} is missing; {redo(shard)}")
        elif found != digest:
            problems.append(f"shard {shard}: {place}/{key} is not what was written ({explain(key)}); {redo(shard)}")
    return problems


def _remove_foreign(place: Place, keys: set[str]) -> None:
    """Remove what other settings or killed jobs left: a store holds its own files and nothing else."""
    for key in place.keys():
        if key not in keys:
            place.remove(key)
    place.prune()


def seal_store(*, images: Path, **options: Any) -> None:
    """`seal` of a store of the index with this images.parquet, and what became of it in a line."""
    rows = read_image_rows(images)
    dropped = seal(images=rows, **options)["dropped"]
    if dropped:
        reasons = {f["image_id"]: f["error"] for path in options["receipts"] for f in read_receipt(path)["failures"]}
        feature = Path(options["store"].name if isinstance(options["store"], Path) else options["store"]).stem
        print("note: " + listing(f"images dropped from {feature}", [f"{i}: {reasons[i]}" for i in dropped]))
    print(f"sealed {options['store']}: {len(rows.ids)} images, {len(dropped)} of them dropped as unreadable")


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("stores.seal", __doc__)
    add_store(parser)
    add_receipts(parser)
    add_images(parser)
    parser.add_argument(
        "--marker", type=Path, help="file that gets a copy of the root metadata when the store is sealed"
    )
    parser.add_argument("--on-bad-image", choices=("fail", "drop"), default="fail")
    parser.add_argument(
        "--redo-command-template",
        dest="redo_command",
        default=REDO_COMMAND,
        help="how to make one shard again, for messages; {receipt} and {shard} are filled in (default: %(default)s)",
    )
    seal_store(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
