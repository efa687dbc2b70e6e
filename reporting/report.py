"""Puts the report together: from artefacts to the values of the page's template, and from those to one HTML text.

Nothing here knows how to compute a result; the gallery's rankings of a few queries are the only numbers made.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from catalog.index import Index
from core.console import UserError
from reporting.artefacts import SECONDS, Artefacts, Embeddings, History, Stage, System
from reporting.charts import Series, line_chart
from reporting.gallery import FOUND, Answer, Hit, answer, caption_scores, choose_queries, image_scores
from reporting.pictures import Area, Picture, encode_pictures, panoptic_overlay, top_boxes

PICTURE_BYTES = 5_000_000  # of the gallery's encoded images together; the whole report stays below 8 MB
SHEET_BYTES = 700_000  # of all contact sheets together
MAX_GALLERIES = 4  # test sets with a gallery
MAX_SYSTEMS = 4  # systems a gallery compares
SHEET_IMAGES = 12
MAX_LISTED = 30  # bad images listed by name
PALETTE_SLOTS = 6
PACKAGES = ("torch", "torchvision", "transformers", "zarr", "numpy", "pillow", "pyarrow", "snakemake")
RECALLS = ("r1", "r5", "r10", "medr")


# --- results ---------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of a results table. `kind`: run, ensemble, folds (or another protocol), control or chance.

    `intervals` are as many texts as `cells`, or none; `rsum_interval` the one of rSum.
    """

    kind: str
    label: str
    note: str
    cells: list[str]
    values: list[float]
    rsum: float
    intervals: list[str] = field(default_factory=list)
    rsum_interval: str = ""
    best: list[bool] = field(default_factory=list)


def _row(kind: str, label: str, note: str, block: Mapping[str, Any]) -> Row:
    values = [float(block[direction].get(key, float("nan"))) for direction in ("i2t", "t2i") for key in RECALLS]
    cells = [
        f"{value:.0f}" if key == "medr" and value.is_integer() else f"{value:.1f}"
        for value, key in zip(values, RECALLS * 2, strict=True)
    ]
    row = Row(kind, label, note, cells, values, float(block["rsum"]))
    if bounds := block.get("intervals"):
        row.intervals = [
            "{:.1f} – {:.1f}".format(*bounds[direction][key]) for direction in ("i2t", "t2i") for key in RECALLS
        ]
        row.rsum_interval = "{:.1f} – {:.1f}".format(*bounds["rsum"])
    return row


def results_tables(artefacts: Artefacts) -> list[dict[str, Any]]:
    """Per test set: its systems with their fold means, then controls and chance."""
    tables = []
    for testset, settings in artefacts.section("testsets").items():
        systems, checks, size, chance = [], [], None, None
        for system in artefacts.systems():
            metrics = artefacts.metrics(system, testset)
            if metrics is None:
                continue
            size = size or metrics
            chance = chance or metrics.get("chance")
            trained = [dataset for dataset in system.datasets if dataset]
            notes = [f"mean of {' + '.join(system.members)}"] if system.ensemble else []
            if trained and settings.get("dataset") not in trained:
                notes.append(f"trained on {', '.join(trained)}")
            kind = "ensemble" if system.ensemble else "run"
            systems.append(_row(kind, system.name, "; ".join(notes), metrics))
            if folds := metrics.get("folds"):
                label = f"{folds['count']}-fold mean"
                systems.append(_row("folds", label, f"{folds['images_per_fold']} images each", folds))
            if cxc := metrics.get("protocols", {}).get("cxc"):
                systems.append(_row("protocol", "Crisscrossed Captions", "with its further right answers", cxc))
            if control := metrics.get("control"):
                checks.append(_row("control", system.name, "control: images shuffled", control))
        _mark_best([row for row in systems if row.kind in ("run", "ensemble")])
        _mark_best([row for row in systems if row.kind == "folds"])
        if chance:
            checks.append(_row("chance", "chance", "computed", chance))
        tables.append(
            {
                "testset": testset,
                "dataset": settings.get("dataset", ""),
                "split": settings.get("split", ""),
                "images": size["images"] if size else 0,
                "captions": size["captions"] if size else 0,
                "systems": systems,
                "checks": checks,
                "chance": chance,
                "protocols": protocol_tables(artefacts, testset),
            }
        )
    return tables


#: Results of protocols whose columns are not the main table's: title, block of a metrics file, retrievals, columns by key.
_PROTOCOL_TABLES = (
    (
        "Crisscrossed Captions, within images and within texts",
        "cxc",
        {"i2i": "Image → image", "t2t": "Text → text"},
        {"r1": "R@1", "r5": "R@5", "r10": "R@10"},
    ),
    (
        "ECCV Caption",
        "eccv",
        {"i2t": "Image → text", "t2i": "Text → image"},
        {"map_at_r": "mAP@R", "r_precision": "R-P", "r1": "R@1"},
    ),
)


def protocol_tables(artefacts: Artefacts, testset: str) -> list[dict[str, Any]]:
    """Tables of the protocols that a test set was scored by beside the standard one; none where there are none."""
    tables = []
    for title, protocol, directions, columns in _PROTOCOL_TABLES:
        rows = []
        for system in artefacts.systems():
            block = ((artefacts.metrics(system, testset) or {}).get("protocols") or {}).get(protocol)
            if not block or not directions.keys() <= block.keys():
                continue
            bounds = block.get("intervals") or {}
            cells = [
                {
                    "text": f"{block[direction][key]:.1f}",
                    "interval": "{:.1f} – {:.1f}".format(*bounds[direction][key]) if direction in bounds else "",
                }
                for direction in directions
                for key in columns
            ]
            rows.append({"label": system.name, "ensemble": system.ensemble, "cells": cells})
        if rows:
            groups = [{"title": title, "columns": list(columns.values())} for title in directions.values()]
            tables.append({"title": title, "groups": groups, "rows": rows})
    return tables


def _mark_best(rows: Sequence[Row]) -> None:
    for row in rows:
        row.best = [False] * (len(row.values) + 1)
    if len(rows) < 2:
        return
    for column in range(len(rows[0].values) + 1):
        values = [[*row.values, row.rsum][column] for row in rows]
        lower_is_better = column % len(RECALLS) == RECALLS.index("medr") and column < len(rows[0].values)
        top = min(values) if lower_is_better else max(values)
        for row, value in zip(rows, values, strict=True):
            row.best[column] = value == top and min(values) != max(values)


def tiles(tables: Sequence[dict[str, Any]], stages: Sequence[Stage]) -> list[dict[str, str]]:
    """The figures at the top of the page: the best system of the first test set that has results."""
    table = next((table for table in tables if table["systems"]), None)
    found = []
    if table:
        best = max((row for row in table["systems"] if row.kind in ("run", "ensemble")), key=lambda row: row.rsum)
        chance = table["chance"]
        for label, value, by_chance in (
            ("rSum", best.rsum, chance and chance["rsum"]),
            ("image → text, R@1", best.values[0], chance and chance["i2t"]["r1"]),
            ("text → image, R@1", best.values[len(RECALLS)], chance and chance["t2i"]["r1"]),
        ):
            unit = "" if label == "rSum" else " %"
            note = f"{best.label} on {table['testset']}" + (f"; chance {by_chance:.1f}{unit}" if by_chance else "")
            found.append({"label": label, "value": f"{value:.1f}{unit}", "note": note})
    seconds = sum(stage.seconds.get("total", 0.0) for stage in stages)
    working = seconds - sum(stage.seconds.get("startup", 0.0) for stage in stages)
    if working > 0:
        images = sum(stage.images for stage in stages)
        found.append(
            {
                "label": "feature extraction",
                "value": f"{images / working:.1f} images/s",
                "note": f"{images:,} image passes, {duration(seconds)} with start-up",
            }
        )
    return found


# --- training --------------------------------------------------------------------------------------------------------

_LOSS = ("loss", "train_loss", "training_loss")
_RSUM = ("rsum", "val_rsum", "rSum", "validation_rsum")


def training(artefacts: Artefacts) -> dict[str, Any]:
    """The curves of all runs and, for those who cannot see them, the numbers behind."""
    histories = [history for run in artefacts.section("runs") if (history := artefacts.history(run))]
    slots = {history.run: slot % PALETTE_SLOTS for slot, history in enumerate(histories)}
    charts = []
    for names, title, unit, best in (
        (_LOSS, "Training loss", "", ""),
        (_RSUM, "rSum on the validation split", "", "max"),
    ):
        series = [
            Series(history.run, _epochs(history), values, slots[history.run])
            for history in histories
            if (values := history.column(*names)) is not None
        ]
        if svg := line_chart(series, title=title, x_label="epoch", unit=unit, best=best):
            charts.append({"title": title, "svg": svg, "best": bool(best)})
    tables = [
        {"run": history.run, "columns": list(history.columns), "rows": _history_rows(history)}
        for history in histories
        if history.columns
    ]
    return {"charts": charts, "legend": list(slots.items()), "tables": tables}


def _epochs(history: History) -> list[float]:
    epochs = history.column("epoch")
    return epochs if epochs is not None else list(range(1, len(next(iter(history.columns.values()), [])) + 1))


def _history_rows(history: History) -> list[list[str]]:
    columns = list(history.columns.values())
    return [[f"{value:.5g}" if math.isfinite(value) else "" for value in row] for row in zip(*columns, strict=False)]


# --- datasets and features -------------------------------------------------------------------------------------------


def dataset_summaries(artefacts: Artefacts, seed: int) -> list[dict[str, Any]]:
    """Per dataset: images and captions per split, unreadable images, and some examples drawn at random."""
    summaries, sheets = [], []
    for position, (name, settings) in enumerate(artefacts.section("datasets").items()):
        index = artefacts.index(name)
        if index is None:
            continue
        images, captions = index.images, index.captions
        owner = pc.index_in(captions["image_id"], value_set=images["image_id"].combine_chunks())
        caption_splits = images["split"].take(owner)
        image_counts, caption_counts = _counts(images["split"]), _counts(caption_splits)
        bad = images.filter(pc.is_valid(images["error"])) if "error" in images.column_names else images.slice(0, 0)
        generator = np.random.default_rng([seed, position])
        readable = np.flatnonzero(np.asarray(images["width"]) > 0)
        rows = np.sort(generator.choice(readable, min(len(readable), SHEET_IMAGES), replace=False))
        sheet = _pictures(index, rows, prefix=f"d{position}-")
        sheets += sheet
        summaries.append(
            {
                "name": name,
                "source": settings.get("source", ""),
                "splits": [(split, count, caption_counts.get(split, 0)) for split, count in image_counts.items()],
                "images": images.num_rows,
                "captions": captions.num_rows,
                "bad": bad.select(["image_id", "path", "error"]).slice(0, MAX_LISTED).to_pylist(),
                "bad_count": bad.num_rows,
                "sheet": sheet,
                "digest": index.digest,
            }
        )
    encode_pictures(sheets, SHEET_BYTES)
    return summaries


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    """Value -> how often, in order of first appearance, nulls left out."""
    counted = pc.value_counts(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist() if entry["values"] is not None}


def feature_stages(artefacts: Artefacts) -> list[Stage]:
    """Every dataset x feature that left receipts."""
    return [
        stage
        for dataset in artefacts.section("datasets")
        for feature in artefacts.features
        if (stage := artefacts.stage(dataset, feature))
    ]


def stage_rows(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The stages as the template shows them; bars are as long as a stage's share of the slowest."""
    longest = max((stage.seconds.get("total", 0.0) for stage in stages), default=0.0)
    rows = []
    for stage in stages:
        total = stage.seconds.get("total", 0.0)
        rate = stage.images_per_second
        rows.append(
            {
                "dataset": stage.dataset,
                "feature": stage.feature,
                "images": f"{stage.images:,}",
                "shards": stage.shards,
                "seconds": duration(total),
                "rate": f"{rate:,.1f}" if rate else "–",
                "devices": ", ".join(stage.devices),
                "parts": stage.parts,
                "width": 100 * total / longest if longest else 0,
                "failures": len({*stage.dropped, *(str(failure.get("image_id")) for failure in stage.failures)}),
                "dropped": len(stage.dropped),
                "sealed": stage.sealed,
            }
        )
    return rows


def failed_images(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Per dataset, each image that some feature could not be made of: what failed in which features, and if dropped."""
    datasets: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in stages:
        images = datasets.setdefault(stage.dataset, {})
        failures = {str(failure.get("image_id")): failure for failure in stage.failures}
        for image_id in sorted({*failures, *stage.dropped}):
            failure = failures.get(image_id, {})
            image = images.setdefault(image_id, {"image_id": image_id, "path": "", "error": "", "features": []})
            image["path"] = image["path"] or str(failure.get("path", ""))
            image["error"] = image["error"] or str(failure.get("error", ""))
            image["features"].append(stage.feature)
            image["dropped"] = image.get("dropped", False) or image_id in stage.dropped
    return [
        {"dataset": name, "count": len(images), "images": list(images.values())[:MAX_LISTED]}
        for name, images in datasets.items()
        if images
    ]


# --- gallery ---------------------------------------------------------------------------------------------------------


@dataclass
class _Shown:
    """The pictures and caption texts of one test set that its gallery refers to."""

    index: Index
    prefix: str
    pictures: dict[str, Picture] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def galleries(artefacts: Artefacts, count: int, seed: int) -> tuple[list[dict[str, Any]], list[Picture]]:
    """Per test set, the same queries as answered by each system; and all pictures they refer to, encoded."""
    shown, pictures = [], []
    for position, (testset, settings) in enumerate(artefacts.section("testsets").items()):
        if len(shown) == MAX_GALLERIES:
            artefacts.note(f"The gallery shows the first {MAX_GALLERIES} test sets only.")
            break
        gallery = _gallery(artefacts, testset, settings, position, count, seed)
        if gallery:
            shown.append(gallery)
            pictures += gallery["pictures"]
    if pictures:
        encode_pictures(pictures, PICTURE_BYTES)
    return shown, pictures


def _gallery(
    artefacts: Artefacts, testset: str, settings: Mapping[str, Any], position: int, count: int, seed: int
) -> dict[str, Any] | None:
    index = artefacts.index(str(settings.get("dataset")))
    scored = [(system, metrics) for system in artefacts.systems() if (metrics := artefacts.metrics(system, testset))]
    if index is None or not scored:
        return None
    runs = {run for system, _ in scored for run in system.members}
    loaded = {run: embeddings for run in sorted(runs) if (embeddings := artefacts.embeddings(run, testset))}
    candidates: list[tuple[System, float, list[Embeddings]]] = []
    for system, metrics in scored:
        members = [loaded[run] for run in system.members if run in loaded]
        if len(members) == len(system.members) and members and len(members[0].captions) and _same_items(members):
            candidates.append((system, float(metrics["rsum"]), members))
    if not candidates:
        return None
    if len(candidates) > MAX_SYSTEMS:
        artefacts.note(
            f"The gallery of {testset} compares the {MAX_SYSTEMS} best of {len(candidates)} runs and ensembles."
        )
        kept = sorted(candidates, key=lambda candidate: -candidate[1])[:MAX_SYSTEMS]
        candidates = [candidate for candidate in candidates if candidate in kept]
    best = max(range(len(candidates)), key=lambda number: candidates[number][1])
    reference = candidates[best][2]
    queries = choose_queries(reference, count, seed)
    caption_ids = [str(reference[0].caption_ids[row]) for row in queries.captions]
    image_ids = [str(reference[0].image_ids[row]) for row in queries.images]
    answers = [_answers(members, caption_ids, image_ids) for _, _, members in candidates]
    shown = _Shown(index, f"t{position}-")
    _collect(
        artefacts, str(settings.get("dataset")), shown, [members for *_, members in candidates], answers, image_ids
    )
    panels = []
    for number, ((system, rsum, members), (to_images, to_captions)) in enumerate(zip(candidates, answers, strict=True)):
        panels.append(
            {
                "id": f"t{position}s{number}",
                "name": system.name,
                "ensemble": system.ensemble,
                "rsum": rsum,
                "checked": number == best,
                "to_images": [_caption_query(shown, members[0], *item) for item in to_images],
                "to_captions": [_image_query(shown, members[0], *item) for item in to_captions],
            }
        )
    return {
        "testset": testset,
        "dataset": settings.get("dataset"),
        "split": settings.get("split", ""),
        "panels": panels,
        "reference": candidates[best][0].name,
        "pictures": list(shown.pictures.values()),
        "has_boxes": any(picture.boxes for picture in shown.pictures.values()),
        "has_maps": any(picture.map_png for picture in shown.pictures.values()),
    }


def _same_items(members: Sequence[Embeddings]) -> bool:
    return all(
        np.array_equal(members[0].image_ids, member.image_ids)
        and np.array_equal(members[0].caption_ids, member.caption_ids)
        for member in members[1:]
    )


_Answers = list[tuple[str, Answer | None]]


def _answers(
    members: Sequence[Embeddings], caption_ids: Sequence[str], image_ids: Sequence[str]
) -> tuple[_Answers, _Answers]:
    """Query id -> answer for both directions; None where this system's embeddings lack the query (a dropped image)."""
    first = members[0]

    def rows_of(wanted: Sequence[str], ids: np.ndarray) -> dict[str, int]:
        rows = {str(ids[row]): int(row) for row in np.flatnonzero(np.isin(ids, list(wanted)))}
        return {query: rows[query] for query in wanted if query in rows}

    captions, images = rows_of(caption_ids, first.caption_ids), rows_of(image_ids, first.image_ids)
    to_images: dict[str, Answer] = {}
    if captions:
        scores = image_scores(members, np.array(list(captions.values())))
        for (query, row), line in zip(captions.items(), scores, strict=True):
            to_images[query] = answer(line, np.arange(len(line)) == first.caption_image[row])
    to_captions: dict[str, Answer] = {}
    if images:
        scores = caption_scores(members, np.array(list(images.values())))
        for (query, row), line in zip(images.items(), scores, strict=True):
            right = first.caption_image == row
            if right.any():
                to_captions[query] = answer(line, right)
    return [(query, to_images.get(query)) for query in caption_ids], [
        (query, to_captions.get(query)) for query in image_ids
    ]


def _hits(found: Answer | None) -> list[Hit]:
    return [] if found is None else [*found.hits, *([found.missed] if found.missed else [])]


def _collect(
    artefacts: Artefacts,
    dataset: str,
    shown: _Shown,
    systems: Sequence[Sequence[Embeddings]],
    answers: Sequence[tuple[_Answers, _Answers]],
    image_ids: Sequence[str],
) -> None:
    """Load the pictures and captions that any system's answers refer to, each once."""
    images: dict[str, None] = dict.fromkeys(image_ids)
    captions: dict[str, None] = {}
    for members, (to_images, to_captions) in zip(systems, answers, strict=True):
        first = members[0]
        for query, found in to_images:
            captions[query] = None
            images.update(dict.fromkeys(str(first.image_ids[hit.row]) for hit in _hits(found)))
        for _, found in to_captions:
            captions.update(dict.fromkeys(str(first.caption_ids[hit.row]) for hit in _hits(found)))
    table = shown.index.captions
    table = table.filter(pc.is_in(table["caption_id"], value_set=pa.array(list(captions), pa.string())))
    shown.texts = dict(zip(table["caption_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    rows = pc.index_in(pa.array(list(images), pa.string()), value_set=shown.index.images["image_id"].combine_chunks())
    if rows.null_count:
        raise UserError(
            f"the embeddings of dataset {dataset} hold images that its index lacks: run the evaluation again"
        )
    pictures = _pictures(shown.index, np.asarray(rows), prefix=shown.prefix)
    _add_layers(artefacts, dataset, pictures, np.asarray(rows))
    shown.pictures = {picture.image_id: picture for picture in pictures}


def _pictures(index: Index, rows: np.ndarray, prefix: str) -> list[Picture]:
    """Pictures (not yet encoded) of the given rows of the index, described by their first caption."""
    images = index.images.take(pa.array(rows, pa.int64())).to_pylist()
    ids = pa.array([image["image_id"] for image in images], pa.string())
    captions = index.captions.filter(pc.is_in(index.captions["image_id"], value_set=ids))
    first: dict[str, str] = {}
    for image_id, text in zip(captions["image_id"].to_pylist(), captions["text"].to_pylist(), strict=True):
        first.setdefault(image_id, text)
    return [
        Picture(
            key=f"{prefix}{number}",
            path=image["path"],
            image_id=image["image_id"],
            alt=shorten(first.get(image["image_id"], f"image {image['image_id']}"), 200),
            width=max(1, image["width"] or 1),
            height=max(1, image["height"] or 1),
        )
        for number, image in enumerate(images)
    ]


def _add_layers(artefacts: Artefacts, dataset: str, pictures: Sequence[Picture], rows: np.ndarray) -> None:
    regions = artefacts.store(dataset, "regions")
    if regions is None:
        artefacts.note(f"Dataset {dataset} has no region features, so its gallery has no boxes.")
    elif not {"boxes", "scores", "class_ids"} <= set(regions.arrays):
        artefacts.note(f"Dataset {dataset} has imported region features without boxes, scores or classes.")
    else:
        names = (
            regions.attributes.get("class_names") or regions.attributes.get("extractor", {}).get("class_names") or ()
        )
        arrays = {name: regions.rows(name, rows) for name in ("boxes", "scores", "class_ids", "counts")}
        for number, picture in enumerate(pictures):
            n = int(arrays["counts"][number])
            picture.boxes = top_boxes(*(arrays[name][number][:n] for name in ("boxes", "scores", "class_ids")), names)
    panoptic = artefacts.store(dataset, "panoptic")
    if panoptic is None:
        artefacts.note(f"Dataset {dataset} has no panoptic features, so its gallery has no panoptic maps.")
    else:
        for picture, seg_map in zip(pictures, panoptic.rows("seg_maps", rows), strict=True):
            picture.map_png, picture.areas = panoptic_overlay(seg_map)


def _caption_query(shown: _Shown, embeddings: Embeddings, query: str, found: Answer | None) -> dict[str, Any]:
    hits = [{"hit": hit, "picture": shown.pictures[str(embeddings.image_ids[hit.row])]} for hit in _hits(found)]
    return {
        "text": shorten(shown.texts.get(query, ""), 600),
        "answer": found,
        "hits": hits,
        "areas": _legend(entry["picture"] for entry in hits),
    }


def _image_query(shown: _Shown, embeddings: Embeddings, query: str, found: Answer | None) -> dict[str, Any]:
    hits = []
    for hit in _hits(found):
        text = shown.texts.get(str(embeddings.caption_ids[hit.row]), "")
        hits.append({"hit": hit, "text": shorten(text, 600)})
    picture = shown.pictures[query]
    return {"picture": picture, "answer": found, "hits": hits, "areas": _legend([picture])}


def _legend(pictures: Iterable[Picture], limit: int = 12) -> list[Area]:
    """Categories of the pictures' panoptic maps, those that cover most first; specks are left out."""
    total: dict[str, Area] = {}
    for picture in pictures:
        for area in picture.areas:
            known = total.get(area.name)
            total[area.name] = Area(area.name, area.colour, area.share + (known.share if known else 0.0))
    return sorted((area for area in total.values() if area.share >= 0.5), key=lambda area: -area.share)[:limit]


# --- configuration ---------------------------------------------------------------------------------------------------


def versions() -> list[tuple[str, str]]:
    """Versions of Python and of the packages that make the numbers, as installed where the report is made."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def digests(artefacts: Artefacts) -> list[tuple[str, str, str]]:
    """(what, name, sha256) of the indexes and of the weights behind each feature store."""
    found = []
    for dataset in artefacts.section("datasets"):
        if index := artefacts.index(dataset):
            found.append(("index", dataset, index.digest))
        for feature in artefacts.features:
            store = artefacts.store(dataset, feature)
            if store is not None and store.attributes.get("weights_digest"):
                found.append((f"{feature} weights", dataset, str(store.attributes["weights_digest"])))
    return found


# --- page ------------------------------------------------------------------------------------------------------------


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of `text`, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def duration(seconds: float) -> str:
    """Seconds for readers: 8.3 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def summary(artefacts: Artefacts, tables: Sequence[dict[str, Any]]) -> str:
    """One sentence that says what was trained and scored."""

    def counted(number: int, word: str) -> str:
        return f"{number} {word}{'' if number == 1 else 's'}"

    parts = [counted(len(artefacts.section("runs")), "run")]
    if artefacts.section("ensembles"):
        parts.append(counted(len(artefacts.section("ensembles")), "ensemble"))
    return f"{' and '.join(parts)} on {counted(len(tables), 'test set')}"


def build(artefacts: Artefacts, *, queries: int, seed: int) -> dict[str, Any]:
    """All values of the template. `queries`: per direction and test set; `seed`: of everything drawn at random."""
    tables = results_tables(artefacts)
    stages = feature_stages(artefacts)
    shown, pictures = galleries(artefacts, queries, seed)
    datasets = dataset_summaries(artefacts, seed)
    context = {
        "summary": summary(artefacts, tables),
        "tiles": tiles(tables, stages),
        "tables": tables,
        "training": training(artefacts),
        "galleries": shown,
        "pictures": pictures,
        "found": FOUND,
        "datasets": datasets,
        "stages": stage_rows(stages),
        "failed": failed_images(stages),
        "parts": [*SECONDS, "other"],
        "on_bad_image": artefacts.section("features").get("on_bad_image", "fail"),
        "config": yaml.safe_dump(artefacts.config, sort_keys=False, allow_unicode=True, width=110),
        "run_configs": [
            (run, yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)[:20_000])
            for run in artefacts.section("runs")
            if (config := artefacts.run_config(run))
        ],
        "versions": versions(),
        "digests": digests(artefacts),
    }
    # Last, as everything above may add to them.
    return context | {"notes": list(artefacts.notes)}


def render(context: Mapping[str, Any]) -> str:
    """The page. Every value is escaped, as captions, file names and settings are anybody's text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(context)
