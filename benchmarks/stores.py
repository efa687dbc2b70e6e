"""Ways to keep features and to read them: `python -m benchmarks.stores`.

One set of rows, (N, 36, 2048) float16 with the zeros of a ReLU, in every layout; page cache warm. Everything is measured in
turns, in rounds, and ratios are medians over the rounds. Random batches are 256 different rows, by 0 (this process), 1 and 2
reading processes; a scan reads all rows in order.

Readers of our layout: `stores.Store`, zarr-python with its own codec pipeline and with `zarrs`, tensorstore. Beside them:
our layout with the other compressions, `np.memmap`, one `.npy` per image, HDF5. The packages tensorstore, zarrs and h5py are left out where they are not installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import multiprocessing
import os
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from core.console import run_cli
from core.flags import command
from stores import open_store
from stores.plan import ShardPlan
from stores.schema import COMPRESSIONS, SCHEMA_VERSION, ArraySpec, compressed
from stores.writer import create_array, write_metadata, write_zarr_shard

SHAPE = (36, 2048)
SPEC = ArraySpec(SHAPE, "float16", 0)
ARRAYS = {"features": SPEC}
BATCH = 256
SHARD_ROWS = 512
EPOCH_IMAGES = 222 * SHARD_ROWS  # COCO has 113,287 images to train on
COCO_IMAGES = 123_287
TARGETS = {"memmap": 0.5, "one .npy per image": 2.0, "zarr-python": 20.0}

Reader = Callable[[np.ndarray], np.ndarray]


def make_rows(start: int, stop: int, seed: int = 0) -> np.ndarray:
    """Rows start..stop as a ReLU leaves them: (n, 36, 2048) float16, half of it zeros."""
    generator = np.random.default_rng((seed, start))
    return np.maximum(generator.standard_normal((stop - start, *SHAPE), np.float32), 0).astype(np.float16)


# Readers: a function of a path that opens what is there and gives a function of ascending or random rows. Processes are
# started for them by name, so all are at the top level.


def open_ours(path: str) -> Reader:
    store = open_store(path)
    return lambda rows: store.rows("features", rows)


def open_memmap(path: str) -> Reader:
    array = np.load(path, mmap_mode="r")
    return lambda rows: np.asarray(array[rows])


def open_npy_files(path: str) -> Reader:
    return lambda rows: np.stack([np.load(f"{path}/{row}.npy") for row in rows])


def open_hdf5(path: str) -> Reader:
    import h5py

    array = h5py.File(path, "r")["features"]

    def read(rows: np.ndarray) -> np.ndarray:
        order = np.argsort(rows)  # h5py wants ascending rows
        result = np.empty((len(rows), *SHAPE), np.float16)
        result[order] = array[rows[order]]
        return result

    return read


def open_zarr(path: str) -> Reader:
    import zarr

    array = zarr.open_array(path, path="features", mode="r")

    def read(rows: np.ndarray) -> np.ndarray:
        if rows[-1] - rows[0] == len(rows) - 1:
            return np.asarray(array[int(rows[0]) : int(rows[-1]) + 1])
        return np.asarray(array.oindex[rows])

    return read


def open_zarrs(path: str) -> Reader:
    import zarr
    import zarrs  # noqa: F401

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        read = open_zarr(path)

    def read_with_it(rows: np.ndarray) -> np.ndarray:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            return read(rows)

    return read_with_it


def open_tensorstore(path: str) -> Reader:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/features/"}}
    array = tensorstore.open(spec, read=True).result()
    return lambda rows: array[rows].read().result()


READERS: dict[str, tuple[str, str | None, Callable[[str], Reader]]] = {
    # name -> (layout, package, function)
    "ours": ("ours.zarr", None, open_ours),
    **{f"ours, {name}": (f"{name}.zarr", None, open_ours) for name in COMPRESSIONS[1:]},
    "memmap": ("features.npy", None, open_memmap),
    "one .npy per image": ("files", None, open_npy_files),
    "HDF5, lzf": ("features.h5", "h5py", open_hdf5),
    "zarr-python": ("ours.zarr", None, open_zarr),
    "zarr-python, zarrs": ("ours.zarr", "zarrs", open_zarrs),
    "tensorstore": ("ours.zarr", "tensorstore", open_tensorstore),
}
SLOW = ("zarr-python", "zarr-python, zarrs", "HDF5, lzf")


def available() -> list[str]:
    """Readers whose packages are installed."""
    return [name for name, (_, package, _) in READERS.items() if not package or importlib.util.find_spec(package)]


# Writers: rows of one Zarr shard's worth into a layout.


def write_ours(path: str, part: range, values: np.ndarray, images: int, compression: str = COMPRESSIONS[0]) -> None:
    plan = ShardPlan(images, 1)
    write_zarr_shard(path, part.start // plan.shard_rows, {"features": values}, compressed(ARRAYS, compression), plan)


def write_memmap(path: str, part: range, values: np.ndarray, images: int) -> None:
    array = np.load(path, mmap_mode="r+")
    array[part.start : part.stop] = values
    array.flush()


def write_npy_files(path: str, part: range, values: np.ndarray, images: int) -> None:
    for row, value in zip(part, values, strict=True):
        np.save(f"{path}/{row}.npy", value)


def write_zarr(path: str, part: range, values: np.ndarray, images: int) -> None:
    import zarr

    zarr.open_array(path, path="features", mode="r+")[part.start : part.stop] = values


WRITERS = {
    "ours": ("ours.zarr", write_ours),
    **{f"ours, {name}": (f"{name}.zarr", functools.partial(write_ours, compression=name)) for name in COMPRESSIONS[1:]},
    "zarr-python": ("zarr.zarr", write_zarr),
    "memmap": ("features.npy", write_memmap),
    "one .npy per image": ("files", write_npy_files),
}


def prepare(folder: Path, images: int) -> None:
    """Empty files and folders that the writers fill."""
    np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, (images, *SHAPE)).flush()
    (folder / "files").mkdir(exist_ok=True)
    create_array(str(folder / "zarr.zarr"), "features", SPEC, images, ShardPlan(images, 1).shard_rows)


def write_part(name: str, folder: str, start: int, stop: int, images: int) -> float:
    """Seconds that a writer takes for rows start..stop; making them up is not counted."""
    layout, write = WRITERS[name]
    values = make_rows(start, stop)
    clock = time.perf_counter()
    write(f"{folder}/{layout}", range(start, stop), values, images)
    return time.perf_counter() - clock


def parts(images: int) -> list[tuple[int, int]]:
    rows = ShardPlan(images, 1).shard_rows
    return [(start, min(start + rows, images)) for start in range(0, images, rows)]


_reader: tuple[str, Reader] | None = None


def read_batches(name: str, path: str, batches: Sequence[np.ndarray]) -> float:
    """Seconds that this process takes for batches; opening is not counted."""
    global _reader
    if _reader is None or _reader[0] != name:
        _reader = (name, READERS[name][2](path))
        _reader[1](batches[0][:4])
    clock = time.perf_counter()
    for rows in batches:
        _reader[1](rows)
    return time.perf_counter() - clock


def megabytes(rows: int) -> float:
    return rows * int(np.prod(SHAPE)) * 2 / 1e6


def measure_writes(folder: Path, images: int) -> dict[str, dict[int, float]]:
    """MB/s of raw features by writer and number of processes; leaves the layouts filled."""
    speeds: dict[str, dict[int, float]] = {name: {} for name in WRITERS}
    jobs = parts(images)
    for processes in (1, 2):
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            for name, (layout, _) in WRITERS.items():
                if name.startswith(("ours", "zarr-python")):  # else files that hold the same are left alone
                    for chunk in (folder / layout).glob("features/c"):
                        shutil.rmtree(chunk)
                futures = [pool.submit(write_part, name, str(folder), start, stop, images) for start, stop in jobs]
                speeds[name][processes] = megabytes(images) / (sum(f.result() for f in futures) / processes)
    for compression, store in zip(COMPRESSIONS, ("ours", *COMPRESSIONS[1:]), strict=True):
        arrays, ids = compressed(ARRAYS, compression), [str(i) for i in range(images)]
        write_metadata(folder / f"{store}.zarr", arrays, ShardPlan(images, 1), ids, {"schema_version": SCHEMA_VERSION})
    if importlib.util.find_spec("h5py"):
        import h5py

        with h5py.File(folder / "features.h5", "w") as file:
            array = file.create_dataset("features", (images, *SHAPE), np.float16, chunks=(1, *SHAPE), compression="lzf")
            for start, stop in jobs:
                array[start:stop] = make_rows(start, stop)
    return speeds


def measure_reads(
    folder: Path, images: int, args: argparse.Namespace
) -> tuple[dict[tuple[str, int], list[float]], dict[str, list[float]]]:
    """MB/s per round: of random batches by (reader, processes), and of scans by reader."""
    names = available()
    generator = np.random.default_rng(args.seed)
    random_speeds: dict[tuple[str, int], list[float]] = {}
    scans: dict[str, list[float]] = {}
    order = np.arange(images)
    for workers in (0, 1, 2):
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) if workers else None
        for _ in range(args.rounds):
            for name in names:
                path = str(folder / READERS[name][0])
                count = 1 if name in SLOW else args.batches
                batches = [generator.permutation(images)[:BATCH] for _ in range(count)]
                if pool is None:
                    read_batches(name, path, batches[:1])
                    seconds = read_batches(name, path, batches)
                    speed = megabytes(count * len(batches[0])) / seconds
                else:
                    for _ in range(2):  # the first time it opens
                        futures = [pool.submit(read_batches, name, path, batches) for _ in range(workers)]
                        times = [future.result() for future in futures]
                    speed = sum(megabytes(count * len(batches[0])) / seconds for seconds in times)
                random_speeds.setdefault((name, workers), []).append(speed)
                if pool is None:
                    seconds = read_batches(
                        name, path, [order[i : i + SHARD_ROWS] for i in range(0, images, SHARD_ROWS)]
                    )
                    scans.setdefault(name, []).append(megabytes(images) / seconds)
        if pool is not None:
            pool.shutdown()
    return random_speeds, scans


def measure_opening(folder: Path, images: int) -> dict[str, float]:
    """A store of `images` rows, all in its metadata and one Zarr shard of small rows on disk: seconds until the first row
    is there, and what a reading process is handed and takes."""
    spec = ArraySpec((2,), "float16", 0)
    path, plan = folder / f"{images}.zarr", ShardPlan(images, 1)
    values = {"features": np.ones((len(plan.zarr_shard_rows(0)), 2), np.float16)}
    write_zarr_shard(path, 0, values, {"features": spec}, plan)
    ids = [f"COCO_val2014_{i:012d}" for i in range(images)]
    write_metadata(path, {"features": spec}, plan, ids, {"schema_version": SCHEMA_VERSION})

    def once() -> tuple[float, float]:
        clock = time.perf_counter()
        store = open_store(path)
        store.rows("features", [0])
        opened = time.perf_counter()
        again = pickle.loads(pickle.dumps(store))
        again.rows("features", [0])
        return opened - clock, time.perf_counter() - opened

    times = [once() for _ in range(7)]
    opening, handing = (statistics.median(values) for values in zip(*times, strict=True))
    return {"open": opening, "hand over": handing, "pickled": len(pickle.dumps(open_store(path)))}


def measure_epoch(folder: Path, images: int, batches: int) -> dict[str, float]:
    """Microseconds an image by the images of a store: so many batches of a shuffled epoch of COCO, and of the measured store.

    Each Zarr shard of COCO's is a link to one of the measured store's, so that a batch's rows lie in as many files as there.
    """
    source, path = folder / "ours.zarr/features/c", folder / "coco.zarr"
    plan, arrays = ShardPlan(EPOCH_IMAGES, 1), compressed(ARRAYS, COMPRESSIONS[0])
    ids = [str(i) for i in range(EPOCH_IMAGES)]
    write_metadata(path, arrays, plan, ids, {"schema_version": SCHEMA_VERSION})
    whole = images // SHARD_ROWS
    for shard in range(EPOCH_IMAGES // SHARD_ROWS):
        link = path / f"features/c/{shard}/0/0"
        link.parent.mkdir(parents=True)
        os.link(source / f"{shard % whole}/0/0", link)
    stores = {EPOCH_IMAGES: open_ours(str(path)), images: open_ours(str(folder / "ours.zarr"))}
    generator, found = np.random.default_rng(0), {count: [] for count in stores}
    for _ in range(batches):
        for count, read in stores.items():
            rows = generator.permutation(count)[:BATCH]
            clock = time.perf_counter()
            read(rows)
            found[count].append((time.perf_counter() - clock) / BATCH * 1e6)
    return {count: statistics.median(times) for count, times in found.items()}


def layouts() -> dict[str, tuple[int, list[Any], bool]]:
    """name -> (rows of a chunk, codecs after the bytes, sharded): what our layout was chosen from."""
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    def blosc(name: str, level: int = 5, shuffle: str = "noshuffle") -> list[Any]:
        return [BloscCodec(cname=name, clevel=level, shuffle=shuffle, typesize=2), Crc32cCodec()]

    def zstd(level: int) -> list[Any]:
        return [ZstdCodec(level=level), Crc32cCodec()]

    return {
        "chunk 1, blosc lz4hc-5, sharded (lz4)": (1, blosc("lz4hc"), True),
        "chunk 8, the same": (8, blosc("lz4hc"), True),
        "chunk 32, the same": (32, blosc("lz4hc"), True),
        "chunk 1, the same, a file each": (1, blosc("lz4hc"), False),
        "chunk 1, blosc lz4hc-9, sharded": (1, blosc("lz4hc", 9), True),
        "chunk 1, blosc lz4hc-5 shuffled, sharded": (1, blosc("lz4hc", 5, "shuffle"), True),
        "chunk 1, blosc lz4hc-5 bits shuffled, sharded": (1, blosc("lz4hc", 5, "bitshuffle"), True),
        "chunk 1, blosc lz4, sharded": (1, blosc("lz4"), True),
        "chunk 1, blosc zstd-1 shuffled, sharded": (1, blosc("zstd", 1, "shuffle"), True),
        "chunk 1, zstd-1, sharded (zstd)": (1, zstd(1), True),
        "chunk 1, zstd-3, sharded": (1, zstd(3), True),
        "chunk 1, no compression, sharded (none)": (1, [Crc32cCodec()], True),
    }


def measure_layouts(folder: Path, images: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Size, files, writing, and random batches and scans through one and the same reader, tensorstore if it is there."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

    opener = open_tensorstore if importlib.util.find_spec("tensorstore") else open_zarr
    generator = np.random.default_rng(args.seed)
    rows: list[dict[str, Any]] = []
    readers: dict[str, Reader] = {}
    for name, (chunk, codecs, sharded) in layouts().items():
        path = folder / f"layout {len(rows)}.zarr"
        zarr.create_group(str(path))
        if sharded:
            serializer = ShardingCodec(
                chunk_shape=(chunk, *SHAPE), codecs=[BytesCodec(), *codecs], index_codecs=[BytesCodec(), Crc32cCodec()]
            )
            settings = {"chunks": (SHARD_ROWS, *SHAPE), "serializer": serializer, "compressors": None}
        else:
            settings = {"chunks": (chunk, *SHAPE), "compressors": codecs}
        array = zarr.create_array(
            str(path), name="features", shape=(images, *SHAPE), dtype="float16", filters=None, fill_value=0, **settings
        )
        seconds = 0.0
        for start in range(0, images, SHARD_ROWS):
            values = make_rows(start, min(start + SHARD_ROWS, images))
            clock = time.perf_counter()
            array[start : start + len(values)] = values
            seconds += time.perf_counter() - clock
        files = [file for file in path.rglob("*") if file.is_file()]
        rows.append(
            {
                "layout": name,
                "size": sum(file.stat().st_size for file in files) / (images * np.prod(SHAPE) * 2),
                "files": len(files),
                "write": megabytes(images) / seconds,
                "random": [],
                "scan": [],
            }
        )
        readers[name] = opener(str(path))
    for _ in range(args.rounds):
        for row in rows:
            read = readers[row["layout"]]
            batch = generator.permutation(images)[:BATCH]
            clock = time.perf_counter()
            read(batch)
            row["random"].append(megabytes(len(batch)) / (time.perf_counter() - clock))
            clock = time.perf_counter()
            for start in range(0, images, SHARD_ROWS):
                read(np.arange(start, min(start + SHARD_ROWS, images)))
            row["scan"].append(megabytes(images) / (time.perf_counter() - clock))
    for row in rows:
        row["random"], row["scan"] = statistics.median(row["random"]), statistics.median(row["scan"])
    return rows


def ratio(speeds: dict[Any, list[float]], key: Any, base: Any) -> float:
    """Median over the rounds."""
    return statistics.median(a / b for a, b in zip(speeds[key], speeds[base], strict=True))


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All rows of the report."""
    images = args.images
    prepare(folder, images)
    rows: list[dict[str, Any]] = []
    writes = measure_writes(folder, images)
    for name in WRITERS:
        for processes in (1, 2):
            row = {"what": f"write, {processes} process(es): {name}", "ours": writes["ours"][processes], "unit": "MB/s"}
            if name != "ours":
                base = writes[name][processes]
                rows.append(row | {"baseline": base, "ratio": row["ours"] / base})
            else:
                rows.append(row)
    random_speeds, scans = measure_reads(folder, images, args)
    for (name, workers), speeds in random_speeds.items():
        what = f"random batches, {workers} processes: {name}"
        ours = random_speeds["ours", workers]
        row = {"what": what, "ours": statistics.median(ours), "unit": "MB/s", "rounds": speeds}
        if name != "ours":
            row |= {
                "baseline": statistics.median(speeds),
                "ratio": ratio(random_speeds, ("ours", workers), (name, workers)),
            }
            if name in TARGETS and not workers:
                row["target"] = TARGETS[name]
        rows.append(row)
    for name, speeds in scans.items():
        row = {"what": f"scan: {name}", "ours": statistics.median(scans["ours"]), "unit": "MB/s", "rounds": speeds}
        if name != "ours":
            row |= {"baseline": statistics.median(speeds), "ratio": ratio(scans, "ours", name)}
            if name == "memmap":
                row["target"] = 0.5
        rows.append(row)
    for store in (*COMPRESSIONS[1:], "ours"):
        files = [file for file in (folder / f"{store}.zarr").rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / (megabytes(images) * 1e6)
        row = {"what": "size, of raw float16" + ("" if store == "ours" else f": {store}"), "ours": size, "unit": ""}
        rows.append(row | ({"target": 0.75, "at_most": True} if store == "ours" else {}))
    row = {"what": "files of `features`", "ours": sum("/c/" in str(f) for f in files), "unit": "files"}
    rows.append(row | {"target": max(1, images / 200), "at_most": True})
    epoch = measure_epoch(folder, images, args.batches * args.rounds)
    what = f"a shuffled epoch of {EPOCH_IMAGES:,} images, an image (baseline: of {images:,})"
    row = {"what": what, "ours": epoch[EPOCH_IMAGES], "baseline": epoch[images], "unit": "us"}
    rows.append(row | {"ratio": epoch[images] / epoch[EPOCH_IMAGES]})
    small, large = (measure_opening(folder, count) for count in (1000, args.rows))
    what = f"open and read a row, {args.rows:,} rows"
    rows.append({"what": what, "ours": large["open"], "unit": "s", "target": 0.2, "at_most": True})
    for what, unit in (("hand over", "s"), ("pickled", "bytes")):
        row = {"what": f"{what} to a reading process, {args.rows:,} rows (baseline: 1,000)", "ours": large[what]}
        rows.append(row | {"baseline": small[what], "unit": unit})
    for layout in measure_layouts(folder, min(images, 1024), args):
        note = f"{layout['size']:.2f} of raw, {layout['files']} files, write {layout['write']:.0f}, random "
        note += f"{layout['random']:.0f}, scan {layout['scan']:.0f} MB/s"
        rows.append({"what": f"layout: {layout['layout']}", "note": note, **layout})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = command("benchmarks.stores", __doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=COCO_IMAGES, help="of the store that is opened")
    parser.add_argument("--batches", type=int, default=8, help="random batches per round and process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the data (default: a temporary folder, removed afterwards)")
    common.add_arguments(parser)
    args = parser.parse_args(argv)
    device = common.start(args)
    if missing := READERS.keys() - set(available()):
        print(f"left out, not installed: {', '.join(sorted(missing))}")
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        rows = measure(args, args.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(args, Path(folder))
    common.report("stores", args, torch.device(device), rows)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run_cli(main)
