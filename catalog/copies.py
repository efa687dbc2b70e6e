"""The same picture under two names: harmless within a split, a leak between what is trained on and what is tested."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from catalog.annotations import UNLISTED
from catalog.index import listing

_NAMED = 5  # copies of a picture


def copies_between_splits(images: pa.Table) -> list[list[int]]:
    """Rows of an images table with equal content, first ones first, of each picture that more than one split has."""
    rows: dict[str, list[int]] = {}
    splits = images["split"].to_pylist()
    for row, content in enumerate(images["content_hash"].to_pylist()):
        if content and splits[row] != UNLISTED:
            rows.setdefault(content, []).append(row)
    return [own for own in rows.values() if len({splits[row] for row in own}) > 1]


def same_pictures(images: pa.Table, others: pa.Table) -> list[tuple[str, str]]:
    """Ids of each image whose content `others` hold too, and of the first of those, in the order of `images`; both are images tables."""
    found = pc.index_in(images["content_hash"], value_set=others["content_hash"].combine_chunks())
    known = pc.and_(pc.is_valid(found), pc.not_equal(images["content_hash"], ""))
    first = others["image_id"].take(found.filter(known))
    return list(zip(images["image_id"].filter(known).to_pylist(), first.to_pylist(), strict=True))


def told(images: pa.Table, copies: Sequence[Sequence[int]], option: bool) -> str:
    """The pictures in words. option: whether they can be kept in one split."""
    ids, splits = images["image_id"].to_pylist(), images["split"].to_pylist()
    named = [" = ".join(f"{ids[row]} ({splits[row]})" for row in own[:_NAMED]) + _more(own) for own in copies]
    advice = "; copies: one_split keeps them together" if option else ""
    return listing("pictures are in several splits, byte by byte", named) + advice


def _more(rows: Sequence[int]) -> str:
    """Thousands of links may have been saved as the same picture: that it is gone."""
    return f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""


def in_one_split(images: pa.Table, copies: Sequence[Sequence[int]]) -> pa.Table:
    """The table with all copies of a picture in the split of its first."""
    splits = images["split"].to_pylist()
    for own in copies:
        for row in own:
            splits[row] = splits[own[0]]
    return images.set_column(images.schema.get_field_index("split"), "split", pa.array(splits, pa.string()))
