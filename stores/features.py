"""The arrays of each feature's store, whichever program makes the rows."""

from __future__ import annotations

from collections.abc import Container

from catalog.categories import NUM_CATEGORIES, VOID
from stores.schema import ArraySpec

MAP_SIDE, GRID_SIDE = 64, 7  # of panoptic maps, and of the grid that their features are pooled to

PANOPTIC_ARRAYS = {
    "seg_maps": ArraySpec((MAP_SIDE, MAP_SIDE), "uint8", VOID),
    "category_onehots": ArraySpec((NUM_CATEGORIES,), "uint8", 0),
    "seg_features": ArraySpec((NUM_CATEGORIES, GRID_SIDE, GRID_SIDE), "float16", 0),
}


#: What the axes of arrays behind the first are called; those of one name are equally long in a store.
_AXES = {
    "features": ("place", "feature"),
    "boxes": ("place", "corner"),
    "scores": ("place",),
    "class_ids": ("place",),
    "class_scores": ("place",),
    "attribute_ids": ("place",),
    "attribute_scores": ("place",),
    "grid_shapes": ("side",),
    "seg_maps": ("map_row", "map_column"),
    "category_onehots": ("category",),
    "seg_features": ("category", "row", "column"),
}


def dimension_names(array: str, axes: int) -> list[str]:
    """Names of an array's axes, the first of which is the image; arrays that are not known get names of their own."""
    known = _AXES.get(array, ())
    return ["image", *(known if len(known) == axes - 1 else (f"{array}_{k}" for k in range(1, axes)))]


def region_arrays(num_regions: int, width: int, known: Container[str]) -> dict[str, ArraySpec]:
    """Of `num_regions` regions per image with features of `width` numbers; beside these and `counts`, those that are `known`."""
    k = num_regions
    arrays = {
        "features": ArraySpec((k, width), "float16", 0),
        "boxes": ArraySpec((k, 4), "float32", 0),
        "scores": ArraySpec((k,), "float32", 0),
        "class_ids": ArraySpec((k,), "int16", -1),
        "class_scores": ArraySpec((k,), "float32", 0),
        "counts": ArraySpec((), "int16", 0),
        "attribute_ids": ArraySpec((k,), "int16", -1),
        "attribute_scores": ArraySpec((k,), "float32", 0),
    }
    return {name: spec for name, spec in arrays.items() if name in ("features", "counts") or name in known}


def grid_arrays(cells: int, width: int) -> dict[str, ArraySpec]:
    """Of at most `cells` cells per image with features of `width` numbers."""
    return {
        "features": ArraySpec((cells, width), "float16", 0),
        "counts": ArraySpec((), "int16", 0),
        "grid_shapes": ArraySpec((2,), "int16", 0),
    }


def grid_cells(grid: int | str, max_cells: int) -> int:
    """Cells per image at most: of a square of side `grid`, or `max_cells` where the map keeps its own ("native")."""
    return max_cells if grid == "native" else int(grid) ** 2


def grid_shape(height: int, width: int, grid: int | str, max_cells: int) -> tuple[int, int]:
    """(rows, columns) that a map is pooled to: `grid` squared, or its own, both sides shrunk alike to hold `max_cells` at most."""
    if grid != "native":
        return int(grid), int(grid)
    factor = min(1.0, (max_cells / (height * width)) ** 0.5)
    rows, columns = max(1, int(height * factor)), max(1, int(width * factor))
    # Of a narrow map no side is less than one cell.
    return min(rows, max(1, max_cells // columns)), min(columns, max(1, max_cells // rows))


def grid_note(height: int, width: int, grid: int | str, max_cells: int) -> str:
    """What is to be said of a map whose cells are not kept, nor means of several of them each; "" of others."""
    if grid == "native":
        rows, columns = grid_shape(height, width, grid, max_cells)
        if rows * columns < height * width:
            return f"maps of more than {max_cells} cells are pooled, such as {height} x {width} to {rows} x {columns}; set max_cells to keep them"
    elif min(height, width) < int(grid):
        return f"maps with fewer cells a side than grid: {grid} are spread over it by repeating cells, such as {height} x {width}"
    return ""
