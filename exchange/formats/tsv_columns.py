"""Which column of a `.tsv` of regions holds what: as a header line says, in the usual orders, or as the values themselves tell."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from core.console import UserError

# As LXMERT's files have them and the original bottom-up-attention's.
_LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features")  # fmt: skip
_BOTTOM_UP = ("img_id", "img_w", "img_h", "num_boxes", "boxes", "features")
_USUAL = {len(order): order for order in (_LXMERT, _BOTTOM_UP)}
_MOST = 7  # columns without a header: of more, classes and attributes look alike
_ALIASES = {
    "image_id": "img_id", "imgid": "img_id", "id": "img_id", "image": "img_id", "image_h": "img_h", "image_w": "img_w", "height": "img_h", "width": "img_w", "num_box": "num_boxes",
    "num_bbox": "num_boxes", "bbox": "boxes", "bboxes": "boxes", "feature": "features",
}  # fmt: skip
#: What a cell of the first column of a header may be.
IDS = {"img_id", "image_id"}


@dataclass(frozen=True)
class Columns:
    """Names of columns by their places; "" of one that is not read."""

    names: tuple[str, ...]

    def read(self, cells: Sequence[bytes], place: str) -> dict[str, bytes]:
        """A line's cells by name. ValueError: it has another number of them."""
        if len(cells) != len(self.names):
            raise ValueError(f"{place} has {len(cells)} columns instead of {len(self.names)}")
        return {name: cell for name, cell in zip(self.names, cells, strict=True) if name}

    @property
    def name(self) -> int:
        """The place of images' names."""
        return self.names.index("img_id")


def of_header(cells: Sequence[bytes], path: str) -> Columns | None:
    """The columns that a header line names; None: it is none. UserError: it lacks some."""
    known = [cell.decode("utf-8", "replace").strip(" #\r\n\"'").casefold() for cell in cells]
    names = [_ALIASES.get(name, name) for name in known]
    if len(set(_LXMERT).intersection(names)) < 2:  # an image may be called as a column
        return None
    if wrong := [name for name in _LXMERT if names.count(name) > 1 or (name in _BOTTOM_UP and name not in names)]:
        raise UserError(
            f"imports.path: the header of {path}, {', '.join(known)}, names {wrong[0]} {'twice' if wrong[0] in names else 'nowhere'}; "
            f"needed are {', '.join(_BOTTOM_UP)}, each once and in any order"
        )
    return Columns(tuple(name if name in _LXMERT else "" for name in names))


def of_values(
    lines: Sequence[Sequence[bytes]], explains: Callable[[Columns, Sequence[bytes]], bool], path: str
) -> Columns:
    """The columns of lines without a header: in a usual order, or else as numbers, sizes and lengths tell.

    Args:
        lines: some, by cells, each of an image of the index; may be none. explains: whether a line, read so, makes sense.

    Raises:
        UserError: nothing tells.
    """
    if not lines:
        return Columns(_BOTTOM_UP)
    count = len(lines[0])
    usual = [Columns(order) for order in _orders(count)]
    scores = [sum(explains(one, cells) for cells in lines) for one in usual]
    if any(scores):
        return usual[scores.index(max(scores))]
    found: dict[tuple[int, ...], Columns] = {}
    for one in _candidates(lines[0]) if count <= _MOST else ():
        if all(explains(one, cells) for cells in lines if len(cells) == count):
            # Heights and widths change places only where it makes no difference.
            found.setdefault(tuple(one.names.index(name) for name in ("img_id", "num_boxes", "boxes", "features")), one)
    if len(found) == 1:
        return next(iter(found.values()))
    if usual:  # whoever reads them says what is wrong
        return usual[0]
    what = "could mean several things" if found else "are none of LXMERT's 10 or bottom-up-attention's 6"
    raise UserError(
        f"imports.path: the {count} columns of {path} {what}; put a line above them that names them, separated by tabs: "
        f"{', '.join(_BOTTOM_UP)}, in their order"
    )


def _orders(count: int) -> Iterator[tuple[str, ...]]:
    """The usual order of so many columns, and the one with height and width in the other places."""
    if order := _USUAL.get(count):
        yield order
        yield tuple({"img_h": "img_w", "img_w": "img_h"}.get(name, name) for name in order)


def _candidates(cells: Sequence[bytes]) -> Iterator[Columns]:
    """Every way to read a line."""
    whole = [k for k, cell in enumerate(cells) if cell.isdigit()]
    coded = [k for k in range(len(cells)) if k not in whole]
    for numbers in itertools.permutations(whole, 3):
        for arrays in itertools.permutations(coded, 2):
            for own in set(range(len(cells))) - {*numbers, *arrays}:
                named = dict(
                    zip(
                        (own, *numbers, *arrays),
                        ("img_id", "img_h", "img_w", "num_boxes", "boxes", "features"),
                        strict=True,
                    )
                )
                yield Columns(tuple(named.get(k, "") for k in range(len(cells))))
