"""What runs are scored on, alone and together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.section import Section


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
