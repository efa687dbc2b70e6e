"""The base of all sections of the configuration, and what several of them share."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

REPOSITORY = Path(__file__).resolve().parent.parent

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # of datasets, runs, test sets and ensembles: they become folder names
Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=64)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]  # torch takes no more
Share = Annotated[float, Field(ge=0, lt=1)]


def _plain(path: str) -> str:
    """A path as it is written without `~`, `./`, `//` and a slash at its end, and from the working folder on where that is above it:
    how it is spelled must start no job again."""
    path = os.path.expanduser(path)
    if "://" in path or not path.strip("/"):
        return path
    # `..` stays: behind a linked folder it does not undo what is before it.
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return _from_here(parts) if path.startswith("/") else "/".join(parts) or "."


def _from_here(parts: list[str]) -> str:
    """An absolute path, by its parts; a relative one where it leads through the working folder, by whatever links."""
    for k in range(len(parts) - 1, 0, -1):
        with contextlib.suppress(OSError):
            if os.path.samefile("/" + "/".join(parts[:k]), os.curdir):
                return "/".join(parts[k:])
    return "/" + "/".join(parts)


def _plain_if_there(path: str) -> str:
    plain = _plain(path)
    # `./bert` that is missing is no name on a hub.
    return plain if os.path.exists(plain) else os.path.expanduser(path)


FilePath = Annotated[str, AfterValidator(_plain)]  # of a file or folder of the user's
NameOrPath = Annotated[str, AfterValidator(_plain_if_there)]  # likewise, or of something on a hub


def _where_it_is(path: str) -> str:
    """A path as given if it is there, else below the repository if it is there."""
    path = _plain_if_there(path)
    ours = REPOSITORY / path
    return str(ours) if not os.path.exists(path) and os.path.isfile(ours) else path


#: A path of the user's or of the repository's own weights, so that the workflow runs from any folder.
OwnPath = Annotated[str, AfterValidator(_where_it_is)]

LATER = "mistakes() are asked for later"  # as context of a validation: they are no errors of it


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)

    def mistakes(self) -> Iterator[str]:
        """What is wrong though each value by itself is right: `KEY: what and how to mend it`, or a line without a key."""
        yield from ()

    def missing(self) -> Iterator[str]:
        """What is wrong with the files that it names: key, value and fix."""
        yield from ()

    @model_validator(mode="after")
    def _without_mistakes(self, info: ValidationInfo) -> Self:
        if info.context != LATER and (lines := list(self.mistakes())):
            raise ValueError("; ".join(lines))
        return self


class RegionsKept(Section):
    """What is kept of an image's regions, whoever found them."""

    num_regions: Annotated[int, Field(ge=1, le=1000)] = 36


class GridKept(Section):
    """What is kept of an image's map of cells, whoever computed it."""

    grid: Annotated[int, Field(ge=1, le=64)] | Literal["native"] = 7  # cells a side, or the map as it is
    max_cells: Positive = 608  # of a native map: 19 x 32, the largest of grid-feats-vqa


def canonical(section: BaseModel, **extra: Any) -> str:
    """A section as canonical JSON, with `extra` keys added: what rules hand to the commands as one parameter."""
    return json.dumps(section.model_dump() | extra, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def folder_name(value: str) -> str:
    """A folder's path without a slash at its end. Raises ValueError where it could not be part of file patterns."""
    if not value.strip():
        raise ValueError("must name a folder")
    if re.search(r"[{}\x00-\x1f]", value):
        raise ValueError("must be free of braces and control characters: it becomes part of file patterns")
    return value.rstrip("/") or "/"
