"""The datasets of the configuration. Each section answers for itself: nobody else asks what kind a dataset is.

A new format is a subclass of `DatasetSection` here, its name in `Dataset`, and a file that reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union

from pydantic import Field, field_validator

from catalog.files import folder_state, is_archive
from catalog.layout import BOXES_FILE, H5_IDS, array_path, layout_files
from core.console import UserError
from core.features import FEATURES, VISUAL, Feature
from core.kinds import why_missing, wrong_file
from core.section import FilePath, GridKept, Name, Positive, RegionsKept, Section, Seed, canonical

if TYPE_CHECKING:
    from catalog.annotations import Annotations


class DatasetSection(Section):
    """What every dataset answers. The defaults are those of images that lie there, whose features are extracted."""

    #: Keys that change no index: the index is not made again for them.
    BESIDE_INDEX: ClassVar[frozenset[str]] = frozenset({"shards"})
    #: Keys younger than version 0.1. At their defaults they are not handed on, so that indexes of then need not be made again.
    YOUNGER: ClassVar[frozenset[str]] = frozenset()

    source: str
    shards: Annotated[int, Field(ge=1, le=100_000)] = 1  # jobs per feature

    def known_splits(self) -> set[str] | None:
        """The splits' names; None where only the data can tell."""
        raise NotImplementedError

    def images_in(self, split: str) -> int | None:
        """How many images a split has; None where only the data can tell."""
        return None

    def captions_in(self, split: str) -> int | None:
        """How many captions a split has at most; None where only the data can tell."""
        return None

    @property
    def has_captions(self) -> bool:
        """Whether a run can be trained and scored on it."""
        return True

    @property
    def draws(self) -> bool:
        """Whether images are put into splits by chance, as far as that can be told in a moment."""
        return True

    @property
    def caption_limit(self) -> int | None:
        """How many captions of an image count; None: all that it has."""
        return None

    def available(self) -> tuple[Feature, ...]:
        """The features it can have."""
        return FEATURES

    def imported(self) -> tuple[Feature, ...]:
        """Those of them that are read from files instead of extracted."""
        return ()

    def extracted(self) -> tuple[Feature, ...]:
        """Those that extractors compute."""
        return tuple(feature for feature in self.available() if feature not in self.imported())

    def feature_files(self, feature: Feature) -> list[str]:
        """The files that the import of a feature reads."""
        raise NotImplementedError

    def import_source(self, feature: Feature) -> str:
        """Format and options of a feature's import, as JSON."""
        raise NotImplementedError

    def origin(self, feature: Feature) -> str:
        """In words, whose an imported feature is, as the configuration says."""
        raise NotImplementedError

    def shapes(self, feature: Feature) -> dict[str, dict[str, tuple[int, ...]]]:
        """Of each array of an imported feature, by file, the shape that an image has; nothing where that takes more than files' heads."""
        return {}

    def width(self, feature: Feature) -> int | None:
        """How many numbers a visual token of an imported feature has; None where that takes more than a look at one file's head."""
        return None

    @property
    def makes(self) -> Literal["scenes", "images"] | None:
        """Which folder the workflow makes before the index: rendered scenes, images out of `archive`, or none."""
        return None

    @property
    def archive(self) -> str | None:
        """The zip file that `images` are unpacked from, if they are."""
        return None

    def sources(self, made: str) -> list[str]:
        """Files and folders that the index is made from. `made`: the folder that `makes` speaks of."""
        raise NotImplementedError

    def read(self, made: Path | None, threads: int) -> Annotations:
        """Images and captions, out of `sources`. Readers are imported when they read: rules ask all else."""
        raise NotImplementedError

    def for_images(self) -> DatasetSection:
        """The section without what tells nothing of images but their captions, for those who ask for features alone."""
        return self

    def state(self) -> str:
        """A digest of what the index is made from besides `sources`; empty if there is no more."""
        return ""

    def index_settings(self) -> str:
        """All that decides about the index, as JSON."""
        usual = {key for key in self.YOUNGER if getattr(self, key) == type(self).model_fields[key].default}
        return self._json(without=self.BESIDE_INDEX | usual)

    def index_flags(self, made: str) -> list[str]:
        """What tells the command about the folder that the workflow made."""
        return []

    def _json(self, without: Iterable[str]) -> str:
        return json.dumps(self.model_dump(exclude=set(without)), sort_keys=True)


class ScenesDataset(DatasetSection):
    """The embedded renderer."""

    source: Literal["scenes"]
    style: Literal["day", "dusk"] = "day"
    seed: Seed = 1
    splits: dict[Name, Positive]

    def known_splits(self) -> set[str]:
        return set(self.splits)

    def images_in(self, split: str) -> int | None:
        return self.splits.get(split)

    @property
    def makes(self) -> Literal["scenes"]:
        return "scenes"

    def render_settings(self) -> str:
        """All that decides about the scenes, as JSON."""
        return self._json(without=("shards",))

    def sources(self, made: str) -> list[str]:
        return [made]

    def index_flags(self, made: str) -> list[str]:
        return ["--annotations", made]

    def read(self, made: Path, threads: int) -> Annotations:
        from catalog.scenes_dataset import read_dataset

        return read_dataset(made)


class FileImport(Section):
    """Features that another program wrote to files."""

    format: str
    path: FilePath
    provenance: str = "unknown"  # in words, which detector they are from

    def files(self) -> list[str]:
        """What is read: `path`, and beside an HDF5 file the ids of its rows."""
        stem = os.path.splitext(self.path)[0]
        return [self.path, *_existing(stem + end for end in (H5_IDS if self.format == "h5" else ()))]


class RegionImport(RegionsKept, FileImport):
    """Region features of other programs: bottom-up-attention's `.npz` per image, LXMERT's `.tsv`, a captioning code's `.h5`."""

    format: Literal["npz", "tsv", "npy", "h5"]


class GridImport(GridKept, FileImport):
    """Grid features of other programs: grid-feats-vqa's `.pth` per image."""

    format: Literal["pth", "npy", "h5"]


class Imports(Section):
    """Which features of a dataset are read from files instead of extracted."""

    regions: RegionImport | None = None
    grids: GridImport | None = None

    def __getitem__(self, feature: Feature) -> FileImport | None:
        return getattr(self, feature, None)

    def given(self) -> tuple[Feature, ...]:
        """The features that are imported."""
        return tuple(feature for feature in FEATURES if self[feature])


class ImagesDataset(DatasetSection):
    """A dataset with image files of the user's, some of whose features may exist already."""

    BESIDE_INDEX = DatasetSection.BESIDE_INDEX | {"imports"}
    YOUNGER = frozenset({"missing_images", "missing_captions", "captions_per_image", "copies"})

    images: FilePath
    #: Captions (or entries) of images that are not there: an error, or left out and counted.
    missing_images: Literal["fail", "drop"] = "fail"
    #: Images without a caption, where there are captions: an error, kept outside of all splits, or left out.
    missing_captions: Literal["fail", "keep", "drop"] = "fail"
    #: The first so many captions of an image are trained and scored on, five as the field does; null: all.
    captions_per_image: Positive | None = 5
    #: The same picture, byte by byte, in several splits: told, or put into the split of its first image.
    copies: Literal["keep", "one_split"] = "keep"
    imports: Imports = Imports()

    @property
    def caption_limit(self) -> int | None:
        return self.captions_per_image

    def imported(self) -> tuple[Feature, ...]:
        return self.imports.given()

    def feature_files(self, feature: Feature) -> list[str]:
        return self.imports[feature].files()

    def import_source(self, feature: Feature) -> str:
        return canonical(self.imports[feature])

    def origin(self, feature: Feature) -> str:
        return self.imports[feature].provenance

    def missing(self) -> Iterator[str]:
        if self.archive:
            yield from wrong_file("images", self.archive)
        else:
            yield from _no_folder("images", self.images)
        yield from self.missing_annotations()
        for feature in self.imported():
            path = self.imports[feature].path
            if not os.path.exists(path):
                yield f"imports.{feature}.path: {path!r} does not exist{why_missing(path)}; correct the path"

    def missing_annotations(self) -> Iterator[str]:
        """What is wrong with the files beside the images."""
        raise NotImplementedError

    def state(self) -> str:
        # As an input the folder would miss its subfolders and files that were replaced.
        return "" if self.archive else folder_state(self.images)


class FolderDataset(ImagesDataset):
    """A folder or zip archive of images, with captions in a file or none."""

    source: Literal["folder"]
    captions: FilePath | None = None
    splits: dict[Name, Annotated[float, Field(gt=0)]] | None = None
    split_files: dict[Name, FilePath] | None = None
    seed: Seed = 0

    def mistakes(self) -> Iterator[str]:
        if self.splits and self.split_files:
            yield "splits (fractions) and split_files (lists) exclude each other; remove one of them"
        if self.splits and (total := sum(self.splits.values())) > 1 + 1e-6:
            yield f"splits: they add up to {total:g}; write shares of all images that add up to 1"

    def known_splits(self) -> set[str] | None:
        drawn = set(self.split_files or self.splits or ())
        if self.captions is None:
            return drawn or None
        if not os.path.isfile(self.captions):
            return None
        from catalog.tables import table_splits

        written = table_splits(self.captions)
        if written is None:
            return None
        named, everywhere = written
        # Of images that nothing names a split for.
        return set(named) | ((drawn or {"all"}) if self.split_files or not everywhere else set())

    def captions_in(self, split: str) -> int | None:
        if self.captions is None or self.split_files or not os.path.isfile(self.captions):
            return None
        from catalog.tables import table_splits

        written = table_splits(self.captions)
        # A row without a split is of the image's other rows, or of a split that is drawn.
        return written[0].get(split, 0) if written is not None and written[1] else None

    @property
    def draws(self) -> bool:
        if not self.splits or self.captions is None or not os.path.isfile(self.captions):
            return bool(self.splits)
        from catalog.tables import table_splits

        written = table_splits(self.captions)
        return written is None or not written[1]

    def index_settings(self) -> str:
        drawn = self if self.draws else self.model_copy(update={"seed": type(self).model_fields["seed"].default})
        return super(FolderDataset, drawn).index_settings()

    @property
    def has_captions(self) -> bool:
        return self.captions is not None

    @property
    def archive(self) -> str | None:
        return self.images if is_archive(self.images) else None

    @property
    def makes(self) -> Literal["images"] | None:
        return "images" if self.archive else None

    def sources(self, made: str) -> list[str]:
        captions = [self.captions] if self.captions else []
        return [*captions, *(self.split_files or {}).values(), *([made] if self.archive else [])]

    def index_flags(self, made: str) -> list[str]:
        return ["--unpacked", made] if self.archive else []

    def for_images(self) -> DatasetSection:
        return self.model_copy(update={"captions": None})

    def read(self, made: Path | None, threads: int) -> Annotations:
        from catalog.folder import read_folder

        return read_folder(
            str(made or self.images),
            self.captions,
            self.splits,
            self.seed,
            split_files=self.split_files,
            missing_images=self.missing_images,
            missing_captions=self.missing_captions,
        )

    def missing_annotations(self) -> Iterator[str]:
        if self.captions is not None:
            yield from wrong_file("captions", self.captions, "correct the path, or leave it out")
        for split, path in (self.split_files or {}).items():
            yield from wrong_file(f"split_files.{split}", path)


class KarpathyDataset(ImagesDataset):
    """COCO or Flickr30K with Karpathy's splits."""

    source: Literal["karpathy"]
    annotations: FilePath
    member: str | None = None
    splits: Annotated[list[Literal["train", "val", "test"]], Field(min_length=1)] = ["train", "val", "test"]

    def known_splits(self) -> set[str]:
        from catalog.karpathy import annotated_splits

        written = annotated_splits(self.annotations) if os.path.isfile(self.annotations) else None
        return set(self.splits) if written is None else set(self.splits) & written

    def sources(self, made: str) -> list[str]:
        return [self.annotations]

    def read(self, made: Path | None, threads: int) -> Annotations:
        from catalog.karpathy import read_karpathy

        return read_karpathy(
            self.annotations,
            self.images,
            self.member,
            self.splits,
            self.missing_images,
            self.missing_captions,
            self.captions_per_image,
        )

    def missing_annotations(self) -> Iterator[str]:
        yield from wrong_file("annotations", self.annotations)


class PrecomputedDataset(DatasetSection):
    """Features in the layout of SCAN, VSE-infinity and 3SHNet: `{split}_ims.npy`, `{split}_caps.txt`, ..."""

    BESIDE_INDEX = DatasetSection.BESIDE_INDEX | {"class_order", "seg_maps", "rounding", "provenance"}
    YOUNGER = frozenset({"captions_per_image"})

    source: Literal["precomputed"]
    folder: FilePath
    splits: Annotated[dict[Name, Name], Field(min_length=1)] = {"train": "train", "val": "dev", "test": "test"}
    features: Annotated[list[Feature], Field(min_length=1)] = ["regions", "panoptic"]
    captions_per_image: Positive = 5  # lines of a `_caps.txt`; as many rows may an image have in the arrays
    class_order: Literal["upsnet", "coco"] = "upsnet"
    seg_maps: Literal["auto", "raw", "standardised"] = "auto"
    rounding: Literal["count", "error"] = "count"
    provenance: str = "unknown"

    def mistakes(self) -> Iterator[str]:
        if len(set(self.splits.values())) < len(self.splits):
            yield f"splits: {self.splits} name the same files twice; give each split files of its own"

    @field_validator("features")
    @classmethod
    def _one_visual_feature(cls, value: list[str]) -> list[str]:
        if set(VISUAL) <= set(value):
            raise ValueError(f"must hold {' or '.join(VISUAL)}, not both: a folder has one {{split}}_ims.npy")
        if len(set(value)) < len(value):
            raise ValueError("names a feature twice")
        return value

    def known_splits(self) -> set[str]:
        return set(self.splits)

    def captions_in(self, split: str) -> int | None:
        try:
            with open(f"{self.folder}/{self.splits[split]}_caps.txt", "rb") as file:
                return sum(1 for _ in file)
        except (OSError, KeyError):
            return None

    def available(self) -> tuple[Feature, ...]:
        return tuple(self.features)

    def imported(self) -> tuple[Feature, ...]:
        return tuple(self.features)

    def feature_files(self, feature: Feature) -> list[str]:
        optional = [BOXES_FILE] if feature == "regions" else []
        return self._arrays(layout_files(feature).values()) + _existing(self._arrays(optional))

    def origin(self, feature: Feature) -> str:
        return self.provenance

    def width(self, feature: Feature) -> int | None:
        shapes = self.shapes(feature).get("features", {}).values() if feature in VISUAL else ()
        return next((shape[1] if len(shape) == 2 else None for shape in shapes), None)

    def shapes(self, feature: Feature) -> dict[str, dict[str, tuple[int, ...]]]:
        """Of each array of a feature, by file, the shape that an image has, as the files' heads say; of those that can be read."""
        from catalog.precomputed import open_array

        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for array, name in layout_files(feature).items():
            for file in self._arrays([name]):
                with suppress(UserError):  # which the index tells
                    found.setdefault(array, {})[file] = open_array(Path(file)).shape[1:]
        return found

    def import_source(self, feature: Feature) -> str:
        usual = {"captions_per_image"} if self.captions_per_image == 5 else set()
        return json.dumps(self.model_dump(exclude={"source", "shards"} | usual) | {"format": "scan"}, sort_keys=True)

    def sources(self, made: str) -> list[str]:
        texts = [f"{self.folder}/{prefix}_caps.txt" for prefix in self.splits.values()]
        texts += _existing(f"{self.folder}/{p}_{name}.txt" for p in self.splits.values() for name in ("ids", "capids"))
        return texts + list(dict.fromkeys(file for feature in self.features for file in self.feature_files(feature)))

    def read(self, made: Path | None, threads: int) -> Annotations:
        from catalog.precomputed import read_precomputed

        return read_precomputed(self.folder, self.splits, self.features, threads, self.captions_per_image)

    def missing(self) -> Iterator[str]:
        yield from _no_folder("folder", self.folder)

    def _arrays(self, names: Iterable[str]) -> list[str]:
        """The `.npy` files of these names, of all splits."""
        names = list(names)
        return [str(array_path(self.folder, prefix, name)) for prefix in self.splits.values() for name in names]


def _no_folder(key: str, path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield f"{key}: folder {path!r} does not exist{why_missing(path)}; correct the path or create it"


def _existing(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if os.path.exists(path)]


Dataset = Annotated[
    Union[ScenesDataset, FolderDataset, KarpathyDataset, PrecomputedDataset], Field(discriminator="source")
]
