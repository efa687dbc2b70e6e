"""The one model of the configuration: strict, complete, and with every mistake reported at once.

The configuration says WHAT to compute. Threads, memory, devices and executors belong to profiles.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator

from catalog.files import is_archive
from console import UserError
from evaluation.positives import positives_files
from published.registry import ENTRIES, PREFIX, by_hand, resolve, suggestion

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # of datasets, runs, test sets and ensembles: they become folder names
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=64)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
# Folders that the workflow makes beside the datasets' own.
RESERVED = ("runs", "evaluation", "ensembles", "tables", "report", "logs", "benchmarks")


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


class RegionImport(Section):
    """Region features of other programs: bottom-up-attention's `.npz` per image or LXMERT's `.tsv`."""

    format: Literal["npz", "tsv"]
    path: str
    num_regions: Annotated[int, Field(ge=1, le=1000)] = 36
    provenance: str = "unknown"


class GridImport(Section):
    """Grid features of other programs: grid-feats-vqa's `.pth` per image."""

    format: Literal["pth"]
    path: str
    grid: Annotated[int, Field(ge=1, le=64)] | Literal["native"] = 7
    max_cells: Positive = 608
    provenance: str = "unknown"


class Imports(Section):
    """Which features of a dataset are read from files instead of extracted."""

    regions: RegionImport | None = None
    grids: GridImport | None = None


class FolderDataset(Section):
    """A folder or zip archive of images, with captions in a file or none."""

    source: Literal["folder"]
    images: str
    captions: str | None = None
    splits: dict[Name, Annotated[float, Field(gt=0)]] | None = None
    split_files: dict[Name, str] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    imports: Imports = Imports()
    shards: Positive = 1


class KarpathyDataset(Section):
    """COCO or Flickr30K with Karpathy's splits."""

    source: Literal["karpathy"]
    annotations: str
    member: str | None = None
    images: str
    splits: Annotated[list[Literal["train", "val", "test"]], Field(min_length=1)] = ["train", "val", "test"]
    imports: Imports = Imports()
    shards: Positive = 1


class PrecomputedDataset(Section):
    """Features in the layout of SCAN, VSE-infinity and 3SHNet: `{split}_ims.npy`, `{split}_caps.txt`, ..."""

    source: Literal["precomputed"]
    folder: str
    splits: Annotated[dict[Name, Name], Field(min_length=1)] = {"train": "train", "val": "dev", "test": "test"}
    features: Annotated[list[Literal["regions", "grids", "panoptic"]], Field(min_length=1)] = ["regions", "panoptic"]
    class_order: Literal["upsnet", "coco"] = "upsnet"
    seg_maps: Literal["auto", "raw", "standardised"] = "auto"
    rounding: Literal["count", "error"] = "count"
    provenance: str = "unknown"
    shards: Positive = 1

    @field_validator("features")
    @classmethod
    def _one_visual_feature(cls, value: list[str]) -> list[str]:
        if {"regions", "grids"} <= set(value):
            raise ValueError("must hold regions or grids, not both: a folder has one {split}_ims.npy")
        if len(set(value)) < len(value):
            raise ValueError("names a feature twice")
        return value


Dataset = Annotated[
    Union[ScenesDataset, FolderDataset, KarpathyDataset, PrecomputedDataset], Field(discriminator="source")
]
SOURCES = ("scenes", "folder", "karpathy", "precomputed")


class Regions(Section):
    """Faster R-CNN region features."""

    engine: Literal["native"] = "native"
    architecture: str = "scenes_regions"
    weights: str = "weights/scenes_regions.safetensors"
    selection: Literal["caffe", "adaptive", "lxmert"] = "caffe"
    num_regions: Annotated[int, Field(ge=1, le=1000)] = 36
    batch_size: Positive = 8
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"


class Grids(Section):
    """Whole-image res5 grid features."""

    engine: Literal["native"] = "native"
    architecture: str = "scenes_grids"
    weights: str = "weights/scenes_grids.safetensors"
    grid: Annotated[int, Field(ge=1, le=64)] | Literal["native"] = 7
    max_cells: Positive = 608
    batch_size: Positive = 8
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"


class Panoptic(Section):
    """Panoptic segmentation: 64x64 maps, 133-class one-hots, 133x7x7 features."""

    engine: Literal["native"] = "native"
    architecture: str = "scenes_panoptic"
    weights: str = "weights/scenes_panoptic.safetensors"
    seg_features: Literal["area", "soft"] = "area"
    min_pixels: Annotated[int, Field(ge=0)] = 100
    batch_size: Positive = 8
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"


class Detectron2(Section):
    """What every feature from the real detectron2 needs; `weights: null` takes the zoo's checkpoint of the configuration."""

    engine: Literal["detectron2"]
    config: Annotated[str, Field(min_length=1)]
    weights: str | None = None
    options: list[bool | int | float | str] = []
    batch_size: Positive = 8


class RegionsDetectron2(Detectron2):
    """Region features from detectron2."""

    selection: Literal["caffe", "adaptive", "lxmert"] = "caffe"
    num_regions: Annotated[int, Field(ge=1, le=1000)] = 36


class GridsDetectron2(Detectron2):
    """Grid features from detectron2."""

    grid: Annotated[int, Field(ge=1, le=64)] | Literal["native"] = 7
    max_cells: Positive = 608


class PanopticDetectron2(Detectron2):
    """Panoptic segmentation from detectron2."""

    seg_features: Literal["area", "soft"] = "area"
    min_pixels: Annotated[int, Field(ge=0)] = 100


class PanopticTransformers(Section):
    """Panoptic segmentation from Mask2Former, MaskFormer or OneFormer; `weights` is a hub name or a local folder."""

    engine: Literal["transformers"]
    weights: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    seg_features: Literal["area", "soft"] = "area"
    min_pixels: Annotated[int, Field(ge=0)] = 100
    batch_size: Positive = 1


def _engine(section: Any) -> str | None:
    engine = section.get("engine", "native") if isinstance(section, dict) else getattr(section, "engine", "native")
    return engine if isinstance(engine, str) else None


RegionsEngine = Annotated[
    Annotated[Regions, Tag("native")] | Annotated[RegionsDetectron2, Tag("detectron2")], Discriminator(_engine)
]
GridsEngine = Annotated[
    Annotated[Grids, Tag("native")] | Annotated[GridsDetectron2, Tag("detectron2")], Discriminator(_engine)
]
PanopticEngine = Annotated[
    Annotated[Panoptic, Tag("native")]
    | Annotated[PanopticDetectron2, Tag("detectron2")]
    | Annotated[PanopticTransformers, Tag("transformers")],
    Discriminator(_engine),
]
ENGINES = ("native", "detectron2", "transformers")


def feature_files(section: Section) -> list[str]:
    """Local files that an extractor's results depend on: weights, and a configuration or checkpoint folder if it is one."""
    if isinstance(section, PanopticTransformers):
        folder = section.weights
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return [path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path)]
    files = [] if section.weights is None else [section.weights]
    if isinstance(section, Detectron2) and os.path.isfile(section.config):
        files.append(section.config)
    return files


class Features(Section):
    """The three extractors, what to do with images that cannot be read, and how stores are compressed."""

    on_bad_image: Literal["fail", "drop"] = "fail"
    compression: Literal["lz4", "zstd", "none"] = "lz4"
    regions: RegionsEngine = Regions()
    grids: GridsEngine = Grids()
    panoptic: PanopticEngine = Panoptic()


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
    workers: Annotated[int, Field(ge=0)] = 2
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
    """What runs are scored on; `folds: 5` adds the mean over five folds.

    `protocols` adds Crisscrossed Captions and ECCV Caption on COCO's 5K test split; `positives` is the folder of their
    files, without which those of the package eccv-caption are used. `benchmark` says that the test set is the field's:
    the tables then show published numbers beside ours. `precision` is that of the encoding.
    """

    dataset: str
    split: str = "test"
    precision: Literal["fp32", "bf16"] = "fp32"
    folds: Annotated[int, Field(ge=0)] = 0
    protocols: list[Literal["cxc", "eccv"]] = []
    positives: str | None = None
    benchmark: Literal["coco", "flickr30k"] | None = None


class Ensemble(Section):
    """Runs whose similarities are averaged."""

    runs: Annotated[list[str], Field(min_length=2)]


class Export(Section):
    """How target `export` writes features: the layout of SCAN, VSE-infinity and 3SHNet."""

    features: Annotated[list[Literal["regions", "grids", "panoptic"]], Field(min_length=1)] = [
        "regions",
        "grids",
        "panoptic",
    ]
    names: dict[Name, Name] = {"val": "dev"}
    class_order: Literal["upsnet", "coco"] = "upsnet"
    seg_maps: Literal["raw", "standardised"] = "raw"
    repeat_images: bool = False


class Published(Section):
    """Published weights, which the configuration names as `published:NAME`: where they are kept and come from."""

    folder: str = "published_weights"
    mirror: Annotated[str, Field(pattern="^https?://[^/]")] | None = None
    files: dict[str, str] = {}

    @field_validator("folder")
    @classmethod
    def _folder_is_a_folder_name(cls, value: str) -> str:
        return _folder_name(value)


class Settings(Section):
    """The whole configuration."""

    results: str = "results"
    seed: Annotated[int, Field(ge=0)] = 0
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1)]
    features: Features = Features()
    runs: dict[Name, Run] = {}
    testsets: dict[Name, Testset] = {}
    ensembles: dict[Name, Ensemble] = {}
    export: Export = Export()
    published: Published = Published()

    @field_validator("results")
    @classmethod
    def _results_is_a_folder_name(cls, value: str) -> str:
        if "://" in value and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/+[^/]+)+/*", value):
            raise ValueError("must be a folder, or a folder in a bucket: s3://BUCKET/FOLDER")
        return _folder_name(value)


def _folder_name(value: str) -> str:
    if not value.strip():
        raise ValueError("must name a folder")
    if re.search(r"[{}\x00-\x1f]", value):
        raise ValueError("must be free of braces and control characters: it becomes part of file patterns")
    return value.rstrip("/") or "/"


def used_weights(settings: Settings) -> list[str]:
    """What the extractors and text encoders start from: paths, names on a hub or `published:NAME`, each once."""
    features = [getattr(settings.features, name) for name in ("regions", "grids", "panoptic")]
    values = [section.weights for section in features] + [run.text.pretrained for run in settings.runs.values()]
    return [value for value in dict.fromkeys(values) if value is not None]


def canonical(section: BaseModel, **extra: Any) -> str:
    """A section as canonical JSON, with `extra` keys added: what rules hand to the commands as one parameter."""
    return json.dumps(section.model_dump() | extra, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def imported_features(dataset: Any) -> list[str]:
    """The features of a dataset that are read from files instead of extracted."""
    if isinstance(dataset, PrecomputedDataset):
        return list(dataset.features)
    imports = getattr(dataset, "imports", None)
    return [feature for feature in ("regions", "grids") if imports and getattr(imports, feature)]


def available_features(dataset: Any) -> list[str]:
    """The features a dataset can have: all three where there are images, what is in the files otherwise."""
    return list(dataset.features) if isinstance(dataset, PrecomputedDataset) else ["regions", "grids", "panoptic"]


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
        # A dataset's name or its discriminator leads to no field of its own: stay, with an engine's own section.
        chosen = [
            m for m in models if "engine" in m.model_fields and part in get_args(m.model_fields["engine"].annotation)
        ]
        models = following or chosen or models
    return sorted({name for model in models for name in model.model_fields})


def _did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise


def _path(location: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys in the file that lead to an error.

    pydantic puts the chosen variant of a union (scenes, folder, an engine, int, ...) into the path; the file has no such key.
    """
    parts = [
        str(part)
        for i, part in enumerate(location)
        if not (i == 2 and location[0] == "datasets" and part in SOURCES)
        and not (i == 2 and location[0] == "features" and part in ENGINES)
    ]
    variant = re.compile(r"^(constrained-|literal\[|int$|float$|bool$|str$|function-|\[key\]$)")
    return tuple(part for part in parts if not variant.match(part))


def _advice(error: dict[str, Any]) -> str:
    """What is wrong with a value and what to do, as a clause to follow it."""
    kind, value = error["type"], error.get("input")
    if "[key]" in error["loc"]:
        if isinstance(value, str):
            return "cannot be a name; use 1 to 64 letters, digits, - and _, a letter or digit first"
        return "is a name that is no text; put it in quotes"
    if value is None and kind != "literal_error":
        return "is empty; fill it in or remove the key"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "should be a section of keys and values"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            # YAML 1.1 takes 1e-4 for text; the dot makes it a number.
            shown = f"{number:.0f}" if kind == "int_type" and number.is_integer() else f"{number:f}".rstrip("0")
            return f"is text; write the number as {shown if float(shown) == number else repr(number)}, without quotes"
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _messages(errors: list[dict[str, Any]]) -> list[str]:
    """One line per key; a value that fits no variant of a union has an error for each of them."""
    lines: list[str] = []
    values: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        path, kind, value = _path(error["loc"]), error["type"], error.get("input")
        key = ".".join(path) or "the configuration"
        if kind == "extra_forbidden":
            lines.append(f"{key}: unknown key; {_did_you_mean(path[-1], _known_keys(error['loc']), 'remove it')}")
        elif kind == "missing":
            lines.append(f"{key}: missing; add it")
        elif kind in ("union_tag_not_found", "union_tag_invalid") and path[0] == "features":
            engine = value.get("engine") if isinstance(value, dict) else value
            engines = re.findall(r"'(\w+)'", str(error["ctx"].get("expected_tags", ENGINES)))
            hint = _did_you_mean(str(engine), engines, f"choose one of {', '.join(engines)}")
            lines.append(f"{key}.engine: {engine!r} is not an engine of {path[-1]}; {hint}")
        elif kind in ("union_tag_not_found", "union_tag_invalid"):
            source = value.get("source") if isinstance(value, dict) else value
            choices = "choose " + ", ".join(repr(s) for s in SOURCES[:-1]) + f" or {SOURCES[-1]!r}"
            hint = _did_you_mean(str(source), SOURCES, choices)
            lines.append(
                f"{key}.source: missing; {choices}"
                if source is None
                else f"{key}.source: {source!r} is not a source; {hint}"
            )
        else:
            shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
            values.setdefault((key, shown), []).append(_advice(error))
    for (key, shown), advice in values.items():
        first, *others = dict.fromkeys(advice)
        lines.append(f"{key}: {shown} - {' or '.join([first, *(o.removeprefix('should be ') for o in others)])}")
    return list(dict.fromkeys(lines))


def _without(config: dict[str, Any], path: tuple[str, ...], missing: bool) -> None:
    """Take the value at `path` out of `config`; for one that is missing, the section that lacks it."""
    if missing:
        path = path[:-1]
    elif path[0] == "runs":
        # Values of one section are checked against each other: its defaults fit together, half of them may not.
        path = path[:3]
    section = config
    for depth, part in enumerate(path):
        key = next((k for k in section if str(k) == part), None)
        if key is None:
            return
        if depth == len(path) - 1 or not isinstance(section[key], dict):
            del section[key]
            return
        section = section[key]


class _Salvage:
    """What is left of a configuration without its wrong values, so that the rest can be checked as well."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.settings: Settings | None = None
        self.lines: list[str] = []
        #: (section, name) of what had errors: nothing else is said of what it lacks now.
        self.doubtful: set[tuple[str, str]] = set()
        content = copy.deepcopy(config)
        # Each round takes something out; taking out a required key makes its section go in the next.
        for _ in range(5):
            try:
                self.settings = Settings.model_validate(content)
                return
            except ValidationError as error:
                errors = error.errors()
            if not self.lines:
                self.lines = _messages(errors)
            for item in errors:
                path = _path(item["loc"])
                if len(path) > 1:
                    self.doubtful.add((path[0], path[1]))
                if path:
                    _without(content, path, item["type"] == "missing")


def _cross_checks(salvage: _Salvage, config: dict[str, Any], check_files: bool) -> Iterator[str]:
    settings, doubtful = salvage.settings, salvage.doubtful
    if settings is None:
        return

    def named(section: str) -> list[str]:
        """Names in the file, of wrong entries too."""
        entries = config.get(section)
        return [str(name) for name in entries] if isinstance(entries, dict) else []

    def split_names(dataset: Any) -> set[str] | None:
        """Names the configuration knows; None where only the data can tell."""
        if isinstance(dataset, (ScenesDataset, KarpathyDataset, PrecomputedDataset)):
            return set(dataset.splits)
        splits = dataset.split_files or dataset.splits
        return set(splits) if splits and dataset.captions is None else None

    def check_dataset(where: str, name: str) -> Iterator[str]:
        if name not in named("datasets"):
            hint = _did_you_mean(name, named("datasets"), f"choose one of {', '.join(named('datasets'))}")
            yield f"{where}.dataset: {name!r} is not under datasets; {hint}"

    def check_split(where: str, name: str, split: str | None) -> Iterator[str]:
        if name not in settings.datasets or ("datasets", name) in doubtful:
            return
        names = split_names(settings.datasets[name])
        if split is not None and names is not None and split not in names:
            yield (
                f"{where}: dataset {name!r} has no split {split!r} (it has {', '.join(sorted(names))}); "
                f"choose one of them or add it to datasets.{name}.splits"
            )

    def check_captions(where: str, name: str, purpose: str) -> Iterator[str]:
        dataset = settings.datasets.get(name)
        if isinstance(dataset, FolderDataset) and dataset.captions is None and ("datasets", name) not in doubtful:
            yield f"{where}.dataset: {name!r} has no captions to {purpose} on; set datasets.{name}.captions"

    def check_paths(name: str, dataset: Any) -> Iterator[str]:
        where = f"datasets.{name}"
        folder = getattr(dataset, "folder", None) or getattr(dataset, "images", None)
        archive = isinstance(dataset, FolderDataset) and is_archive(dataset.images)
        if archive and not os.path.isfile(dataset.images):
            yield f"{where}.images: file {dataset.images!r} does not exist; correct the path"
        elif folder is not None and not archive and not os.path.isdir(folder):
            key = "folder" if isinstance(dataset, PrecomputedDataset) else "images"
            yield f"{where}.{key}: folder {folder!r} does not exist; correct the path or create it"
        files = {"captions": getattr(dataset, "captions", None), "annotations": getattr(dataset, "annotations", None)}
        files |= {f"split_files.{k}": v for k, v in (getattr(dataset, "split_files", None) or {}).items()}
        for key, path in files.items():
            if path is not None and not os.path.isfile(path):
                hint = "correct the path" + (", or leave it out" if key == "captions" else "")
                yield f"{where}.{key}: file {path!r} does not exist; {hint}"
        for feature in imported_features(dataset) if not isinstance(dataset, PrecomputedDataset) else ():
            path = getattr(dataset.imports, feature).path
            if not os.path.exists(path):
                yield f"{where}.imports.{feature}.path: {path!r} does not exist; correct the path"

    def check_features(where: str, name: str, visual: str) -> Iterator[str]:
        dataset = settings.datasets.get(name)
        if isinstance(dataset, PrecomputedDataset) and ("datasets", name) not in doubtful:
            if lacking := [f for f in (visual, "panoptic") if f not in dataset.features]:
                yield (
                    f"{where}: dataset {name!r} has no {' and no '.join(lacking)} features (it has "
                    f"{', '.join(dataset.features)}); add the files and the name to datasets.{name}.features"
                )

    def check_positives(where: str, testset: Testset) -> Iterator[str]:
        if testset.positives is not None and not testset.protocols:
            yield f"{where}.positives: {testset.positives!r} is of no use without protocols; add them or leave it out"
        elif testset.positives is not None and check_files and not os.path.isdir(testset.positives):
            yield f"{where}.positives: folder {testset.positives!r} does not exist; correct the path, or leave it out"
        elif check_files:
            for protocol in testset.protocols:
                try:
                    positives_files(protocol, testset.positives)
                except UserError as error:
                    yield f"{where}.protocols: {error}"

    for name, dataset in settings.datasets.items():
        if name in RESERVED:
            yield f"datasets.{name}: the workflow has a folder of this name; rename the dataset"
        if isinstance(dataset, FolderDataset) and dataset.splits and dataset.split_files:
            yield f"datasets.{name}: splits (fractions) and split_files (lists) exclude each other; remove one of them"
        if check_files:
            yield from check_paths(name, dataset)
    for name, run in settings.runs.items():
        yield from check_dataset(f"runs.{name}", run.dataset)
        if ("runs", name) not in doubtful:
            yield from check_split(f"runs.{name}.train_split", run.dataset, run.train_split)
            yield from check_split(f"runs.{name}.val_split", run.dataset, run.val_split)
        yield from check_captions(f"runs.{name}", run.dataset, "train")
        yield from check_features(f"runs.{name}.dataset", run.dataset, run.visual)
        if run.text.pretrained is None and run.text.hidden_size % run.text.heads:
            yield f"runs.{name}.text.hidden_size: {run.text.hidden_size} is not a multiple of heads ({run.text.heads}); change one of them"
        decay = run.training.lr_decay_epochs
        if decay != sorted(set(decay)):
            yield f"runs.{name}.training.lr_decay_epochs: {decay} must ascend without repeats; write {sorted(set(decay))}"
    for name, testset in settings.testsets.items():
        yield from check_dataset(f"testsets.{name}", testset.dataset)
        if ("testsets", name) not in doubtful:
            yield from check_split(f"testsets.{name}.split", testset.dataset, testset.split)
            dataset = settings.datasets.get(testset.dataset)
            images = dataset.splits.get(testset.split) if isinstance(dataset, ScenesDataset) else None
            if images is not None and testset.folds > images:
                yield f"testsets.{name}.folds: {testset.folds} folds of {images} images cannot be made; lower it to {images} or less"
            yield from check_positives(f"testsets.{name}", testset)
        yield from check_captions(f"testsets.{name}", testset.dataset, "test")
        for visual in dict.fromkeys(run.visual for run in settings.runs.values()):
            yield from check_features(f"testsets.{name}.dataset", testset.dataset, visual)
    for name, ensemble in settings.ensembles.items():
        if name in named("runs"):
            yield f"ensembles.{name}: there is a run of the same name; rename one of them"
        for run in dict.fromkeys(ensemble.runs):
            if run not in named("runs"):
                yield f"ensembles.{name}.runs: {run!r} is not under runs; {_did_you_mean(run, named('runs'), 'add it there')}"
        if len(set(ensemble.runs)) < len(ensemble.runs):
            yield f"ensembles.{name}.runs: {ensemble.runs} names a run twice; remove the repeat"
    yield from _published_checks(settings, doubtful, check_files)
    if check_files:
        for feature in ("regions", "grids", "panoptic"):
            if not any(
                feature in available_features(d) and feature not in imported_features(d)
                for d in settings.datasets.values()
            ):
                continue
            section = getattr(settings.features, feature)
            if ("features", feature) in doubtful or isinstance(section, PanopticTransformers):
                continue  # a hub name is no path
            weights = section.weights
            if weights is not None and not weights.startswith(PREFIX) and not os.path.isfile(weights):
                yield f"features.{feature}.weights: file {weights!r} does not exist; correct the path"
            if weights is None and os.path.isfile(section.config):
                yield f"features.{feature}.weights: missing; only configurations of detectron2's zoo have weights of their own"


def _published_checks(settings: Settings, doubtful: set[tuple[str, str]], check_files: bool) -> Iterator[str]:
    published = settings.published
    for name, path in published.files.items():
        entry = ENTRIES.get(name)
        if entry is None:
            yield f"published.files.{name}: no published weights; {suggestion(name)}"
        elif check_files and not (os.path.isdir(path) if entry.kind == "text" else os.path.isfile(path)):
            what = "folder" if entry.kind == "text" else "file"
            yield f"published.files.{name}: {what} {path!r} does not exist; correct the path, or remove the key to download it"

    def check(where: str, value: str | None, kind: str, purpose: str) -> Iterator[str]:
        if value is None or not value.startswith(PREFIX):
            return
        entry = ENTRIES.get(name := value.removeprefix(PREFIX))
        if entry is None:
            yield f"{where}: {value!r} - no published weights; {suggestion(name)}"
        elif entry.kind != kind:
            yield f"{where}: {value!r} is {entry.what}, no {purpose}; `python -m published list` shows what there is"
        elif check_files and name not in published.files:
            for file in entry.files:
                there = entry.file_path(file, published.folder).is_file()
                if not there and entry.address(file, published.mirror) is None:
                    yield f"{where}: {by_hand(entry, file, published.folder)}"

    for feature in ("regions", "grids", "panoptic"):
        if ("features", feature) in doubtful:
            continue
        section, where = getattr(settings.features, feature), f"features.{feature}"
        yield from check(f"{where}.weights", section.weights, "detector", "detector")
        entry = (
            ENTRIES.get(section.weights.removeprefix(PREFIX)) if (section.weights or "").startswith(PREFIX) else None
        )
        architecture = getattr(section, "architecture", None)  # another engine knows by itself what fits
        if entry is not None and entry.kind == "detector" and architecture not in (None, entry.architecture):
            yield (
                f"{where}.architecture: {architecture!r} does not fit {section.weights!r}; "
                f"write architecture: {entry.architecture}"
            )
    for name, run in settings.runs.items():
        yield from check(f"runs.{name}.text.pretrained", run.text.pretrained, "text", "text encoder")


def _with_paths(settings: Settings) -> Settings:
    """The settings with paths instead of `published:NAME`."""
    published, content = settings.published, settings.model_dump()
    for section, key in [(content["features"][feature], "weights") for feature in ("regions", "grids", "panoptic")] + [
        (run["text"], "pretrained") for run in content["runs"].values()
    ]:
        if section[key] is not None:
            section[key] = resolve(section[key], published.folder, published.files)
    return Settings.model_validate(content)


def load_settings(config: dict[str, Any], *, check_files: bool = True) -> Settings:
    """Validate a configuration.

    Args:
        config: as read from YAML. check_files: also check that folders and files it names exist.

    Returns:
        The settings, with the paths of published weights (there or yet to be fetched) in place of `published:NAME`.

    Raises:
        UserError: with one line per mistake: the key, the value and the fix.
    """
    salvage = _Salvage(config)
    lines = [*salvage.lines, *_cross_checks(salvage, config, check_files)]
    if lines:
        raise UserError(_report(lines))
    return _with_paths(salvage.settings)


def _report(lines: list[str]) -> str:
    return f"{len(lines)} mistake{'s' if len(lines) > 1 else ''} in the configuration:\n" + "\n".join(
        f"  {x}" for x in lines
    )
