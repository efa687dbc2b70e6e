"""What formats of region features per image share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from catalog.index import ImageRows
from core.features import Feature
from exchange.formats.base import PerImageReader, Rows
from exchange.formats.checks import check_regions, reach
from stores.features import region_arrays

_MANY, _SEVERAL = 10, 3  # regions of an image, and images, from which on some box is close to a border
_BORDER = 0.8


class RegionReader(PerImageReader):
    """Rows of the `regions` store from files with one set of regions per image.

    Args:
        num_regions: K, rows are padded to it.
    """

    features = ("regions",)

    def __init__(
        self, feature: Feature, images: ImageRows, *, path: str, num_regions: int = 36, provenance: str = "unknown"
    ) -> None:
        self.num_regions = num_regions
        super().__init__(images, path, provenance, num_regions=num_regions)

    def load(self, row: int) -> tuple[Rows, tuple[int, int] | None]:
        """Unpadded arrays of an image and the (height, width) they are for, if it is said. ValueError: what is wrong with it."""
        raise NotImplementedError

    def layout(self, content: tuple[Rows, tuple[int, int] | None]) -> Hashable:
        """See `PerImageReader.layout`."""
        found, _ = content
        return found["features"].shape[1:], frozenset(found)

    def check(self, content: tuple[Rows, tuple[int, int] | None], row: int) -> None:
        """See `PerImageReader.check`."""
        (found, size), known = content, self.sizes[row]
        if known[0] and size is not None and size != known:
            raise ValueError(f"is of an image of {size[1]} x {size[0]} pixels, this one has {known[1]} x {known[0]}")
        # Whose size the index does not know is measured by the file's own.
        check_regions(found, known if known[0] else size)

    def doubt(self, contents: Sequence[tuple[Rows, tuple[int, int] | None]], rows: Sequence[int]) -> None:
        """See `PerImageReader.doubt`. Among many regions of several images some reach the border."""
        self._doubt_equal([found["features"] for found, _ in contents], rows)
        shares = [
            reach(found["boxes"], self.sizes[row])
            for (found, _), row in zip(contents, rows, strict=True)
            if self.sizes[row][0] and len(found.get("boxes", ())) >= _MANY and found["boxes"].any()
        ]
        if len(shares) >= _SEVERAL and max(shares) < _BORDER:
            self.notes.append(
                f"boxes of {len(shares)} images in {self.path} get {max(shares):.0%} across them at most: of images that were "
                "scaled down, or in percent? They must be in pixels of the files"
            )

    def describe(self, example: tuple[Rows, tuple[int, int] | None]) -> None:
        """Set `arrays` to those that one image has."""
        found, _ = example
        self.arrays = region_arrays(self.num_regions, found["features"].shape[1], found)

    def put(self, row: int, result: Rows, at: int) -> None:
        """See `PerImageReader.put`."""
        content = self.load(row)
        found, _ = content
        self._fits(found)
        self.check(content, row)
        count = len(found["features"])
        for name in self.arrays.keys() - {"counts"}:
            result[name][at, :count] = self.rounded(row, found[name]) if name == "features" else found[name]
        result["counts"][at] = count

    def _fits(self, found: Rows) -> None:
        count = len(found["features"])
        if count > self.num_regions:
            raise ValueError(f"has {count} regions; raise imports.regions.num_regions from {self.num_regions}")
        if found.keys() < self.arrays.keys() - {"counts"}:
            raise ValueError(f"lacks {', '.join(sorted(self.arrays.keys() - found.keys() - {'counts'}))}")
        for name, spec in self.arrays.items():
            if name != "counts" and found[name].shape != (count, *spec.shape[1:]):
                raise ValueError(f"{name} has shape {found[name].shape} instead of {(count, *spec.shape[1:])}")
