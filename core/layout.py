"""Where every file of the results lies. One function is a rule's pattern and a reader's path.

Wildcards are the defaults: `images(results)` is `results/{dataset}/index/images.parquet`, `images(results, "coco")` a file.
`results` is the results folder, or its address in a bucket (`s3://BUCKET/FOLDER`). `work` is the folder of what never lies in
a bucket: logs, benchmarks, states to resume from, images that the workflow rendered or unpacked; without a bucket the same.
"""

from __future__ import annotations

import os
from typing import Any

Root = str | os.PathLike[str]

#: Folders of the results beside the datasets' own.
RESERVED = ("runs", "evaluation", "ensembles", "tables", "report", "search", "verified", "logs", "benchmarks")

IMAGES, CAPTIONS = "images.parquet", "captions.parquet"
#: Files of a run.
RUN_FILES = WEIGHTS, CONFIG, VOCABULARY, HISTORY = "model.safetensors", "config.json", "vocab.txt", "history.csv"
#: Files that an interrupted training goes on from; `BEST` of the epoch whose weights are in it.
STATE, FINISHED, BEST = "state.pt", "finished", "best-{epoch}.safetensors"
METRICS, RANKS = "metrics.json", "ranks.safetensors"


def work_of(place: str) -> str:
    """The folder beside results in a bucket, for `s3://BUCKET/FOLDER` `results/BUCKET/FOLDER`; of a folder itself."""
    return place.replace("s3://", "results/", 1) if place.startswith("s3://") else place


# --- datasets ---------------------------------------------------------------------------------------------------------


def made(work: Root, folder: str, dataset: str = "{dataset}") -> str:
    """Images that the workflow puts there itself; `folder`: scenes (rendered) or images (out of an archive)."""
    return f"{work}/{dataset}/{folder}"


def index(results: Root, dataset: str = "{dataset}") -> str:
    return f"{results}/{dataset}/index"


def images(results: Root, dataset: str = "{dataset}") -> str:
    return f"{index(results, dataset)}/{IMAGES}"


def captions(results: Root, dataset: str = "{dataset}") -> str:
    return f"{index(results, dataset)}/{CAPTIONS}"


def store(results: Root, dataset: str = "{dataset}", feature: str = "{feature}") -> str:
    return f"{results}/{dataset}/features/{feature}.zarr"


def seal_of(store: Root) -> str:
    """The file that makes a store openable: its root metadata."""
    return f"{store}/zarr.json"


def sealed(results: Root, dataset: str = "{dataset}", feature: str = "{feature}") -> str:
    return seal_of(store(results, dataset, feature))


def receipts_of(store: Root) -> str:
    """The folder of a store's receipts, one for each shard job."""
    return f"{str(store).removesuffix('.zarr')}.receipts"


def receipt_of(store: Root, shard: Any) -> str:
    return f"{receipts_of(store)}/{shard}.json"


def receipt(results: Root, dataset: str = "{dataset}", feature: str = "{feature}", shard: Any = "{shard}") -> str:
    return receipt_of(store(results, dataset, feature), shard)


def verified(work: Root, dataset: str = "{dataset}", feature: str = "{feature}") -> str:
    """What a store that was read from end to end is said to hold."""
    return f"{work}/verified/{dataset}/{feature}.json"


def export(results: Root, dataset: str = "{dataset}", feature: str = "{feature}") -> str:
    """A folder of files as other programs read them; `feature` is the visual one."""
    return f"{results}/{dataset}/export/{feature}"


# --- runs and what they are scored -----------------------------------------------------------------------------------


def run_folder(results: Root, run: str = "{run}") -> str:
    return f"{results}/runs/{run}"


def run_file(results: Root, name: str, run: str = "{run}") -> str:
    """`name`: WEIGHTS, CONFIG, VOCABULARY or HISTORY."""
    return f"{results}/runs/{run}/{name}"


def run_state(work: Root, run: str = "{run}") -> str:
    """The folder that an interrupted training goes on from: STATE, FINISHED and BEST are its files."""
    return f"{run_folder(work, run)}.state"


def state_of(folder: Root) -> str:
    """`run_state` of the run in a folder of the results, which may lie in a bucket."""
    return f"{work_of(str(folder))}.state"


def embeddings(results: Root, run: str = "{run}", testset: str = "{testset}") -> str:
    return f"{results}/evaluation/{run}/{testset}/embeddings.zarr"


def scores(results: Root, run: str = "{run}", testset: str = "{testset}") -> str:
    """Of a run that scores pairs, in the place of embeddings."""
    return f"{results}/evaluation/{run}/{testset}/scores.zarr"


def metrics(results: Root, run: str = "{run}", testset: str = "{testset}") -> str:
    return f"{results}/evaluation/{run}/{testset}/{METRICS}"


def ensemble_metrics(results: Root, ensemble: str = "{ensemble}", testset: str = "{testset}") -> str:
    return f"{results}/ensembles/{ensemble}/{testset}/{METRICS}"


def ranks(results: Root, run: str = "{run}", testset: str = "{testset}") -> str:
    """Of every image and caption, beside the metrics that sum them up."""
    return f"{results}/evaluation/{run}/{testset}/{RANKS}"


def ensemble_ranks(results: Root, ensemble: str = "{ensemble}", testset: str = "{testset}") -> str:
    return f"{results}/ensembles/{ensemble}/{testset}/{RANKS}"


# --- summaries -------------------------------------------------------------------------------------------------------


#: Of the tables, by suffix.
TABLES = "csv", "md", "tex"


def table(results: Root, suffix: str) -> str:
    """`suffix`: one of TABLES."""
    return f"{results}/tables/results.{suffix}"


def report(results: Root) -> str:
    return f"{results}/report/index.html"


def why(results: Root) -> str:
    """Why the images that the report's gallery shows match its sentences."""
    return f"{results}/report/why.json"


def search(results: Root, search: str = "{search}") -> str:
    """What makes a search usable, written last; embeddings and thumbnails lie beside it."""
    return f"{results}/search/{search}/search.json"


def times(results: Root) -> str:
    """Times and digests of what jobs made, for results that are copied without their times."""
    return f"{results}/times.json"


def log(work: Root, job: str) -> str:
    """`job`: a rule and its wildcards, as in `extract_shard/{dataset}_{feature}_{shard}`."""
    return f"{work}/logs/{job}.log"


def benchmark(work: Root, job: str) -> str:
    """`job`: as for `log`."""
    return f"{work}/benchmarks/{job}.tsv"
