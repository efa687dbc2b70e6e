"""What runs are scored on, alone and together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from core.console import UserError
from core.section import FilePath, Section
from evaluation.positives import positives_files


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
    positives: FilePath | None = None
    benchmark: Literal["coco", "flickr30k"] | None = None

    def mistakes(self) -> Iterator[str]:
        if self.positives is not None and not self.protocols:
            yield f"positives: {self.positives!r} is of no use without protocols; add them or leave it out"

    def missing(self) -> Iterator[str]:
        if self.positives is not None and not os.path.isdir(self.positives):
            yield f"positives: folder {self.positives!r} does not exist; correct the path, or leave it out"
            return
        for protocol in self.protocols:
            try:
                positives_files(protocol, self.positives)
            except UserError as error:
                yield f"protocols: {error}"


class Ensemble(Section):
    """Runs whose similarities are averaged."""

    runs: Annotated[list[str], Field(min_length=2)]
