"""Finds images by a sentence, and shows why: `python -m search build | ask | serve`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.console import UserError, run_cli
from core.flags import add_device, add_index, add_mapping, add_threads, command
from core.text import as_sentence


def build(*, runs: Mapping[str, Any], **options: Any) -> None:
    """Make or bring up to date what is asked."""
    from search.build import build_search

    build_search(runs=runs, **options)


def ask(
    *, sentence: str | None, image: str | None, dataset: str, run: str | None, top: int, results: str, as_json: bool
):
    """Print what is found: rank, score, file."""
    if (sentence is None) == (image is None):
        raise UserError("give a sentence, or --image FILE")
    if sentence is not None:
        as_sentence(sentence, "the sentence")
    if top < 1:
        raise UserError(f"--top must be at least 1, not {top}")
    from search.ask import open_search

    search = open_search(results, dataset)
    answer: dict[str, Any] = {"dataset": search.dataset, "runs": search.chosen(run)}
    if sentence is not None:
        answer["sentence"] = sentence
        hits = search.find(sentence, run=run, top=top)
        answer["notes"] = search.remarks(sentence, run=run)
    else:
        row = search.row_of(image)
        answer["image"] = search.images[row]["image_id"]
        hits = search.similar(row, run=run, top=top)
    answer["images"] = [
        {"rank": rank, "score": round(hit.score, 6)}
        | {key: search.images[hit.row][key] for key in ("image_id", "path")}
        for rank, hit in enumerate(hits, 1)
    ]
    if image is not None:
        answer["sentences"] = [
            {"rank": rank, "score": round(hit.score, 6), "text": search.captions[hit.row]["text"]}
            for rank, hit in enumerate(search.sentences(row, run=run, top=top), 1)
        ]
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for note in answer.get("notes", ()):
        print(f"note: {note}", file=sys.stderr)
    for hit in answer["images"]:
        print(f"{hit['rank']:>4}  {hit['score']:.4f}  {hit['path'] or hit['image_id']}")
    if answer.get("sentences"):
        print()
        for hit in answer["sentences"]:
            print(f"{hit['rank']:>4}  {hit['score']:.4f}  {hit['text']}")


def serve(**options: Any) -> None:
    """Serve the page until interrupted."""
    from search.serve import serve as run

    run(**options)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("search", __doc__)
    commands = parser.add_subparsers(metavar="command", required=True)

    building = commands.add_parser("build", help="what the target `search` runs: embed what is new")
    building.set_defaults(function=build)
    building.add_argument("--dataset", required=True, help="its name")
    add_index(building)
    add_mapping(building, "--runs", "for each run its folder and the stores visual and panoptic", required=True)
    building.add_argument("--without-captions", action="store_true", help="embed images alone")
    building.add_argument("--region-names", type=Path, help="file of the names of regions' classes, one a line")
    building.add_argument(
        "--photographs",
        action="store_true",
        help="the images are not drawings of the embedded renderer: warn on the page",
    )
    building.add_argument("--output", required=True, type=Path, help="search.json to write; the rest lies beside it")
    building.add_argument("--place", help="where the rest lies instead, such as an address in a bucket")
    building.add_argument("--batch-size", type=int, default=128)
    add_device(building)

    asking = commands.add_parser("ask", help="images for a sentence; images and sentences for an image")
    asking.set_defaults(function=ask)
    asking.add_argument("sentence", nargs="?")
    asking.add_argument("--image", help="an indexed image instead: its file, a copy of it, its name or id")
    asking.add_argument("--top", type=int, default=5, help="how many (default: %(default)s)")
    asking.add_argument("--json", action="store_true", dest="as_json")
    asking.add_argument("--run", help="one run alone; without it the mean of all")

    serving = commands.add_parser("serve", help="a page on this machine")
    serving.set_defaults(function=serve)
    serving.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine alone)"
    )
    serving.add_argument("--port", type=int, default=8765, help="0: any that is free (default: %(default)s)")
    serving.add_argument("--expose", action="store_true", help="with a --host that other machines reach")
    add_threads(serving)
    for one in (asking, serving):
        one.add_argument("--dataset", required=True, help="name of a search, or of its dataset")
        one.add_argument(
            "--results", default="results", help="the results folder, or s3://BUCKET/FOLDER (default: %(default)s)"
        )
    options = vars(parser.parse_args(argv))
    options.pop("function")(**options)


if __name__ == "__main__":
    run_cli(main)
