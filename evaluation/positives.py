"""Which images and captions of COCO's 5K test set count as right answers beyond the original pairs.

Two sets of positives exist. Crisscrossed Captions (CxC; Parekh et al., EACL 2021) rated pairs of all three kinds; ECCV
Caption (Chun et al., ECCV 2022) had machine-found candidates verified by people. Both name images by COCO's image id and
captions by COCO's annotation id. In Karpathy's `dataset_coco.json`, from which COCO is indexed here, `cocoid` is that
image id and `sentid` that annotation id (sentids 770337, 771687, ... of image 391895 are the annotations of those
numbers), so ids are compared as they are; see `item_key` for the spellings that mean the same.

No torch and no NumPy here: the configuration is checked with this module.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

from core.console import UserError
from core.files import parse_json

PROTOCOLS = ("cxc", "eccv")
PACKAGE = "eccv_caption"
# A pair is positive from this mean rating on, on a scale of 0 to 5 (Parekh et al., section 5; vse_infty's evaluation).
THRESHOLDS = {"it": 3.0, "i2i": 2.5, "t2t": 3.0}
# Alternatives in order of preference: vse_infty's files, those of the CxC repository, those of the package.
FILES = {
    "cxc": (
        ("cxc_it.json", "cxc_i2i.json", "cxc_t2t.json"),
        ("sits_test.csv", "sis_test.csv", "sts_test.csv"),
        ("cxc_image_to_caption.json", "cxc_caption_to_image.json", "original_image_to_caption.json"),
    ),
    "eccv": (("eccv_image_to_caption.json", "eccv_caption_to_image.json", "original_image_to_caption.json"),),
}


@dataclass(frozen=True)
class Positives:
    """The right answers of one protocol.

    Attributes:
        protocol: cxc or eccv.
        retrievals: by direction (i2t, t2i, i2i, t2t), query id -> ids of its right answers, never the query itself.
            Queries without a right answer are left out. In t2t the captions of one image are right answers of each
            other besides; only the index knows them.
        images, captions: ids of the whole gallery, queries or not.
        source: the files read.
    """

    protocol: str
    retrievals: dict[str, dict[str, list[str]]]
    images: set[str]
    captions: set[str]
    source: list[str] = field(default_factory=list)


def item_key(item: object) -> str:
    """One spelling per item: COCO's number where the id is one of COCO's names, else the id itself.

    `391895`, `COCO_val2014_000000391895.jpg` and `val2014/COCO_val2014_000000391895` are one image,
    `COCO_val2014:sentid:770337` and `770337` are one caption.
    """
    text = str(item)
    match = re.fullmatch(r"(?:.*/)?COCO_[a-z]+\d{4}_0*(\d+)(?:\.\w+)?|COCO_[a-z]+\d{4}:sentid:(\d+)|0*(\d+)", text)
    return next(part for part in match.groups() if part) if match and int(match[match.lastindex]) else text


def positives_files(protocol: str, folder: str | None) -> list[Path]:
    """The files that hold a protocol's positives: in `folder`, or else in the installed package `eccv-caption`.

    Raises:
        UserError: neither has them.
    """
    places = [Path(folder)] if folder else []
    package = importlib.util.find_spec(PACKAGE)
    if package and package.origin:
        places.append(Path(package.origin).parent / "data")
    for place in places:
        for names in FILES[protocol]:
            if all((place / name).is_file() for name in names):
                return [place / name for name in names]
    looked_in = f"folder {folder!r} holds" if folder else "no `positives` folder is given, which would hold"
    alternatives = ", or ".join(" and ".join(names) for names in FILES[protocol])
    raise UserError(
        f"no positives for the protocol {protocol!r}: {looked_in} {'none of ' if folder else ''}{alternatives}"
        f"{'' if package else '; nor is the package installed that has them (pip install eccv-caption)'}"
    )


def read_positives(protocol: str, folder: str | None = None) -> Positives:
    """Read the positives of `cxc` or `eccv` (see `positives_files`).

    The package has no image-image and no text-text ratings: CxC read from it has the two cross-modal retrievals only.

    Raises:
        UserError: there are none, or a file is not what its name says.
    """
    files = positives_files(protocol, folder)
    try:
        if files[0].name == "cxc_it.json":
            retrievals, images, captions = _vse_infty(*files)
        elif files[0].suffix == ".csv":
            retrievals, images, captions = _ratings(*files)
        else:
            retrievals, images, captions = _package(*files)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"the positives of {protocol!r} in {', '.join(map(str, files))} cannot be read "
            f"({type(error).__name__}: {error}); download them again"
        ) from error
    return Positives(protocol, retrievals, images, captions, [str(path) for path in files])


def _json(path: Path) -> dict:
    return parse_json(path.read_text(encoding="utf-8"))


def _package(i2t: Path, t2i: Path, original: Path) -> tuple[dict[str, dict[str, list[str]]], set[str], set[str]]:
    retrievals = {
        direction: {item_key(query): [item_key(answer) for answer in answers] for query, answers in _json(path).items()}
        for direction, path in (("i2t", i2t), ("t2i", t2i))
    }
    gallery = _json(original)
    return _answered(retrievals), set(map(item_key, gallery)), {item_key(c) for own in gallery.values() for c in own}


def _vse_infty(it: Path, i2i: Path, t2t: Path) -> tuple[dict[str, dict[str, list[str]]], set[str], set[str]]:
    """Files {query: [[answer, rating], ...]}; `it` holds positives only, and every item of the gallery as a key."""
    pairs = _json(it)
    retrievals = {
        direction: {item_key(q): [item_key(a[0]) for a in answers] for q, answers in pairs[direction].items()}
        for direction in ("i2t", "t2i")
    }
    for direction, path in (("i2i", i2i), ("t2t", t2t)):
        retrievals[direction] = {
            item_key(q): [item_key(a[0]) for a in answers if float(a[1]) >= THRESHOLDS[direction]]
            for q, answers in _json(path).items()
        }
    return _answered(retrievals), set(map(item_key, pairs["i2t"])), set(map(item_key, pairs["t2i"]))


def _ratings(sits: Path, sis: Path, sts: Path) -> tuple[dict[str, dict[str, list[str]]], set[str], set[str]]:
    """CxC's own tables, `item, item, mean rating, how the pair was sampled`; a pair of one kind counts in both orders.

    The original pairs are rated too; the few below the threshold are no positives any more.
    """
    retrievals: dict[str, dict[str, list[str]]] = {name: {} for name in ("i2t", "t2i", "i2i", "t2t")}
    images, captions = set(), set()
    for path, threshold, there, back in (
        (sits, THRESHOLDS["it"], "t2i", "i2t"),
        (sis, THRESHOLDS["i2i"], "i2i", "i2i"),
        (sts, THRESHOLDS["t2t"], "t2t", "t2t"),
    ):
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) is None:
                raise ValueError(f"{path.name} is empty")
            for first, second, rating, *_ in rows:
                one, other = item_key(first), item_key(second)
                if path == sits:
                    captions.add(one)
                    images.add(other)
                if float(rating) >= threshold:
                    retrievals[there].setdefault(one, []).append(other)
                    retrievals[back].setdefault(other, []).append(one)
    return _answered(retrievals), images, captions


def _answered(retrievals: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, list[str]]]:
    """Without repeats, without a query as its own answer, and without queries that are left with no answer."""
    return {
        direction: {
            query: unique
            for query, answers in queries.items()
            if (unique := [a for a in dict.fromkeys(answers) if a != query or direction in ("i2t", "t2i")])
        }
        for direction, queries in retrievals.items()
    }
