"""Where published weights are kept and come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, field_validator

from core.section import FilePath, Section, folder_name
from published.registry import ENTRIES, KINDS, PREFIX, by_hand, named_entry, suggestion


class Published(Section):
    """Published weights, which the configuration names as `published:NAME`: where they are kept and come from."""

    folder: FilePath = "published_weights"
    mirror: Annotated[str, Field(pattern="^https?://[^/]")] | None = None
    files: dict[str, FilePath] = {}

    @field_validator("folder")
    @classmethod
    def _folder_is_a_folder_name(cls, value: str) -> str:
        return folder_name(value)

    def mistakes(self) -> Iterator[str]:
        for name in self.files:
            if name not in ENTRIES:
                yield f"files.{name}: no published weights; {suggestion(name)}"

    def missing(self) -> Iterator[str]:
        for name, path in self.files.items():
            if name not in ENTRIES:
                continue
            what, there = ("folder", os.path.isdir) if ENTRIES[name].in_folder else ("file", os.path.isfile)
            if not there(path):
                yield f"files.{name}: {what} {path!r} does not exist; correct the path, or remove the key to download it"

    def refusals(self, value: str | None, kind: str, check_files: bool) -> Iterator[str]:
        """Why a value cannot be weights of a kind; nothing of what is no `published:NAME`."""
        if value is None or not value.startswith(PREFIX):
            return
        entry = named_entry(value)
        if entry is None:
            known = [name for name, one in ENTRIES.items() if one.kind == kind] if kind == "checkpoint" else []
            hint = f"choose one of {', '.join(known)}" if known else suggestion(value.removeprefix(PREFIX))
            yield f"{value!r} - no published weights; {hint}"
        elif entry.kind != kind and not (kind == "detector" and entry.kind == "checkpoint" and entry.architecture):
            yield f"{value!r} is {entry.what}, no {KINDS[kind]}; `python -m published list` shows what there is"
        elif kind == "names" and value.partition("/")[2] not in [file.name for file in entry.files]:
            files = " or ".join(f"{PREFIX}{entry.name}/{file.name}" for file in entry.files)
            yield f"{value!r} is no file of it; write {files}, or region_names: {PREFIX}{entry.name} for all"
        elif check_files and entry.name not in self.files:
            for file in entry.files:
                there = entry.file_path(file, self.folder).is_file()
                if not there and entry.address(file, self.mirror) is None:
                    yield by_hand(entry, file, self.folder)
