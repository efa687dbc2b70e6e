"""Where published weights are kept and come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from core.section import Section, folder_name


class Published(Section):
    """Published weights, which the configuration names as `published:NAME`: where they are kept and come from."""

    folder: str = "published_weights"
    mirror: Annotated[str, Field(pattern="^https?://[^/]")] | None = None
    files: dict[str, str] = {}

    @field_validator("folder")
    @classmethod
    def _folder_is_a_folder_name(cls, value: str) -> str:
        return folder_name(value)
