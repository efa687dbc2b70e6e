"""A shard job: one part of a store, made in the order that makes a crash harmless. Every producer of rows goes through here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from catalog.index import ImageRows, read_image_rows
from core.console import UserError
from stores.former import Former, claim_former
from stores.places import Location
from stores.plan import ShardPlan
from stores.receipts import write_receipt
from stores.schema import COMPRESSIONS, Source, compressed, describe_store
from stores.writer import check_store_path, unseal, write_zarr_shard


def job_index(images: Path, *, store: Location, shard: int, shards: int) -> ImageRows:
    """The index with this images.parquet, and a look at what can be wrong with a job before anything slow is done for it.

    Raises:
        UserError: as `ShardJob`, or there is no such index.
    """
    check_store_path(store)
    rows = read_image_rows(images)
    ShardPlan(len(rows.ids), shards).rows(shard)
    return rows


def check_recipe(given: int | None, actual: int, file: str) -> None:
    """UserError unless the RECIPE of `file` is the one that the workflow read when it started; None: by hand, whichever it is."""
    if given not in (None, actual):
        raise UserError(
            f"--recipe {given} is not the RECIPE {actual} of {file}: the program changed under a running workflow; "
            "start it again"
        )


class ShardJob:
    """What a job does around the making of rows.

        with ShardJob(source, images, store=store, receipt=receipt, shard=0, shards=4) as job:
            for index, part in job.parts:
                job.write(index, rows_of(part))
        job.result  # the receipt

    Entering drops the shard's receipt, sets a former store aside and unseals the store: from there on the shard counts as
    unfinished, whatever an earlier run left. Zarr shards are published whole, each while the caller makes the next one's rows.
    The receipt comes last, and only if the block ends without an error. Repeated, a job gives the same bytes if its rows are
    the same. Memory: the rows of two Zarr shards (at most 512 each), of a third where rows are taken over.

    Args:
        source: of the rows. images: the whole index. store, receipt: where to write.
        compression: of the store, one of `COMPRESSIONS`.
        take_over: an image's content and the source decide its row, so that of a former store will do (see `stores.former`).
        itself: the very store that is to be made will do as well, if it is there.
        startup_seconds: spent before, for the receipt.
        wanted: how many numbers a visual token must have, by what takes so many: none of its rows would be of use else.

    Attributes:
        plan, rows, arrays: of the job. parts: (index of the Zarr shard, its rows) of all it has to write.
        seconds: for the receipt, see `write_receipt`; the job keeps "write" and "total". device: for the receipt, in words.

    Raises:
        UserError: no such shard, the store's name does not end in `.zarr`, or the source's tokens are not as wide as `wanted`;
            nothing has been touched then.
    """

    def __init__(
        self,
        source: Source,
        images: ImageRows,
        *,
        store: Location,
        receipt: Path,
        shard: int,
        shards: int,
        compression: str = COMPRESSIONS[0],
        take_over: bool = False,
        itself: bool = False,
        startup_seconds: float = 0.0,
        wanted: Mapping[str, int] | None = None,
    ) -> None:
        self._start = time.perf_counter() - startup_seconds
        self.images, self.store, self.receipt, self.shard = images, store, receipt, shard
        self.plan = ShardPlan(len(images.ids), shards)
        self.rows, self.parts = self.plan.rows(shard), self.plan.zarr_shards(shard)
        self.arrays = compressed(source.arrays, compression)
        self.description = describe_store(replace(source, arrays=self.arrays), self.plan, images.digest)
        self.seconds = {"total": 0.0, "startup": startup_seconds, "decode": 0.0, "network": 0.0, "write": 0.0}
        self.device, self.taken_over, self.result = "none", 0, {}
        self._take_over, self._itself, self._former = take_over, itself, None
        self._failures: dict[int, dict[str, str]] = {}
        self._files: dict[str, str] = {}
        self._notes: dict[str, Any] = {}
        self._writing: Future[None] | None = None
        check_store_path(store)
        for who, width in (wanted or {}).items():
            if (found := source.arrays["features"].shape[-1]) != width:
                raise UserError(
                    f"{source.feature} have {found} numbers a visual token, but {who} takes {width}; name the network, or the files, whose "
                    "features it was trained on"
                )

    def __str__(self) -> str:
        return f"{self.description['feature']} {self.shard + 1}/{self.plan.shards}"

    def __enter__(self) -> ShardJob:
        self.receipt.unlink(missing_ok=True)
        if self._take_over and self.images.content_hashes is not None:
            self._former: Former | None = claim_former(
                self.store, self.description, self.images.ids, self.images.content_hashes, self.rows, self._itself
            )
        unseal(self.store)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._writer:
            if kind is None:
                self._finish_writing()
        if kind is not None:
            return
        self.seconds["total"] = time.perf_counter() - self._start
        self.result = write_receipt(
            self.receipt,
            description=self.description,
            shard=self.shard,
            rows=self.rows,
            failures=[failure for _, failure in sorted(self._failures.items())],
            seconds=self.seconds,
            device=self.device,
            files=self._files,
            taken_over=self.taken_over,
            notes=self._notes,
        )

    @property
    def failed(self) -> int:
        """How many images failed so far."""
        return len(self._failures)

    def former_rows(self, part: range) -> tuple[dict[str, np.ndarray], set[int]]:
        """Arrays for the rows of `part`, with fill values, and those rows that are in them already, from a former store."""
        values = {name: spec.empty(len(part)) for name, spec in self.arrays.items()}
        if self._former is None:
            return values, set()
        try:
            taken = set(self._former.fill(values, part))
        except UserError as error:
            # None of them: a part that is made again by itself gets the very bytes it had.
            print(f"rows {part.start} to {part.stop - 1} are extracted, not taken over: {error}", flush=True)
            return {name: spec.empty(len(part)) for name, spec in self.arrays.items()}, set()
        self.taken_over += len(taken)
        return values, taken

    def write(self, index: int, values: Mapping[str, np.ndarray]) -> None:
        """Publish Zarr shard `index` (see `write_zarr_shard`), beside the caller's work; what went wrong is raised later."""
        self._finish_writing()
        self._writing = self._writer.submit(self._publish, index, values)

    def fail(self, row: int, error: str) -> None:
        """Image `row` has no features, and why; its rows should hold fill values."""
        self._failures[row] = {"image_id": self.images.ids[row], "path": str(self.images.paths[row]), "error": error}

    def note(self, **notes: Any) -> None:
        """Further entries of the receipt, for people."""
        self._notes |= notes

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count a block's seconds as `what`."""
        clock = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - clock

    def _publish(self, index: int, values: Mapping[str, np.ndarray]) -> None:
        with self.timed("write"):
            files = write_zarr_shard(self.store, index, values, self.arrays, self.plan)
        self._files |= files
        if self._former is not None:
            self._former.release(files)

    def _finish_writing(self) -> None:
        if self._writing is not None:
            self._writing.result()
