"""Whether what a run was made of fits what it is scored on, as far as configuration, checkpoints' heads and files' heads tell: before any job."""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.categories import NUM_CATEGORIES
from core import layout
from core.console import UserError
from core.features import VISUAL, Feature
from core.section import Section
from model.checkpoints.heads import AUTHORS, SCORE, Published, published
from model.runs import imported_by_hand
from model.settings import Run
from published.registry import PREFIX, named_entry, resolve

Settings = Any  # settings.Settings, which imports this file
#: Numbers of a visual token by dataset and feature, where somebody knows more than the configuration.
Widths = dict[tuple[str, Feature], int]


@dataclass(frozen=True)
class Tokens:
    """A feature of a dataset: where the configuration says it, what it is called, and its width, None where not known yet."""

    place: str
    name: str
    width: int | None


def tokens(settings: Settings, name: str, feature: Feature, known: Widths | None = None) -> Tokens:
    """A feature of a dataset of the configuration."""
    dataset = settings.datasets[name]
    if feature in dataset.imported():
        place, maker, width = f"datasets.{name}", "files", dataset.width(feature)
    else:
        section = settings.features[feature]
        place, maker, width = f"features.{feature}", section.shown(), section.width(feature)
        width = width or _sealed_width(layout.sealed(settings.results, name, feature), section)
    return Tokens(place, f"{feature} of dataset {name!r} ({maker})", (known or {}).get((name, feature), width))


def odd_shapes(dataset: Any) -> Iterator[str]:
    """Precomputed arrays that no store can hold: of other shapes than a panoptic store's, or of several in the splits."""
    from stores.features import PANOPTIC_ARRAYS

    for feature in dataset.imported():
        for array, shapes in dataset.shapes(feature).items():
            wanted = PANOPTIC_ARRAYS[array].shape if feature == "panoptic" else next(iter(shapes.values()))
            for file, shape in shapes.items():
                if shape != wanted:
                    first = "panoptic stores have" if feature == "panoptic" else f"{next(iter(shapes))} has"
                    yield f"folder: {file} has arrays of shape {shape} for an image, {first} {wanted}; correct the files"


def _sealed_width(seal: str, section: Any) -> int | None:
    """That of a store that is there and of this extractor, whose files are no younger; what lies in a bucket is not asked for."""
    try:
        written = os.path.getmtime(seal)
        found = json.loads(Path(seal).read_text(encoding="utf-8"))["attributes"]
        stored, width = found["extractor"], found["arrays"]["features"]["shape"][-1]
        made = section.model_dump(exclude={"batch_size"})
        same = all(stored.get(key, value) == value for key, value in made.items())
        same = same and all(os.path.getmtime(file) <= written for file in section.files() if os.path.exists(file))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return width if same and isinstance(width, int) else None


def reads(settings: Settings, run: str) -> Iterator[tuple[str, str]]:
    """What a run encodes besides what it is trained on: the place that says so, and the dataset."""
    yield from ((f"testsets.{name}", testset.dataset) for name, testset in settings.testsets.items())
    yield from ((f"search.{name}", s.dataset) for name, s in settings.search.items() if run in s.runs)


def other_widths(
    settings: Settings,
    read: Iterable[tuple[str, str]],
    visual: Feature,
    width: int | None,
    whose: str,
    known: Widths | None = None,
) -> Iterator[str]:
    """Datasets whose visual tokens are not as wide as a network takes them.

    Args:
        read: as from `reads`. width: what it takes. whose: what says so, in words: "FILE takes".
    """
    told = set()
    for where, dataset in read:
        if dataset in told or visual not in _available(settings, dataset):
            continue
        found = tokens(settings, dataset, visual, known)
        if None not in (width, found.width) and found.width != width:
            told.add(dataset)
            yield (
                f"{whose} visual tokens of {width} numbers, but {where} has {found.name} of {found.width}; set {found.place} to what "
                f"the run was trained on, or name another run"
            )


def _available(settings: Settings, dataset: str) -> tuple[Feature, ...]:
    found = settings.datasets.get(dataset)
    return found.available() if found is not None else ()


def other_features(settings: Settings, name: str, known: Widths | None = None) -> Iterator[str]:
    """Test sets and searches whose features a run that is trained could not read: other widths, or another program's.

    `evaluation.encode` refuses them, after the training.
    """
    run = settings.runs[name]
    folder = layout.run_folder(settings.results, name)
    if "://" not in folder and imported_by_hand(folder):  # and not trained, whatever its dataset
        return
    told = set()
    for where, dataset in reads(settings, name):
        if dataset == run.dataset or dataset in told:
            continue
        for feature in run.features():
            if not all(feature in _available(settings, one) for one in (run.dataset, dataset)):
                continue
            ours, theirs = (tokens(settings, one, feature, known) for one in (run.dataset, dataset))
            own, other = (_origin(settings, one, feature) for one in (run.dataset, dataset))
            wide = feature in VISUAL and None not in (ours.width, theirs.width) and ours.width != theirs.width
            if not wide and own == other:
                continue
            told.add(dataset)
            what = f"{ours.width} and {theirs.width} numbers wide" if wide else f"{own} and {other}"
            yield (
                f"{where}.dataset: {dataset!r} cannot be read by run {name!r}: it is trained on {ours.name}, and this has "
                f"{theirs.name}, {what}; give both datasets features of one origin"
            )
            break


def _origin(settings: Settings, dataset: str, feature: Feature) -> str:
    section = settings.datasets[dataset]
    return f"imported, provenance {section.origin(feature)!r}" if feature in section.imported() else "extracted"


# --- checkpoints of authors


def checkpoint_faults(settings: Settings, name: str, file: str, known: Widths | None = None) -> Iterator[str]:
    """What of a run contradicts its checkpoint: `KEY: what and how to mend it`.

    Args:
        file: where the checkpoint lies.
    """
    run = settings.runs[name]
    try:
        found = published(file)
    except UserError as error:
        yield f"checkpoint: {error}"
        return
    if found.kind != run.model.kind:
        yield _of_another_kind(file, run, found)
        return
    yield from _contradicted(file, run, found)
    if found.categories not in (None, NUM_CATEGORIES):
        yield f"checkpoint: {file} has {found.categories} classes, but panoptic stores have {NUM_CATEGORIES}; get the one of that many"
    yield from _cells(settings, name, file, found.cells) if found.cells else ()
    if not (found.cells and run.visual != "grids"):
        read = reads(settings, name)
        yield from (
            f"checkpoint: {x}" for x in other_widths(settings, read, run.visual, found.img_dim, f"{file} takes", known)
        )
    yield from _words(file, run, found)


def _of_another_kind(file: str, run: Run, found: Published) -> str:
    if found.kind is None:
        return f"checkpoint: {file} is no checkpoint of {AUTHORS}: its image encoder is of no kind that is known"
    return f"checkpoint: {file} is a checkpoint of kind {found.kind}, not {run.model.kind}; write model: {{kind: {found.kind}}}"


def _cells(settings: Settings, name: str, file: str, architecture: str) -> Iterator[str]:
    """The head of a grid checkpoint on other tokens than the cells of its own CNN; `model.checkpoint.recognise` says it of a command."""
    grids = settings.features.grids
    fix = f"features.grids: {{architecture: {architecture}, weights: {file}, grid: native}}"
    if settings.runs[name].visual != "grids":
        yield (
            f"visual: {settings.runs[name].visual!r}, but {file} is a grid checkpoint, which reads the cells of its own CNN; write visual: "
            f"grids and {fix}"
        )
        return
    extracted = any(
        "grids" in settings.datasets[dataset].extracted()
        for _, dataset in reads(settings, name)
        if dataset in settings.datasets
    )
    weights = getattr(grids, "weights", None) or ""
    unknown = weights.startswith(PREFIX) and named_entry(weights) is None  # told elsewhere
    weights = "" if unknown else resolve(weights, settings.published.folder, settings.published.files)
    given = ""
    if getattr(grids, "architecture", "") != architecture:
        given = grids.shown()
    elif os.path.isfile(weights) and not _same(weights, file):
        given = f"{grids.shown()} with weights {weights}"
    if extracted and given:
        yield f"checkpoint: {file} reads the cells of its own CNN, but features.grids are those of {given}; write {fix}"


def _same(one: str, other: str) -> bool:
    """Whether two files hold the same; of those that differ little is read, and nothing of one."""
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def _contradicted(file: str, run: Run, found: Published) -> Iterator[str]:
    """Settings that the file decides, and that somebody set to something else."""
    text_kind = found.text_kind
    if text_kind is not None and run.text.model_fields_set and run.text.kind != text_kind:
        yield f"text.kind: {run.text.kind!r}, but the text encoder in {file} is of kind {text_kind}; write that, or leave text out"
    for key, value in found.says.items():
        part, _, setting = key.partition(".")
        section: Section = getattr(run, part)
        if (
            (part == "text" and run.text.kind != text_kind)
            or setting not in section.model_fields_set
            or setting == "kind"
        ):
            continue
        said = getattr(section, setting)
        if said != value:
            yield f"{key}: {said!r}, but {file} was trained with {value!r}, which decides; write that, or leave it out"
    if found.kind == "scan":
        lacking = [f"model.{key}" for key in SCORE if key not in found.options | run.model.model_fields_set]
        if lacking:
            yield f"checkpoint: {file} does not say how SCAN scores pairs: name {', '.join(lacking)} as it was trained with"
    hidden = found.says.get("text.hidden_size", 0)
    heads = run.text.heads if "heads" in run.text.model_fields_set else max(1, hidden // 64)
    if text_kind == "bert" and hidden % heads:
        yield f"text.heads: {heads}, but the BERT in {file} is {hidden} wide, which is no multiple of it; write those it was trained with"
    if "vocabulary" in run.text.model_fields_set:
        yield "text.vocabulary: is that of a run that is trained; of a checkpoint write vocabulary beside it"


def _words(file: str, run: Run, found: Published) -> Iterator[str]:
    """A vocabulary that is not the text encoder's, or none where only the user has it."""
    from model.vocabulary import vocabulary_fault
    from model.words import MASK, WordTokenizer, read_words

    if found.words is None:
        yield f"checkpoint: {file} holds no text encoder, which could read captions; get the checkpoint of both encoders"
        return
    words = found.text_kind == "bigru"
    given = run.vocabulary
    if given is None:
        beside = sorted(Path(file).parent.glob("*vocab.json" if words else layout.VOCABULARY))
        given = str(beside[0]) if len(beside) == 1 else None
    if given is None:
        if words or found.words != 30522:
            what = "words" if words else "word pieces"
            example = "coco_precomp_vocab.json" if words else layout.VOCABULARY
            yield f"vocabulary: missing; the text encoder in {file} knows {found.words} {what}, which the file does not hold: name theirs ({example})"
        return
    if not os.path.isfile(given):
        return
    try:
        there = WordTokenizer.from_file(given).vocabulary if words else read_words(given)
    except UserError as error:
        yield f"vocabulary: {error}"
        return
    if not words and (fault := vocabulary_fault(there)):
        yield f"vocabulary: {given} {fault}; name the vocab.txt that the BERT in {file} was trained with"
        return
    masked = found.kind != "scan" and words and MASK not in there
    if len(there) + masked != found.words:
        yield (
            f"vocabulary: {given} has {len(there) + masked} {'words' if words else 'word pieces'}{' with <mask>' if masked else ''}, but the "
            f"text encoder in {file} has {found.words}; name the one it was trained with"
        )


def wanted_widths(settings: Settings, dataset: str, feature: Feature) -> dict[str, int]:
    """What takes a dataset's visual tokens and how wide, where only making them tells how wide they are: for the jobs that do."""
    takers = {
        name: run.checkpoint
        for name, run in settings.runs.items()
        if run.checkpoint is not None and run.visual == feature and dataset in dict(reads(settings, name)).values()
    }
    found = {}
    if not takers or tokens(settings, dataset, feature).width is not None:  # asked for every shard
        return found
    for name, checkpoint in takers.items():
        with suppress(UserError):  # which its import tells
            width = published(checkpoint).img_dim
            found |= {} if width is None else {f"runs.{name}.checkpoint {checkpoint}": width}
    return found


# --- run folders


def folder_faults(
    settings: Settings,
    read: Iterable[tuple[str, str]],
    visual: Feature,
    folder: str | os.PathLike[str],
    config: dict[str, Any],
) -> Iterator[str]:
    """What does not fit of a run that lies in a folder and is not trained here: `KEY: what and how to mend it`.

    Args:
        read: what it encodes, as from `reads`. config: its `config.json`.
    """
    image, features = (value if isinstance(value := config.get(key), dict) else {} for key in ("image", "features"))
    trained = features.get("visual")
    feature = trained.get("feature") if isinstance(trained, dict) else None
    if feature in VISUAL and feature != visual:
        yield f"visual: {visual!r}, but the run in {folder} reads {feature}; write visual: {feature}"
        return
    if image.get("num_categories", NUM_CATEGORIES) != NUM_CATEGORIES:
        yield f"model: the run in {folder} reads {image['num_categories']} classes, but panoptic stores have {NUM_CATEGORIES}; name another run"
    for line in other_widths(settings, read, visual, image.get("img_dim"), f"the run in {folder} takes"):
        yield f"visual: {line}"
