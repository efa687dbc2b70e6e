"""Whether arrays from files can be what they are said to be. A wrong layout that only looks like features is worse than none."""

from __future__ import annotations

import numpy as np

ALL_ZERO = "features are all zero: whoever wrote them failed"
_SLACK = 0.01  # of the image's side, for programs that round, and beside it a pixel
_MANY = 10
#: Numbers a region or cell that networks have.
WIDTHS = {
    64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1152, 1280, 1408, 1536, 1664, 1792, 2048, 2560, 3072, 4096,
}  # fmt: skip
_PER_REGION = ("scores", "attribute_scores", "class_ids", "attribute_ids")


def feature_rows(values: np.ndarray, count: int | None, transposed: bool | None = None) -> np.ndarray:
    """Features as (regions, width), from that layout or from (width, regions), as MCAN's and OpenVQA's files have it.

    Args:
        values: as in the file, with or without a leading axis of 1. count: regions by the file's boxes; None if it has none.
        transposed: how other files of the folder have it, for one whose two sides are equal.

    Raises:
        ValueError: neither side is `count`, or it has other than two axes.
    """
    shape = values.shape
    if values.ndim == 3 and shape[0] == 1:
        values = values[0]
    if values.ndim != 2:
        raise ValueError(f"features have shape {shape} instead of (regions, width)")
    if count is None or values.shape[0] == count:
        return values.T if transposed and values.shape[0] == values.shape[1] else values
    if values.shape[1] == count:
        return values.T
    raise ValueError(f"features have shape {shape}, which fits {count} boxes in no direction")


def upright_regions(values: np.ndarray, most: int) -> np.ndarray:
    """Features as (regions, width) where no boxes tell which axis is which: no image has 256 regions and more, few networks
    fewer numbers a region.

    Args:
        most: regions of an image.

    Raises:
        ValueError: see `feature_rows`; or it could be either.
    """
    values = feature_rows(values, None)
    rows, columns = values.shape
    if max(rows, columns) > most:
        return values.T if rows >= 256 > columns or (rows in WIDTHS and columns <= most) else values
    if rows >= columns or (rows in WIDTHS and columns not in WIDTHS):
        raise ValueError(
            f"features of shape {values.shape} could be (regions, width) or (width, regions), and nothing tells which; write them with "
            "boxes, as npz or h5"
        )
    return values


def box_rows(values: np.ndarray) -> np.ndarray:
    """Boxes as (regions, 4), from that layout or from (4, regions). ValueError: it is neither."""
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 2 and values.shape[1] == 4:
        return values
    if values.ndim == 2 and values.shape[0] == 4:
        return values.T
    raise ValueError(f"boxes have shape {values.shape} instead of (regions, 4)")


def check_numbers(name: str, values: np.ndarray) -> None:
    """ValueError: values that are not real numbers, or not finite."""
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {values.dtype}, not real numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are not finite (NaN or infinite)")


def check_boxes(boxes: np.ndarray, size: tuple[int, int] | None) -> None:
    """ValueError: boxes (n, 4) that cannot be x0, y0, x1, y1 in pixels of an image of `size` (height, width); None if unknown."""
    check_numbers("boxes", boxes)
    if not boxes.any():  # nobody knew them
        return
    if boxes.min() < -1 - _SLACK * boxes.max():
        raise ValueError(f"boxes begin at {boxes.min():g}, left of or above the image")
    ordered = bool((boxes[:, 2:] >= boxes[:, :2]).all())
    known = size is not None and 0 not in size
    if boxes.max() <= 1 and not (known and min(size) <= 4):
        raise ValueError("boxes reach 1 at most, as fractions of the image do; they must be in pixels")
    if not known:
        _check_corners(boxes)
        return
    height, width = size
    right, below = width * (1 + _SLACK) + 1, height * (1 + _SLACK) + 1
    if boxes[:, ::2].max() > right or boxes[:, 1::2].max() > below:
        raise ValueError(
            f"boxes reach to {boxes[:, ::2].max():g} and {boxes[:, 1::2].max():g} in an image of {width} x {height} pixels "
            "(are x and y swapped, or the boxes of the resized image?)"
        )
    ends = boxes[:, :2] + boxes[:, 2:]
    # Many that all end within the image, and near its border, as if they were sizes are sizes.
    whole = (ends <= (right, below)).all() and (ends.max(axis=0) >= (0.9 * width, 0.9 * height)).all()
    if len(boxes) >= _MANY and not ordered and whole:
        raise ValueError("boxes are x, y, width, height; they must be x0, y0, x1, y1")
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    whole = (low >= (-0.01 * right, -0.01 * below)).all() and (high <= (right, below)).all()
    if len(boxes) >= _MANY and not ordered and whole and (high.max(axis=0) >= (0.9 * width, 0.9 * height)).all():
        raise ValueError("boxes are centre x, centre y, width, height; they must be x0, y0, x1, y1")
    _check_corners(boxes)


def _check_corners(boxes: np.ndarray) -> None:
    """ValueError: a box (n, 4) ends more than a pixel, which programs that round lose, before it begins."""
    if len(wrong := np.flatnonzero((boxes[:, 2:] < boxes[:, :2] - 1).any(axis=1))):
        shown = ", ".join(f"{edge:g}" for edge in boxes[wrong[0]])
        raise ValueError(
            f"{len(wrong)} of {len(boxes)} boxes end left of or above where they begin, number {wrong[0]} is {shown}; they must be x0, y0, x1, y1"
        )


def reach(boxes: np.ndarray, size: tuple[int, int]) -> float:
    """How far boxes (n, 4) get across an image of `size` (height, width), as a share of the side that they get closest to."""
    return float(max(boxes[:, ::2].max() / size[1], boxes[:, 1::2].max() / size[0]))


def check_regions(found: dict[str, np.ndarray], size: tuple[int, int] | None) -> None:
    """ValueError: one image's unpadded arrays cannot be of regions of an image of `size` (height, width).

    Finite numbers; features that are not all zero; boxes within the image; scores from 0 to 1; whole ids from -1 up.
    """
    count = len(found["features"])
    check_numbers("features", found["features"])
    if found["features"].dtype.kind in "iu" and found["features"].dtype.itemsize > 1:
        what = found["features"].dtype
        raise ValueError(
            f"features are whole numbers ({what}): of another kind, such as bfloat16, written as they lie in memory?"
        )
    if not found["features"].size:
        raise ValueError("has no regions" if not count else "features have no numbers")
    if not found["features"].any():
        raise ValueError(ALL_ZERO)
    if "boxes" in found:
        check_boxes(found["boxes"], size)
        nothing = ~(found["features"].any(axis=1) | found["boxes"].any(axis=1))
        if nothing.any():
            raise ValueError(f"{nothing.sum()} of {count} regions are all zero, boxes too: padding that is counted?")
    for name in _PER_REGION:
        if name not in found:
            continue
        values = found[name]
        if values.shape != (count,):
            raise ValueError(f"{name} has shape {values.shape} instead of {(count,)}")
        check_numbers(name, values)
        if name.endswith("scores"):
            if values.min() < 0 or values.max() > 1.001:
                raise ValueError(f"{name} reach from {values.min():g} to {values.max():g}, not 0 to 1 (logits?)")
        elif (values != np.floor(values)).any() or values.min() < -1 or values.max() > np.iinfo(np.int16).max:
            raise ValueError(f"{name} are no class numbers: they reach from {values.min():g} to {values.max():g}")


def channels_first(shape: tuple[int, ...], width: int | None = None) -> bool:
    """Whether a map of this shape is (width, h, w), not (h, w, width). Few networks have fewer than 256 channels, no map as many cells
    a side; of those that have fewer, the channels are at least twice the cells a side.

    Args:
        width: that of other files of the folder.

    Raises:
        ValueError: it could be either.
    """
    first, last = shape[0], shape[-1]
    if width is not None and (first == width) != (last == width):
        return first == width
    if (first >= 256) != (last >= 256):
        return first >= 256
    if max(first, last) < 2 * max(shape[1], min(first, last)):
        raise ValueError(
            f"shape {shape} could be (width, h, w) or (h, w, width), and nothing tells which; write h5 with the attribute grid_shape"
        )
    return first > last


def cells_last(shape: tuple[int, int], grid: tuple[int, int] | None, width: int | None = None) -> bool:
    """Whether features of a grid are (width, cells), not (cells, width).

    Args:
        grid: rows and columns, where they are known. width: that of other files of the folder.

    Raises:
        ValueError: it could be either.
    """
    rows, columns = shape
    if grid is not None:
        return columns == grid[0] * grid[1] != rows
    if width is not None and (rows == width) != (columns == width):
        return rows == width

    def speaks_for(cells: int, width: int) -> int:
        """Many grids are square, and the widths of networks are few."""
        return (round(cells**0.5) ** 2 == cells) + (width in WIDTHS)

    by_numbers = speaks_for(rows, columns) - speaks_for(columns, rows)
    by_size = (columns >= 256) - (rows >= 256) or (columns > rows) - (rows > columns) if max(shape) >= 256 else 0
    if by_numbers * by_size < 0 and abs(by_numbers) < 2 or not (by_numbers or by_size):
        raise ValueError(
            f"shape {shape} could be (cells, width) or (width, cells), and nothing tells which; write maps as (width, h, w) or (h, w, width)"
        )
    return (by_numbers if abs(by_numbers) == 2 else by_size or by_numbers) < 0
