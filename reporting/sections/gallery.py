"""What the systems find for the same few queries, with boxes and panoptic maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.index import Index
from core.console import UserError
from evaluation.scores import Scored
from reporting.artefacts import Artefacts, System
from reporting.gallery import FOUND, Answer, Hit, answer, caption_scores, choose_queries, image_scores
from reporting.painted import overlay, pair
from reporting.pictures import Area, Picture, encode_pictures, indexed_pictures, panoptic_overlay, top_boxes
from reporting.words import MOST, shorten
from stores.class_names import class_names, read_names

TITLE = "Gallery"


def context(artefacts: Artefacts, queries: int, seed: int) -> dict[str, Any]:
    """The galleries; `queries` per direction and test set, drawn by `seed`. Left out where there are none."""
    shown, pictures = galleries(artefacts, queries, seed)
    return {"galleries": shown, "pictures": pictures, "found": FOUND, "shown": bool(shown)}


PICTURE_BYTES = 1_400_000  # of the gallery's encoded images together; the whole report stays below 3 MB
MAX_GALLERIES = 4  # test sets with a gallery
MAX_SYSTEMS = 4  # systems a gallery compares


@dataclass
class _Shown:
    """The pictures and caption texts of one test set that its gallery refers to."""

    index: Index
    prefix: str
    pictures: dict[str, Picture] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()  # of the regions' classes
    why: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each run, by `pair`: see `reporting.why`


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


_Answers = list[tuple[str, Answer | None]]


@dataclass(frozen=True)
class Found:
    """What the systems of a test set found for the queries of its gallery.

    Attributes:
        index: of its dataset. systems: each with its rSum and what its members scored. best: number of the best of them.
        caption_ids, image_ids: the queries. answers: of each system, to both kinds.
    """

    index: Index
    systems: list[tuple[System, float, list[Scored]]]
    best: int
    caption_ids: list[str]
    image_ids: list[str]
    answers: list[tuple[_Answers, _Answers]]


def scored_systems(
    artefacts: Artefacts, testset: str, settings: Mapping[str, Any]
) -> tuple[Index, list[tuple[System, float, list[Scored]]], int] | None:
    """The index of a test set's dataset, the systems that are compared, each with its rSum and what its members scored, and the
    number of the best of them; None if nothing is scored."""
    index = artefacts.index(str(settings.get("dataset")))
    scored = [(system, metrics) for system in artefacts.systems() if (metrics := artefacts.metrics(system, testset))]
    if index is None or not scored:
        return None
    runs = {run for system, _ in scored for run in system.members}
    loaded = {run: embeddings for run in sorted(runs) if (embeddings := artefacts.scored(run, testset))}
    candidates: list[tuple[System, float, list[Scored]]] = []
    for system, metrics in scored:
        members = [loaded[run] for run in system.members if run in loaded]
        if len(members) == len(system.members) and members and len(members[0].caption_ids) and _same_items(members):
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
    return index, candidates, best


def find(artefacts: Artefacts, testset: str, settings: Mapping[str, Any], count: int, seed: int) -> Found | None:
    """`count` queries per direction on a test set, drawn by `seed`, and their answers; None if nothing is scored."""
    scored = scored_systems(artefacts, testset, settings)
    if scored is None:
        return None
    index, candidates, best = scored
    reference = candidates[best][2]
    queries = choose_queries(reference, count, seed)
    caption_ids = [str(reference[0].caption_ids[row]) for row in queries.captions]
    image_ids = [str(reference[0].image_ids[row]) for row in queries.images]
    answers = [_answers(members, caption_ids, image_ids) for _, _, members in candidates]
    return Found(index, candidates, best, caption_ids, image_ids, answers)


def _gallery(
    artefacts: Artefacts, testset: str, settings: Mapping[str, Any], position: int, count: int, seed: int
) -> dict[str, Any] | None:
    found = find(artefacts, testset, settings, count, seed)
    if found is None:
        return None
    candidates, best, answers = found.systems, found.best, found.answers
    dataset = str(settings.get("dataset"))
    shown = _Shown(found.index, f"t{position}-", names=_region_names(artefacts, dataset), why=artefacts.why(testset))
    _collect(
        artefacts,
        dataset,
        shown,
        [members for *_, members in candidates],
        answers,
        found.image_ids,
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
                "to_images": [_caption_query(shown, system, members[0], *item) for item in to_images],
                "to_captions": [_image_query(shown, system, members[0], *item) for item in to_captions],
            }
        )
    return {
        "testset": testset,
        "dataset": dataset,
        "split": settings.get("split", ""),
        "panels": panels,
        "reference": candidates[best][0].name,
        "pictures": list(shown.pictures.values()),
        "has_boxes": any(picture.boxes for picture in shown.pictures.values()),
        "has_why": bool(shown.why),
        "unfamiliar": artefacts.unfamiliar(str(settings.get("dataset"))),
        "has_maps": any(picture.map_png for picture in shown.pictures.values()),
    }


def _same_items(members: Sequence[Scored]) -> bool:
    return all(
        np.array_equal(members[0].image_ids, member.image_ids)
        and np.array_equal(members[0].caption_ids, member.caption_ids)
        for member in members[1:]
    )


def _answers(
    members: Sequence[Scored], caption_ids: Sequence[str], image_ids: Sequence[str]
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


def hits_of(found: Answer | None) -> list[Hit]:
    return [] if found is None else [*found.hits, *([found.missed] if found.missed else [])]


def matches(embeddings: Scored, to_images: _Answers, to_captions: _Answers) -> Iterator[tuple[str, str]]:
    """(caption, image) of everything that a system's answers show."""
    for caption, found in to_images:
        yield from ((caption, str(embeddings.image_ids[hit.row])) for hit in hits_of(found))
    for image, found in to_captions:
        yield from ((str(embeddings.caption_ids[hit.row]), image) for hit in hits_of(found))


def _collect(
    artefacts: Artefacts,
    dataset: str,
    shown: _Shown,
    systems: Sequence[Sequence[Scored]],
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
            images.update(dict.fromkeys(str(first.image_ids[hit.row]) for hit in hits_of(found)))
        for _, found in to_captions:
            captions.update(dict.fromkeys(str(first.caption_ids[hit.row]) for hit in hits_of(found)))
    table = shown.index.captions
    table = table.filter(pc.is_in(table["caption_id"], value_set=pa.array(list(captions), pa.string())))
    shown.texts = dict(zip(table["caption_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    rows = pc.index_in(pa.array(list(images), pa.string()), value_set=shown.index.images["image_id"].combine_chunks())
    if rows.null_count:
        raise UserError(
            f"the embeddings of dataset {dataset} hold images that its index lacks: run the evaluation again"
        )
    pictures = indexed_pictures(shown.index, np.asarray(rows), prefix=shown.prefix)
    _add_layers(artefacts, dataset, pictures, np.asarray(rows))
    shown.pictures = {picture.image_id: picture for picture in pictures}


def _region_names(artefacts: Artefacts, dataset: str) -> list[str]:
    """Of the classes of a dataset's regions, as far as they are known."""
    regions = artefacts.store(dataset, "regions")
    return class_names(
        regions.attributes if regions else {}, read_names(artefacts.section("region_names").get("objects"))
    )


def _add_layers(artefacts: Artefacts, dataset: str, pictures: Sequence[Picture], rows: np.ndarray) -> None:
    regions = artefacts.store(dataset, "regions")
    if regions is None:
        artefacts.note(f"Dataset {dataset} has no region features, so its gallery has no boxes.")
    elif not {"boxes", "scores", "class_ids"} <= set(regions.arrays):
        artefacts.note(f"Dataset {dataset} has imported region features without boxes, scores or classes.")
    else:
        names = _region_names(artefacts, dataset)
        arrays = {name: regions.rows(name, rows) for name in ("boxes", "scores", "class_ids", "counts")}
        if 0 < len(names) <= (largest := int(arrays["class_ids"].max(initial=-1))):
            artefacts.note(
                f"There are names of {len(names)} classes, but regions of {dataset} are of classes up to {largest}: region_names.objects is the "
                "file of another detector, or of attributes."
            )
        for number, picture in enumerate(pictures):
            n = int(arrays["counts"][number])
            picture.boxes = top_boxes(*(arrays[name][number][:n] for name in ("boxes", "scores", "class_ids")), names)
    panoptic = artefacts.store(dataset, "panoptic")
    if panoptic is None:
        artefacts.note(f"Dataset {dataset} has no panoptic features, so its gallery has no panoptic maps.")
    else:
        for picture, seg_map in zip(pictures, panoptic.rows("seg_maps", rows), strict=True):
            picture.map_png, picture.areas = panoptic_overlay(seg_map)


def _caption_query(
    shown: _Shown, system: System, embeddings: Scored, query: str, found: Answer | None
) -> dict[str, Any]:
    hits = []
    for hit in hits_of(found):
        image = str(embeddings.image_ids[hit.row])
        hits.append({"hit": hit, "picture": shown.pictures[image], "why": _why(shown, system, query, image)})
    return {
        "text": shorten(shown.texts.get(query, ""), MOST),
        "answer": found,
        "hits": hits,
        "areas": _legend(entry["picture"] for entry in hits),
    }


def _image_query(shown: _Shown, system: System, embeddings: Scored, query: str, found: Answer | None) -> dict[str, Any]:
    hits = []
    for hit in hits_of(found):
        caption = str(embeddings.caption_ids[hit.row])
        why = _why(shown, system, caption, query)
        hits.append({"hit": hit, "text": shorten(shown.texts.get(caption, ""), MOST), "why": why})
    picture = shown.pictures[query]
    return {"picture": picture, "answer": found, "hits": hits, "areas": _legend([picture])}


def _why(shown: _Shown, system: System, caption: str, image: str) -> dict[str, Any] | None:
    """What is painted over an image for a caption; None unless every run of the system is explained."""
    told = [shown.why.get(run, {}).get(pair(caption, image)) for run in system.members]
    return overlay(told, shown.names) if all(told) else None


def _legend(pictures: Iterable[Picture], limit: int = 12) -> list[Area]:
    """Categories of the pictures' panoptic maps, those that cover most first; specks are left out."""
    total: dict[str, Area] = {}
    for picture in pictures:
        for area in picture.areas:
            known = total.get(area.name)
            total[area.name] = Area(area.name, area.colour, area.share + (known.share if known else 0.0))
    return sorted((area for area in total.values() if area.share >= 0.5), key=lambda area: -area.share)[:limit]
