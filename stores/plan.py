"""Which job writes which rows: a pure function of the number of images and of shard jobs."""

from __future__ import annotations

from dataclasses import dataclass

from core.console import UserError

MAX_SHARD_ROWS = 512


@dataclass(frozen=True)
class ShardPlan:
    """`images` rows split over `shards` jobs; every job owns whole Zarr shards, so no two jobs ever write one file.

    All Zarr shards have the same number of rows, at most `MAX_SHARD_ROWS`, but for the last one. With many jobs and few
    images the last jobs may have no rows at all.

    Raises:
        UserError: no images, or no shards.
    """

    images: int
    shards: int

    def __post_init__(self) -> None:
        if self.images < 1:
            raise UserError(
                "the index has no images, so there is nothing to extract; check the dataset's images and captions"
            )
        if self.shards < 1:
            raise UserError(f"shards must be at least 1, not {self.shards}; mend the dataset's `shards`")

    @property
    def zarr_shards_per_job(self) -> int:
        """Files per array and job."""
        return _ceil(_ceil(self.images, self.shards), MAX_SHARD_ROWS)

    @property
    def shard_rows(self) -> int:
        """Rows of one Zarr shard (one file per array)."""
        return _ceil(_ceil(self.images, self.shards), self.zarr_shards_per_job)

    @property
    def zarr_shard_count(self) -> int:
        """Zarr shards of the whole store, per array."""
        return _ceil(self.images, self.shard_rows)

    def rows(self, shard: int) -> range:
        """Rows of job `shard` (0-based). UserError if there is no such job."""
        if not 0 <= shard < self.shards:
            raise UserError(f"there is no shard {shard}: {self.shards} shards are numbered 0 to {self.shards - 1}")
        size = self.shard_rows * self.zarr_shards_per_job
        return range(min(self.images, shard * size), min(self.images, (shard + 1) * size))

    def shard_of(self, row: int) -> int:
        """The job that owns a row."""
        return row // (self.shard_rows * self.zarr_shards_per_job)

    def zarr_shard_rows(self, index: int) -> range:
        """Rows of Zarr shard `index`."""
        return range(index * self.shard_rows, min((index + 1) * self.shard_rows, self.images))

    def zarr_shards(self, shard: int) -> list[tuple[int, range]]:
        """(index of the Zarr shard, its rows) for every file of job `shard`."""
        rows = self.rows(shard)
        indices = [start // self.shard_rows for start in range(rows.start, rows.stop, self.shard_rows)]
        return [(index, self.zarr_shard_rows(index)) for index in indices]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
