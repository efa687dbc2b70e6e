"""The extractors of the configuration: an engine, its network and weights, and what is kept of their output.

A section is an engine and what a feature keeps; each answers for itself, so that nobody asks which engine it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from core.console import UserError
from core.features import Compression, Feature
from core.files import parse_json
from core.hub import COPY, no_name, reads, weight_faults
from core.kinds import other_kind, stated_architecture, wrong_file
from core.messages import did_you_mean
from core.section import FilePath, GridKept, NameOrPath, OwnPath, Positive, RegionsKept, Section
from published.registry import PREFIX
from stores.class_names import names_in

#: Architectures whose weights lie in a retrieval model's checkpoint: its head reads their cells alone.
CHECKPOINT_CNNS = ("vse_grid_detector", "vse_grid_wsl")
#: The features that each architecture of `extractors.networks.architectures` makes, and how many numbers a region, a cell or (classes)
#: a segmentation has; importing that would load torch.
ARCHITECTURES: dict[str, dict[Feature, int]] = {
    **dict.fromkeys(
        (
            *("faster_rcnn_r50_c4", "faster_rcnn_r101_c4"),
            *("vg_r101_c4_caffe", "vg_r101_c4_caffe_attr", "vg_r101_c4_caffe_milvlg", "vg_r50_c4_d2", "vg_r101_c4_d2"),
        ),
        {"regions": 2048, "grids": 2048},
    ),
    **dict.fromkeys(
        (
            *("faster_rcnn_r50_fpn", "faster_rcnn_r101_fpn", "faster_rcnn_x101_fpn"),
            *("grid_r50", "grid_x101", "grid_x152", "grid_x152_challenge"),
        ),
        {"regions": 1024, "grids": 2048},
    ),
    **dict.fromkeys(("scenes_regions", "scenes_grids"), {"regions": 512, "grids": 512}),
    **dict.fromkeys(CHECKPOINT_CNNS, {"grids": 2048}),
    **dict.fromkeys(
        (
            *("panoptic_fpn_r50", "panoptic_fpn_r101", "panoptic_fpn_r101_dconv_cascade"),
            *("upsnet_r50", "upsnet_r101_dcn", "scenes_panoptic"),
        ),
        {"panoptic": 133},
    ),
}

# --- what a feature keeps --------------------------------------------------------------------------------------------


class RegionChoice(RegionsKept):
    """Which of a detector's boxes become regions."""

    selection: Literal["caffe", "adaptive", "lxmert"] = "caffe"


class PanopticKept(Section):
    """What is kept of a panoptic segmentation."""

    seg_features: Literal["area", "soft"] = "area"
    min_pixels: Annotated[int, Field(ge=0)] = 100  # a category counts as present above this many pixels
    # The merge with instances, or the semantic branch alone, which has no void. Left out: the latter of UPSNet, else the former.
    source: Literal["semantic", "panoptic"] | None = None

    def mistakes(self) -> Iterator[str]:
        if self.source == "semantic" and not getattr(self, "architecture", "").startswith("upsnet_"):
            yield (
                "source: only the semantic branch of architecture upsnet_r50 and upsnet_r101_dcn tells things apart; "
                "choose one of them, or leave source out"
            )


class RegionNames(Section):
    """Files with the names of a detector's classes, one a line, where its weights do not say them: the report shows them.

    Both ports of bottom-up attention publish Visual Genome's as `objects_vocab.txt` and `attributes_vocab.txt`; a folder with both,
    or `published:visual-genome-names`, stands for the two.
    """

    objects: FilePath | None = None
    attributes: FilePath | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_folder(cls, value: Any) -> Any:
        return (
            {key: f"{value.rstrip('/')}/{key}_vocab.txt" for key in ("objects", "attributes")}
            if isinstance(value, str)
            else value
        )

    def files(self) -> list[str]:
        return [file for file in (self.objects, self.attributes) if file is not None]

    def missing(self) -> Iterator[str]:
        for key in ("objects", "attributes"):
            path = getattr(self, key)
            if path is not None and not path.startswith(PREFIX):
                wrong = list(wrong_file(key, path))
                yield from wrong or _no_names(key, path)


def _no_names(key: str, path: str) -> Iterator[str]:
    try:
        names_in(path)
    except (UserError, OSError) as error:
        yield f"{key}: {error}"


#: Backbones of transformers by what of their config.json is the width of a cell; of others only building them tells.
_STAGES = ("convnext", "convnextv2", "resnet")
_ONE_WIDTH = (
    *("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model"),
    *("swin", "swinv2"),
)

# --- engines ---------------------------------------------------------------------------------------------------------


# Of the user's disk, or else of the engine's own zoo or hub.
PathOrName = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]


class Extractor(Section):
    """What every engine answers."""

    #: Whether a job asks for this machine's GPU, if it has one.
    needs_gpu: ClassVar[bool] = True
    #: What it imports that is no part of this program, and the command that installs it.
    module: ClassVar[str] = ""
    install: ClassVar[str] = ""

    engine: str

    @property
    def environment(self) -> str:
        """The name of its file in envs/, without suffix."""
        return self.engine

    def files(self) -> list[str]:
        """Local files that its results depend on."""
        raise NotImplementedError

    def fits(self, architecture: str) -> bool:
        """Whether weights of an architecture can be meant. Engines whose networks say it themselves find out later."""
        return True

    def unfit(self, feature: Feature) -> Iterator[str]:
        """Why its network cannot make a feature, as far as its settings say it: `KEY: what and how to mend it`."""
        yield from ()

    def width(self, feature: Feature) -> int | None:
        """How many numbers a visual token of its network has; None where only building it tells."""
        return None

    def shown(self) -> str:
        """What its network is called in messages."""
        raise NotImplementedError


class Native(Extractor):
    """Our own network of a detector, without detectron2."""

    engine: Literal["native"] = "native"
    architecture: str
    weights: OwnPath
    batch_size: Positive = 8
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"

    @property
    def environment(self) -> str:
        return "pipeline"

    def files(self) -> list[str]:
        return [self.weights]

    def missing(self) -> Iterator[str]:
        yield from _no_weights(self.weights)
        stated = None if self.weights.startswith(PREFIX) else stated_architecture(self.weights)
        if stated not in (None, self.architecture):
            yield (
                f"weights: {self.weights} says that its weights are of {stated}, not {self.architecture}; write that architecture, or the "
                "file that belongs to this one"
            )

    def fits(self, architecture: str) -> bool:
        return architecture == self.architecture

    def width(self, feature: Feature) -> int | None:
        return ARCHITECTURES.get(self.architecture, {}).get(feature)

    def shown(self) -> str:
        return f"architecture {self.architecture}"

    def unfit(self, feature: Feature) -> Iterator[str]:
        makes, able = ARCHITECTURES.get(self.architecture), [a for a, made in ARCHITECTURES.items() if feature in made]
        if makes is None:
            hint = did_you_mean(self.architecture, able, f"choose one of {', '.join(able)}")
            yield f"architecture: {self.architecture!r} is no architecture here; {hint}"
        elif feature not in makes:
            yield f"architecture: {self.architecture!r} makes {' and '.join(makes)}, no {feature}; choose one of {', '.join(able)}"


class Detectron2(Extractor):
    """The real detectron2; `weights: null` takes the zoo's checkpoint of the configuration."""

    module: ClassVar[str] = "detectron2"
    # The commit that the engine was tested with; envs/detectron2.post-deploy.sh installs the same.
    install: ClassVar[str] = (
        "pip install --no-build-isolation 'setuptools<82' "
        "'git+https://github.com/facebookresearch/detectron2@02b5c4e295e990042a714712c21dc79b731e8833'"
    )

    engine: Literal["detectron2"]
    config: PathOrName
    weights: NameOrPath | None = None
    options: list[bool | int | float | str] = []
    batch_size: Positive = 8

    def shown(self) -> str:
        return f"detectron2's {self.config}"

    def files(self) -> list[str]:
        weights = [] if self.weights is None else [self.weights]
        return [*weights, self.config] if os.path.isfile(self.config) else weights

    def unfit(self, feature: Feature) -> Iterator[str]:
        # Files of the user's, and models registered elsewhere, are only known once detectron2 has read them.
        named = "/" in self.config and not os.path.isfile(self.config) and "MODEL.META_ARCHITECTURE" not in self.options
        if feature == "panoptic" and named and "panoptic" not in self.config.lower():
            yield f"config: {self.config!r} is a detector's; choose one of detectron2's COCO-PanopticSegmentation/"

    def missing(self) -> Iterator[str]:
        if self.weights is not None:
            yield from _no_weights(self.weights)
        elif os.path.isfile(self.config):
            yield "weights: missing; only configurations of detectron2's zoo have weights of their own"


class Transformers(Extractor):
    """A model of the library transformers; `weights` is a local folder or else a hub name."""

    module: ClassVar[str] = "transformers"
    install: ClassVar[str] = "pip install --group transformers"

    engine: Literal["transformers"]
    weights: PathOrName
    revision: str | None = None
    batch_size: Positive = 8

    def shown(self) -> str:
        return self.weights

    def width(self, feature: Feature) -> int | None:
        try:
            with open(os.path.join(self.weights, "config.json"), encoding="utf-8") as file:
                config = json.load(file)
            config = config.get("vision_config", config)
            found = config["hidden_sizes"][-1] if config["model_type"] in _STAGES else config["hidden_size"]
            found = found if config["model_type"] in (*_STAGES, *_ONE_WIDTH) else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # of a name on a hub, or of a folder of which the extractor says what is wrong
        return found if isinstance(found, int) and feature == "grids" else None

    def files(self) -> list[str]:
        names = sorted(os.listdir(self.weights)) if os.path.isdir(self.weights) else []
        paths = (os.path.join(self.weights, name) for name in names if _DECIDING.fullmatch(name))
        return [path for path in paths if os.path.isfile(path)]

    def missing(self) -> Iterator[str]:
        """What is wrong with the folder that it names; names on the hub are looked up when they are fetched."""
        if os.path.isdir(self.weights):
            yield from (f"weights: {line}" for line in folder_faults(Path(self.weights)))
        else:
            yield from no_name("weights", self.weights, "model, with its config.json and preprocessor_config.json")


def folder_faults(folder: Path) -> Iterator[str]:
    """Everything about the folder of a model that reads images which can be seen without the library: lines."""
    path = folder / "config.json"
    try:
        config = parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError:
        yield f"{folder} lacks config.json"
    except ValueError as error:
        yield f"{path} is {other_kind(path) or f'not valid JSON ({error}); {COPY}'}"
    else:
        if not isinstance(config, dict):
            yield f"{path} holds no object of settings; {COPY}"
        elif reads(config) == "text":
            yield f"{folder} is a {config.get('model_type')!r} model, which reads text; choose one that reads images"
            return
        elif "pretrained_cfg" in config:  # timm's, which says there how images are brought to it
            if find_spec("timm") is None:
                yield f"{folder} is a model of the package timm, which is not installed here; pip install timm"
            yield from weight_faults(folder)
            return
    if not any((folder / name).is_file() for name in _PROCESSORS):
        yield f"{folder} lacks {_PROCESSORS[0]}, which says how images are brought to the model; {COPY}"
    yield from weight_faults(folder)


#: Files of a model's folder that its results depend on.
_DECIDING = re.compile(r".*\.(json|txt)|(model|pytorch_model).*\.(safetensors|bin)")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def _no_weights(path: str) -> Iterator[str]:
    # Published weights may be yet to be fetched.
    if not path.startswith(PREFIX):
        yield from wrong_file("weights", path)


# --- features: a section for each engine that can make them ----------------------------------------------------------


class Regions(RegionChoice, Native):
    """Faster R-CNN region features."""

    architecture: str = "scenes_regions"
    weights: OwnPath = "weights/scenes_regions.safetensors"


class RegionsDetectron2(RegionChoice, Detectron2):
    """Region features from detectron2."""


class Grids(GridKept, Native):
    """Whole-image res5 grid features."""

    architecture: str = "scenes_grids"
    weights: OwnPath = "weights/scenes_grids.safetensors"


class GridsDetectron2(GridKept, Detectron2):
    """Grid features from detectron2."""


class GridsTransformers(GridKept, Transformers):
    """Patch tokens or the last map of a vision backbone: DINOv2, SigLIP, CLIP, ViT, Swin, ConvNeXt."""


class Panoptic(PanopticKept, Native):
    """Panoptic segmentation: 64x64 maps, 133-class one-hots, 133x7x7 features."""

    architecture: str = "scenes_panoptic"
    weights: OwnPath = "weights/scenes_panoptic.safetensors"


class PanopticDetectron2(PanopticKept, Detectron2):
    """Panoptic segmentation from detectron2."""


class PanopticTransformers(PanopticKept, Transformers):
    """Panoptic segmentation from Mask2Former, MaskFormer or OneFormer."""

    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_size: Positive = 1


def _name(engine: type[Extractor]) -> str:
    return get_args(engine.model_fields["engine"].annotation)[0]


def _engine(section: Any) -> str | None:
    engine = section.get("engine", "native") if isinstance(section, dict) else getattr(section, "engine", "native")
    return engine if isinstance(engine, str) else None


def _one_of(*sections: type[Extractor]) -> Any:
    """The type of a section that its key `engine` decides about; native where there is none."""
    return Annotated[Union[tuple(Annotated[s, Tag(_name(s))] for s in sections)], Discriminator(_engine)]


ENGINES = tuple(_name(engine) for engine in (Native, Detectron2, Transformers))


class Features(Section):
    """The extractors, what to do with images that cannot be read, and how stores are compressed."""

    on_bad_image: Literal["fail", "drop"] = "fail"
    compression: Compression = "lz4"
    regions: _one_of(Regions, RegionsDetectron2) = Regions()
    grids: _one_of(Grids, GridsDetectron2, GridsTransformers) = Grids()
    panoptic: _one_of(Panoptic, PanopticDetectron2, PanopticTransformers) = Panoptic()

    def __getitem__(self, feature: Feature) -> Extractor:
        """The extractor of a feature: `features[feature]` for a loop over FEATURES."""
        return getattr(self, feature)
