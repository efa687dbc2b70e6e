"""The one model of the configuration: strict, complete, and with every mistake reported at once.

The configuration says WHAT to compute. Threads, memory, devices and executors belong to profiles.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from console import UserError

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # of datasets, runs, test sets and ensembles: they become folder names
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=64)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ScenesDataset(Section):
    """The embedded renderer."""

    source: Literal["scenes"]
    style: Literal["day", "dusk"] = "day"
    seed: Annotated[int, Field(ge=0)] = 1
    splits: dict[Name, Positive]
    shards: Positive = 1


class FolderDataset(Section):
    """A folder of images, with captions in a file or none."""

    source: Literal["folder"]
    images: str
    captions: str | None = None
    splits: dict[Name, Annotated[float, Field(gt=0)]] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    shards: Positive = 1


Dataset = Annotated[Union[ScenesDataset, FolderDataset], Field(discriminator="source")]


class Regions(Section):
    """Faster R-CNN region features."""

    engine: Literal["native"] = "native"
    architecture: str = "scenes_regions"
    weights: str = "weights/scenes_regions.safetensors"
    selection: Literal["caffe", "adaptive", "lxmert"] = "caffe"
    num_regions: Annotated[int, Field(ge=1, le=1000)] = 36
    batch_size: Positive = 8
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


class Grids(Section):
    """Whole-image res5 grid features."""

    engine: Literal["native"] = "native"
    architecture: str = "scenes_grids"
    weights: str = "weights/scenes_grids.safetensors"
    grid: Annotated[int, Field(ge=1, le=64)] | Literal["native"] = 7
    max_cells: Positive = 608
    batch_size: Positive = 8
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


class Panoptic(Section):
    """Panoptic segmentation: 64x64 maps, 133-class one-hots, 133x7x7 features."""

    engine: Literal["native"] = "native"
    architecture: str = "scenes_panoptic"
    weights: str = "weights/scenes_panoptic.safetensors"
    seg_features: Literal["area", "soft"] = "area"
    min_pixels: Annotated[int, Field(ge=0)] = 100
    batch_size: Positive = 8
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


class Features(Section):
    """The three extractors and what to do with images that cannot be read."""

    on_bad_image: Literal["fail", "drop"] = "fail"
    regions: Regions = Regions()
    grids: Grids = Grids()
    panoptic: Panoptic = Panoptic()


class Model(Section):
    """Sizes and input conventions of 3SHNet's image side; defaults are the paper's."""

    embed_size: Annotated[int, Field(ge=2, multiple_of=2)] = 1024
    spatial_size: Positive = 128
    pool_position_size: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    pool_hidden_size: Positive = 32
    dropout: Share = 0.1
    seg_map_encoding: Literal["raw", "standardised"] = "raw"
    class_order: Literal["coco", "upsnet"] = "coco"
    void_value: Annotated[int, Field(ge=0, le=255)] = 133


class Text(Section):
    """The text encoder: a pretrained BERT, or (pretrained: null) a small one trained from scratch."""

    pretrained: str | None = "bert-base-uncased"
    layers: Positive = 2
    hidden_size: Positive = 128
    heads: Positive = 2
    intermediate_size: Positive = 512
    vocabulary_size: Annotated[int, Field(ge=100)] = 8000
    min_frequency: Positive = 2
    dropout: Share = 0.1
    max_tokens: Annotated[int, Field(ge=3, le=512)] = 128


class Training(Section):
    """The recipe; defaults are the paper's for COCO regions."""

    epochs: Positive = 25
    batch_size: Annotated[int, Field(ge=2)] = 256
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    text_lr_factor: Annotated[float, Field(gt=0)] = 0.1
    lr_decay_epochs: list[Positive] = [15]
    lr_decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_clip: Annotated[float, Field(ge=0)] = 2.0
    margin: Annotated[float, Field(gt=0)] = 0.2
    all_negatives_epochs: Annotated[int, Field(ge=0)] = 1
    mask_same_image: bool = False
    token_drop: Share = 0.2
    word_augmentation: Share = 0.2
    captions_per_image: Positive = 5
    precision: Literal["fp32", "bf16"] = "fp32"
    preload: bool | Literal["auto"] = "auto"
    preload_gib: Annotated[float, Field(gt=0)] = 2.0
    workers: Annotated[int, Field(ge=0)] = 0
    validate_every: Positive = 1
    save_every: Positive = 200
    compile: bool = False


class Run(Section):
    """One model: which dataset, which visual tokens, and how it is trained."""

    dataset: str
    visual: Literal["regions", "grids"]
    train_split: str = "train"
    val_split: str | None = "val"
    seed: Annotated[int, Field(ge=0)] | None = None
    model: Model = Model()
    text: Text = Text()
    training: Training = Training()


class Testset(Section):
    """What runs are scored on; `folds: 5` adds the mean over five folds."""

    dataset: str
    split: str = "test"
    folds: Annotated[int, Field(ge=0)] = 0


class Ensemble(Section):
    """Runs whose similarities are averaged."""

    runs: Annotated[list[str], Field(min_length=2)]


class Settings(Section):
    """The whole configuration."""

    results: str = "results"
    seed: Annotated[int, Field(ge=0)] = 0
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1)]
    features: Features = Features()
    runs: dict[Name, Run] = {}
    testsets: dict[Name, Testset] = {}
    ensembles: dict[Name, Ensemble] = {}

    @field_validator("results")
    @classmethod
    def _results_is_a_folder_name(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name a folder")
        return value.rstrip("/") or "/"


def canonical(section: BaseModel, **extra: Any) -> str:
    """A section as canonical JSON, with `extra` keys added: what rules hand to the commands as one parameter."""
    return json.dumps(section.model_dump() | extra, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _sections(model: Any) -> Iterator[type[BaseModel]]:
    """All section classes reachable from an annotation."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        yield model
    for argument in get_args(model):
        yield from _sections(argument)


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Field names valid at the place of a misspelt key, for the suggestion."""
    models: list[type[BaseModel]] = [Settings]
    for part in location[:-1]:
        following: list[type[BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                field = model.model_fields[part]
                following += _sections(field.annotation)
                for extra in field.metadata:
                    following += _sections(extra)
        # A dataset's name or its discriminator leads to no field of its own: stay.
        models = following or models
    return sorted({name for model in models for name in model.model_fields})


def _message(error: dict[str, Any]) -> str:
    location = error["loc"]
    # pydantic puts the chosen variant of a union (scenes, folder, int, ...) into the path; the file has no such key.
    shown = [
        str(p)
        for i, p in enumerate(location)
        if not (i == 2 and location[0] == "datasets" and p in ("scenes", "folder"))
    ]
    shown = [p for p in shown if not re.match(r"^(constrained-|literal\[|int$|bool$|str$|function-)", p)]
    key = ".".join(shown) or "the configuration"
    value = error.get("input")
    kind = error["type"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(shown[-1], _known_keys(location), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "remove it"
        return f"{key}: unknown key; {hint}"
    if kind == "missing":
        return f"{key}: missing; add it"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return f"{key}.source: {(value or {}).get('source') if isinstance(value, dict) else value!r} is not a source; choose 'scenes' or 'folder'"
    text = error["msg"].removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return f"{key}: {value!r} - {text}"


def _cross_checks(settings: Settings, check_files: bool) -> Iterator[str]:
    def split_names(dataset: Any) -> set[str] | None:
        """Names the configuration knows; None where only the data can tell."""
        if isinstance(dataset, ScenesDataset):
            return set(dataset.splits)
        if dataset.splits:
            return set(dataset.splits) if dataset.captions is None else None
        return None

    def check_split(where: str, dataset_name: str, split: str | None) -> Iterator[str]:
        if dataset_name not in settings.datasets:
            close = difflib.get_close_matches(dataset_name, settings.datasets, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(settings.datasets)}"
            yield f"{where}.dataset: {dataset_name!r} is not under datasets; {hint}"
            return
        names = split_names(settings.datasets[dataset_name])
        if split is not None and names is not None and split not in names:
            yield (
                f"{where}: dataset {dataset_name!r} has no split {split!r} (it has {', '.join(sorted(names))}); "
                f"choose one of them or add it to datasets.{dataset_name}.splits"
            )

    for name, dataset in settings.datasets.items():
        if isinstance(dataset, FolderDataset) and check_files:
            if not os.path.isdir(dataset.images):
                yield f"datasets.{name}.images: folder {dataset.images!r} does not exist; correct the path or create it"
            if dataset.captions is not None and not os.path.isfile(dataset.captions):
                yield f"datasets.{name}.captions: file {dataset.captions!r} does not exist; correct the path, or leave it out"
    for name, run in settings.runs.items():
        yield from check_split(f"runs.{name}", run.dataset, run.train_split)
        yield from check_split(f"runs.{name}", run.dataset, run.val_split)
        dataset = settings.datasets.get(run.dataset)
        if isinstance(dataset, FolderDataset) and dataset.captions is None:
            yield f"runs.{name}.dataset: {run.dataset!r} has no captions to train on; set datasets.{run.dataset}.captions"
        if run.text.pretrained is None and run.text.hidden_size % run.text.heads:
            yield f"runs.{name}.text.hidden_size: {run.text.hidden_size} is not a multiple of heads ({run.text.heads})"
        if run.training.lr_decay_epochs != sorted(set(run.training.lr_decay_epochs)):
            yield f"runs.{name}.training.lr_decay_epochs: {run.training.lr_decay_epochs} must ascend without repeats"
    for name, testset in settings.testsets.items():
        yield from check_split(f"testsets.{name}", testset.dataset, testset.split)
        dataset = settings.datasets.get(testset.dataset)
        if isinstance(dataset, FolderDataset) and dataset.captions is None:
            yield f"testsets.{name}.dataset: {testset.dataset!r} has no captions to test on; set datasets.{testset.dataset}.captions"
    for name, ensemble in settings.ensembles.items():
        if name in settings.runs:
            yield f"ensembles.{name}: there is a run of the same name; rename one of them"
        for run in ensemble.runs:
            if run not in settings.runs:
                close = difflib.get_close_matches(run, settings.runs, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "add it under runs"
                yield f"ensembles.{name}.runs: {run!r} is not under runs; {hint}"
        if len(set(ensemble.runs)) < len(ensemble.runs):
            yield f"ensembles.{name}.runs: {ensemble.runs} names a run twice"
    if check_files:
        for feature in ("regions", "grids", "panoptic"):
            weights = getattr(settings.features, feature).weights
            if not os.path.isfile(weights):
                yield f"features.{feature}.weights: file {weights!r} does not exist; correct the path"


def load_settings(config: dict[str, Any], *, check_files: bool = True) -> Settings:
    """Validate a configuration.

    Args:
        config: as read from YAML. check_files: also check that folders and files it names exist.

    Raises:
        UserError: with one line per mistake: the key, the value and the fix.
    """
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            line = _message(item)
            if line not in lines:
                lines.append(line)
        raise UserError(_report(lines)) from None
    problems = list(_cross_checks(settings, check_files))
    if problems:
        raise UserError(_report(problems))
    return settings


def _report(lines: list[str]) -> str:
    return f"{len(lines)} mistake{'s' if len(lines) > 1 else ''} in the configuration:\n" + "\n".join(
        f"  {x}" for x in lines
    )
