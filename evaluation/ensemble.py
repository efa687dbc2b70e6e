"""Metrics of an ensemble: the mean of its runs' similarities, from their embeddings.

The mean of n inner products is the inner product of the concatenated embeddings, each scaled by 1/sqrt(n). So an
ensemble is scored block by block like a single run, and no N x M matrix is ever made. (3SHNet adds the matrices of two
runs, which ranks alike.) Where a member scores pairs, one matrix is made, of the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.console import UserError, run_cli
from core.files import write_json
from core.flags import command
from evaluation.embeddings import Embeddings
from evaluation.metrics import add_metrics, metric_options, metrics_and_ranks
from evaluation.ranks import Ranked, write_ranks
from evaluation.scores import PairScores, Scored, read_scored
from model.ranking import equal_rows

_IMAGES_AT_ONCE = 256


def check_same_items(members: Sequence[Scored], names: Sequence[str]) -> None:
    """All members must hold the same images and captions in the same order.

    Raises:
        UserError: names the first difference.
    """
    first = members[0]
    for member, name in zip(members[1:], names[1:], strict=True):
        for kind in ("image", "caption"):
            mine, other = getattr(first, f"{kind}_ids"), getattr(member, f"{kind}_ids")
            shared = min(len(mine), len(other))
            differing = np.flatnonzero(mine[:shared] != other[:shared])
            if not len(differing) and len(mine) == len(other):
                continue
            row = int(differing[0]) if len(differing) else shared
            found = [repr(str(ids[row])) if row < len(ids) else "nothing" for ids in (mine, other)]
            raise UserError(
                f"an ensemble needs the same {kind}s in the same order, but {kind} number {row + 1} is {found[0]} of "
                f"{len(mine)} in {names[0]} and {found[1]} of {len(other)} in {name}: encode both runs with one index "
                "and one split; if images were dropped as unreadable from only one of the feature stores, remove them "
                "from the dataset"
            )
        differing = np.flatnonzero(first.caption_image != member.caption_image)
        if len(differing):
            caption = str(first.caption_ids[differing[0]])
            raise UserError(
                f"caption {caption!r} belongs to different images in {names[0]} and {name}: encode both runs with one "
                "index"
            )


def combine(members: Sequence[Embeddings]) -> Embeddings:
    """Embeddings whose inner products are the means of the members'; widths may differ.

    Args:
        members: at least one, of the same items (see `check_same_items`).
    """
    scale = np.float32(1 / np.sqrt(len(members)))
    joined = {}
    for name in ("images", "captions"):
        parts = [getattr(member, name) for member in members]
        values = np.empty((len(parts[0]), sum(part.shape[1] for part in parts)), dtype=np.float32)
        start = 0
        for part in parts:
            np.multiply(part, scale, out=values[:, start : start + part.shape[1]])
            start += part.shape[1]
        joined[name] = values
    first = members[0]
    return Embeddings(
        **joined, caption_image=first.caption_image, image_ids=first.image_ids, caption_ids=first.caption_ids
    )


def combine_scores(members: Iterable[Scored], count: int) -> PairScores:
    """The mean of the similarities of `count` members, each of which is let go before the next is taken."""
    first, total = None, np.zeros(0, dtype=np.float32)
    for member in members:
        if first is None:
            first = member
            total = np.zeros((len(member.image_ids), len(member.caption_ids)), dtype=np.float32)
        column = None
        if isinstance(member, Embeddings) and (column := equal_rows(member.captions)) is not None:
            # Captions that read alike are scored once: they must tie exactly.
            distinct = member.captions[np.unique(column, return_index=True)[1]]
            member = replace(member, captions=distinct)
        for start in range(0, len(total), _IMAGES_AT_ONCE):
            rows = slice(start, start + _IMAGES_AT_ONCE)
            scores = member.of_images(rows) / np.float32(count)
            total[rows] += scores if column is None else scores[:, column]
    return PairScores(total, first.caption_image, first.image_ids, first.caption_ids)


def ensemble_metrics(
    members: Sequence[Scored], names: Sequence[str], *, folds: int = 0, seed: int = 0, **options: Any
) -> dict[str, Any]:
    """The metrics file's content for the mean of the members' similarities: see `ensemble_ranks`."""
    return ensemble_ranks(members, names, folds=folds, seed=seed, **options)[0]


def ensemble_ranks(
    members: Sequence[Scored], names: Sequence[str], *, folds: int = 0, seed: int = 0, **options: Any
) -> tuple[dict[str, Any], Ranked]:
    """The metrics file's content for the mean of the members' similarities, and their ranks.

    Args:
        members: of any number of runs. names: theirs, for errors. folds, seed, options: see `metrics_and_ranks`.

    Raises:
        UserError: fewer than one member, or members of different items.
    """
    if not members:
        raise UserError("an ensemble needs at least one run")
    check_same_items(members, names)
    pairs = any(isinstance(member, PairScores) for member in members)
    mean = combine_scores(members, len(members)) if pairs else combine(members)
    return metrics_and_ranks(mean, folds=folds, seed=seed, **options)


def score(*, embeddings: Sequence[str], output: str, ranks: str | None = None, **flags: Any) -> None:
    """Write the metrics of several runs' mean similarity, and the ranks if wanted."""
    options = metric_options(**flags)
    members = [read_scored(path) for path in embeddings]
    metrics, ranked = ensemble_ranks(members, embeddings, **options)
    metrics["runs"] = [member.attributes.get("run", path) for member, path in zip(members, embeddings, strict=True)]
    for name in ("split", "index_digest"):
        if name in members[0].attributes:
            metrics[name] = members[0].attributes[name]
    if ranks:
        write_ranks(ranks, ranked)
    write_json(output, metrics)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("evaluation.ensemble", __doc__)
    parser.add_argument("--embeddings", required=True, nargs="+", help="embeddings.zarr or scores.zarr of every run")
    add_metrics(parser)
    score(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
