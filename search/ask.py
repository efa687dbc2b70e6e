"""Asking: a sentence for images, an image for others like it and for sentences. A search is opened once and asked often."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.index import read_parquet
from catalog.names import row_of
from core import layout
from core.console import UserError
from core.messages import did_you_mean
from search.build import (
    SEARCH,
    SEARCH_VERSION,
    captions_file,
    images_file,
    images_fingerprint,
    thumbnail,
    thumbnails_of,
)
from search.copies import fetched, resolved, run_folder
from search.vectors import AGAIN, Scorer, Vectors, inner_products, nearest, pair_similarities, read_vectors
from stores.class_names import class_names
from stores.places import Location, Place, place_of

if TYPE_CHECKING:
    from model.data import Features
    from model.explain import Explanation

MAX_CHARACTERS = 1000  # of a sentence; longer ones are cut, as the text encoder would
_REMEMBERED = 256  # sentences whose embeddings are kept


@dataclass(frozen=True)
class Hit:
    """An image or a caption that was found: its row in the search's table, and its similarity."""

    row: int
    score: float


class Search:
    """One `search.json`, of a folder or in a bucket, and what lies beside it. Methods may be called from several threads.

    Attributes:
        name: of the folder. dataset: which is searched. runs: names, in the configuration's order. warning: for who sees the page.
        images: (N) records image_id, path, width, height, content_hash, row, thumbnail. captions: (M) records caption_id, text,
            image.

    Raises:
        UserError: there is no such search, it is of another version, or its files do not fit together.
    """

    def __init__(self, path: Location) -> None:
        self.place = place_of(os.path.dirname(os.fspath(path)))
        about = _about(self.place)
        self.dataset, self._runs, self._index_digest = about["dataset"], about["runs"], about.get("index_digest")
        self.runs = list(self._runs)
        self.folder = fetched(self.place, about.get("files", {}))
        self.name = self.folder.name
        self._region_names = about.get("region_names", ())
        self.warning: str = about.get("warning", "")
        columns = {layout.IMAGES: ("image_id", "thumbnail"), layout.CAPTIONS: ("text", "image")}
        self.images, self.captions = (
            read_parquet(self.folder / name, own, AGAIN).to_pylist() for name, own in columns.items()
        )
        self._images = {run: read_vectors(self.folder / images_file(run)) for run in self.runs}
        self._captions = {run: read_vectors(self.folder / captions_file(run)) for run in self.runs}
        for tables, rows, what in ((self._images, self.images, "images"), (self._captions, self.captions, "captions")):
            if bad := [run for run, table in tables.items() if len(table) != len(rows)]:
                raise UserError(
                    f"{self.folder}: run {bad[0]} has {len(tables[bad[0]])} {what} for {len(rows)}; {AGAIN}"
                )
        self._of_image: dict[int, list[int]] = {}
        for row, caption in enumerate(self.captions):
            self._of_image.setdefault(caption["image"], []).append(row)
        self._lock = threading.Lock()  # of the networks
        self._embed = functools.lru_cache(_REMEMBERED)(self._embed_sentence)

    def chosen(self, run: str | None) -> list[str]:
        """The runs that answer: one, or all of them together. UserError if there is none of this name."""
        if run is None:
            return self.runs
        if run not in self.runs:
            hint = did_you_mean(run, self.runs, f"choose one of {', '.join(self.runs)}")
            raise UserError(f"--run: {run!r} is not among the runs of this search; {hint}")
        return [run]

    # --- questions

    def find(self, sentence: str, *, run: str | None = None, top: int = 5) -> list[Hit]:
        """Images for a sentence, the best first."""
        asked = {one: self._embed(one, sentence[:MAX_CHARACTERS]) for one in self.chosen(run)}
        scorers = [self._scorer(one, self._images[one], query) for one, query in asked.items()]
        return self._nearest(scorers, len(self.images), top)

    def similar(self, row: int, *, run: str | None = None, top: int = 5) -> list[Hit]:
        """Images like an image, itself left out: by the cosine of their vectors, or of the mean of their regions' (or cells') vectors.

        A network that scores pairs says nothing of two images. With one's regions in place of a sentence's words it finds no better
        ones, in 250 times the time.
        """
        tables = [self._vectors(one) for one in self.chosen(run)]
        return self._nearest(
            [inner_products(table, table[row]) for table in tables], len(self.images), top, leave_out=row
        )

    def sentences(self, row: int, *, run: str | None = None, top: int = 5) -> list[Hit]:
        """Captions for an image, the best first; of those with one text the first alone."""
        scorers = [self._scorer(one, self._captions[one], self._images[one].of(row)) for one in self.chosen(run)]
        wanted = top
        while True:
            found = self._nearest(scorers, len(self.captions), wanted)
            different: dict[str, Hit] = {}
            for hit in found:
                different.setdefault(self.captions[hit.row]["text"], hit)
            if len(different) >= top or len(found) < wanted:
                return list(different.values())[:top]
            wanted *= 4

    def own_captions(self, row: int) -> list[str]:
        """What the dataset says of an image."""
        return [self.captions[caption]["text"] for caption in self._of_image.get(row, ())]

    def alt(self, row: int) -> str:
        """What to read out in an image's place: its first caption, else its name."""
        own = self._of_image.get(row)
        return self.captions[own[0]]["text"] if own else f"image {self.images[row]['image_id']}"

    def row_of(self, image: str) -> int:
        """The row of an indexed image, by its id, its file (or a copy of it), or its file's name.

        Raises:
            UserError: it is not indexed, or the name fits several.
        """
        ids, paths, contents = ([record[key] for record in self.images] for key in ("image_id", "path", "content_hash"))
        if (row := row_of(image, ids, paths, contents)) is not None:
            return row
        hint = did_you_mean(
            image, ids, f"put it among the images of dataset {self.dataset} and run the target `search`"
        )
        raise UserError(f"--image: {image!r} is not indexed; {hint}")

    def thumbnail(self, row: int) -> bytes | None:
        """The small picture of an image, a JPEG file; None if it has none."""
        content = self.images[row]["thumbnail"]
        try:
            return thumbnails_of(self.place).read(thumbnail(content)) if content else None
        except FileNotFoundError:
            return None

    def explain(self, sentence: str, rows: Sequence[int], *, run: str) -> list[Explanation]:
        """Why images are as similar to a sentence as a run says."""
        from model.explain import explain, place_regions

        (run,) = self.chosen(run)
        network, tokenizer = self._network(run)
        with self._lock:
            features = self._features(run)
            in_store = np.array([self.images[row]["row"] for row in rows], dtype=np.int64)
            found = explain(network, tokenizer, features, in_store, sentence[:MAX_CHARACTERS])
            sizes = [(self.images[row]["width"] or 0, self.images[row]["height"] or 0) for row in rows]
            return place_regions(found, features, in_store, sizes)

    def remarks(self, sentence: str, *, run: str | None) -> list[str]:
        """What of a sentence the runs that answer make nothing of."""
        from model.explain import remarks

        found: dict[str, list[str]] = {}
        for one in self.chosen(run):
            _, tokenizer = self._network(one)
            with self._lock:
                own = remarks(tokenizer, sentence[:MAX_CHARACTERS])
            for remark in own:
                found.setdefault(remark, []).append(one)
        told = [f"{', '.join(runs)}: {remark}" for remark, runs in found.items()]
        cut = f"of the sentence the first {MAX_CHARACTERS:,} characters are read"
        return told + [cut] * (len(sentence) > MAX_CHARACTERS)

    def class_names(self, run: str | None) -> list[str]:
        """Names of the classes that the regions of a run (of the first, where several answer) are of, as far as they are known."""
        visual = self._features(self.chosen(run)[0]).stores["visual"]
        return class_names(visual.attributes, self._region_names)

    # --- how

    def _nearest(self, scorers: Sequence[Scorer], count: int, top: int, *, leave_out: int | None = None) -> list[Hit]:
        rows, scores = nearest(scorers, count, top, leave_out=leave_out)
        return [Hit(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]

    def _scorer(self, run: str, table: Vectors, query: np.ndarray) -> Scorer:
        """`query`: what the run compares of a sentence, for a table of images; of an image, for one of captions."""
        if table.lengths is None:
            return inner_products(table.embeddings, query)
        network, _ = self._network(run)

        def similarity(*sides: Any) -> Any:
            with self._lock:
                return network.similarity(*sides)

        return pair_similarities(similarity, table, query, of_captions=table is self._captions[run])

    def _embed_sentence(self, run: str, sentence: str) -> np.ndarray:
        """Its vector (E,), or the set (T, E) of its words."""
        from model.embed import caption_batches

        network, tokenizer = self._network(run)
        with self._lock:
            ((_, found),) = caption_batches(network, tokenizer, [sentence])
        return found[0]

    @functools.cache  # noqa: B019 - a search lives as long as its process
    def _vectors(self, run: str) -> np.ndarray:
        """(N, E) float32, normalised: one vector of each image."""
        return self._images[run].pooled()

    @functools.cache  # noqa: B019
    def _network(self, run: str) -> tuple[Any, Any]:
        from core.devices import full_float32
        from core.files import digest_file
        from model.runs import load_run

        full_float32("cpu")
        digest = self._runs[run]["weights_digest"]
        folder = run_folder(self._where(run, "folder"), digest)
        network, _, tokenizer = load_run(folder)
        if digest_file(folder / layout.WEIGHTS) != digest:
            raise UserError(f"run {run} has been trained again since its images were embedded; run the target `search`")
        return network, tokenizer

    @functools.cache  # noqa: B019
    def _features(self, run: str) -> Features:
        from model.data import Features
        from stores import open_store

        panoptic = "panoptic" in self._runs[run]
        found = Features(
            open_store(self._where(run, "visual")), open_store(self._where(run, "panoptic")) if panoptic else None
        )
        indexes = {store.attributes.get("index_digest") for store in found.stores.values()}
        folder = run_folder(self._where(run, "folder"), self._runs[run]["weights_digest"])
        if indexes != {self._index_digest} or images_fingerprint(folder, found) != self._images[run].fingerprint:
            # Its rows may be those of other images.
            raise UserError(
                f"the features that run {run} reads, or the run, were made anew since its images were embedded; run the target `search`"
            )
        return found

    def _where(self, run: str, what: str) -> str:
        return resolved(self._runs[run][what], self.place)


def open_search(results: Location, name: str) -> Search:
    """The search of a name, or the only one of a dataset of this name. `results`: a folder, or an address in a bucket.

    Raises:
        UserError: there is none.
    """
    results = os.fspath(results).rstrip("/")
    searches = place_of(f"{results}/search")
    names = searches.folders()
    if name in names and searches.size(f"{name}/{SEARCH}") is not None:
        return Search(layout.search(results, name))
    names = [one for one in names if searches.size(f"{one}/{SEARCH}") is not None]
    of_dataset = [one for one in names if _about(place_of(f"{results}/search/{one}"))["dataset"] == name]
    if len(of_dataset) == 1:
        return Search(layout.search(results, of_dataset[0]))
    if of_dataset:
        found = ", ".join(of_dataset)
        raise UserError(f"--dataset: {name!r} has several searches; choose one of them by its name: {found}")
    hint = did_you_mean(name, names, f"there are: {', '.join(names)}") if names else "there is none there yet"
    raise UserError(
        f"--dataset: no search {name!r} below {results!r}; {hint} (a section `search` in the configuration and "
        "`snakemake --cores N search` make one; --results names another folder)"
    )


def _about(place: Place) -> dict[str, Any]:
    try:
        about = json.loads(place.read(SEARCH))
        version = about["search_version"]
        if version == SEARCH_VERSION and not (about["dataset"] and about["runs"]):
            raise ValueError("it names no runs")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}/{SEARCH} is no search ({error}); {AGAIN}") from error
    if version != SEARCH_VERSION:
        raise UserError(f"{place}/{SEARCH} has version {version!r}, this program reads {SEARCH_VERSION}; {AGAIN}")
    return about
