"""The settings of a run: sizes of the model, text encoder, recipe. Defaults are those of the paper for COCO regions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from core.console import UserError
from core.features import Feature, Visual
from core.section import FilePath, Positive, Section, Share


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

    pretrained: FilePath | None = "bert-base-uncased"
    layers: Positive = 2
    hidden_size: Positive = 128
    heads: Positive = 2
    intermediate_size: Positive = 512
    vocabulary_size: Annotated[int, Field(ge=100)] = 8000
    min_frequency: Positive = 2
    dropout: Share = 0.1
    max_tokens: Annotated[int, Field(ge=3, le=512)] = 128

    def mistakes(self) -> Iterator[str]:
        if self.pretrained is None and self.hidden_size % self.heads:
            yield f"hidden_size: {self.hidden_size} is not a multiple of heads ({self.heads}); change one of them"


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

    def mistakes(self) -> Iterator[str]:
        ascending = sorted(set(self.lr_decay_epochs))
        if self.lr_decay_epochs != ascending:
            yield f"lr_decay_epochs: {self.lr_decay_epochs} must ascend without repeats; write {ascending}"


class Run(Section):
    """One model: which dataset, which visual tokens, and how it is trained."""

    dataset: str
    visual: Visual
    train_split: str = "train"
    val_split: str | None = "val"
    seed: Annotated[int, Field(ge=0)] | None = None
    model: Model = Model()
    text: Text = Text()
    training: Training = Training()

    def mistakes(self) -> Iterator[str]:
        for key in ("text", "training"):
            yield from (f"{key}.{line}" for line in getattr(self, key).mistakes())

    def features(self) -> tuple[Feature, ...]:
        """What its network takes of an image."""
        return (self.visual, "panoptic")


MODEL, TEXT, TRAINING = Model().model_dump(), Text().model_dump(), Training().model_dump()
SECTIONS = {"model": MODEL, "text": TEXT, "training": TRAINING}


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a run's settings with defaults.

    Args:
        settings: `{train_split, val_split, seed, model, text, training}`, any of them missing.

    Raises:
        UserError: unknown keys, all of them listed.
    """
    given = dict(settings)
    result: dict[str, Any] = {
        "train_split": given.pop("train_split", "train"),
        "val_split": given.pop("val_split", "val"),
        "seed": given.pop("seed", 0),
    }
    unknown = []
    for section, defaults in SECTIONS.items():
        values = dict(given.pop(section, {}))
        unknown += [f"{section}.{key}" for key in values if key not in defaults]
        result[section] = defaults | values
    unknown += list(given)
    if unknown:
        raise UserError(f"unknown training settings: {', '.join(sorted(unknown))}")
    return result
