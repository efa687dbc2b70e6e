"""Builds what the rest of the workflow starts from: `python -m catalog.run render | unpack | index`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalog.archives import unpack_images
from catalog.copies import copies_between_splits, in_one_split, told
from catalog.index import Made, listing, write_index
from catalog.settings import Dataset, DatasetSection
from core.console import UserError, run_cli
from core.flags import add_index, add_mapping, command
from core.machine import images_alone
from core.messages import validated
from core.text import one_line


def _section(settings: Mapping[str, Any]) -> DatasetSection:
    """The dataset's section, as a rule handed it on or a user wrote it."""
    return validated(Dataset, settings, place="--settings")


def render(*, dataset: str, settings: Mapping[str, Any], output: Path) -> None:
    """Render a scenes dataset."""
    from catalog.scenes_dataset import write_dataset

    section = _section(settings)
    write_dataset(output, seed=section.seed, splits=section.splits, style=section.style)


def unpack(*, dataset: str, archive: Path, output: Path) -> None:
    """Unpack a dataset's images."""
    count = unpack_images(archive, output)
    print(f"{dataset}: {count} images of {archive}")


def index(
    *,
    dataset: str,
    settings: Mapping[str, Any],
    made: Path | None,
    images: Path,
    captions: Path,
    threads: int,
    needed: Sequence[str] = (),
    reason: str = "",
) -> None:
    """Write images.parquet and captions.parquet of a dataset."""
    section, refused = _section(settings), ""
    try:
        found = section.read(made, threads)
    except UserError as error:
        if not images_alone() or section.for_images() == section:
            raise
        section, refused = section.for_images(), one_line(str(error))
        found = section.read(made, threads)
        found.notes.append(f"the captions cannot be used, which features do not need: {refused}")
    found.keep_first(section.caption_limit)
    found.note_spoilt()
    rows, texts = found.images(threads * 2), found.captions()
    choice = getattr(section, "copies", None)
    if copies := copies_between_splits(rows):
        found.notes.append(told(rows, copies, option=choice == "keep"))
        if choice == "one_split":
            before, rows = set(rows["split"].to_pylist()), in_one_split(rows, copies)
            found.notes[-1] += "; all copies are in the split of the first"
            if emptied := sorted(before - set(rows["split"].to_pylist())):
                raise UserError(
                    f"datasets.{dataset}.copies: one_split leaves no image in {', '.join(emptied)}: all are copies of pictures that stand "
                    "above them in other splits; remove those, or write copies: keep"
                )
    lacking = sorted((section.known_splits() or set()) - {"all", *rows["split"].to_pylist()})
    if empty := [split for split in needed if split in lacking and not images_alone()]:
        why = "".join(f"\n  {note}" for note in found.notes)
        raise UserError(
            f"datasets.{dataset}: no image is left of split {', '.join(empty)}, which runs or test sets read"
            + (f":{why}" if why else f": of {rows.num_rows} images; give it a larger share, or more images")
        )
    if lacking and (note := f"no images of split {', '.join(lacking)}") not in found.notes:
        found.notes.append(note)
    for note in found.notes:
        print(f"note: {note}")
    # What would be left out or kept apart was an error if there was any.
    idle = [key for key in ("missing_images", "missing_captions") if getattr(section, key, None) == "fail"]
    idle += ["copies"] if choice and not copies else []
    idle += ["splits"] if not section.draws else []
    by = Made(dict(settings), idle, reason) if reason else None
    write_index(images, captions, rows, texts, notes=found.notes, limited=True, made=by, refused=refused)
    broken = [f"{row['path']}: {row['error']}" for row in rows.select(["path", "error"]).to_pylist() if row["error"]]
    if broken:
        print(f"note: {listing('images that cannot be read', broken)}")
    splits = ", ".join(f"{name} {count}" for name, count in sorted(Counter(rows["split"].to_pylist()).items()))
    unread = f", {len(broken)} files with a broken header" if broken else ""
    print(f"{dataset}: {rows.num_rows} images ({splits}), {texts.num_rows} captions{unread}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("catalog.run", __doc__)
    commands = parser.add_subparsers(metavar="command", required=True)
    for function in (render, unpack, index):
        own = commands.add_parser(function.__name__, help=function.__doc__)
        own.set_defaults(function=function)
        own.add_argument("--dataset", required=True, help="its name in the configuration")
        if function is not unpack:
            add_mapping(own, "--settings", "the dataset's settings", required=True)
        if function is not index:
            own.add_argument("--output", required=True, type=Path, help="folder; an earlier one is replaced")
    commands.choices["unpack"].add_argument("--archive", required=True, type=Path, help="zip file")
    own = commands.choices["index"]
    own.add_argument("--annotations", dest="made", type=Path, help="folder that `render` made (source scenes)")
    own.add_argument("--unpacked", dest="made", type=Path, help="folder that `unpack` made (images in a zip)")
    add_index(own)
    own.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    own.add_argument("--reason", default="", help="what the workflow remembers as its reason")
    own.add_argument("--needed", nargs="+", default=[], help="splits that must have images")
    options = vars(parser.parse_args(argv))
    options.pop("function")(**options)


if __name__ == "__main__":
    run_cli(main)
