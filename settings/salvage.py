"""What is left of a configuration without its wrong values, so that the rest can be checked as well."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from settings.messages import key_path, messages

M = TypeVar("M", bound=BaseModel)


class Salvage(Generic[M]):
    """What is left of a configuration without its wrong values, so that the rest can be checked as well."""

    def __init__(self, config: dict[str, Any], root: type[M]) -> None:
        self.settings: M | None = None
        self.lines: list[str] = []
        #: (section, name) of what had errors: nothing else is said of what it lacks now.
        self.doubtful: set[tuple[str, str]] = set()
        content = copy.deepcopy(config)
        # Each round takes something out; taking out a required key makes its section go in the next.
        for _ in range(5):
            try:
                self.settings = root.model_validate(content)
                return
            except ValidationError as error:
                errors = error.errors()
            if not self.lines:
                self.lines = messages(errors, root)
            for item in errors:
                path = key_path(item["loc"])
                if len(path) > 1:
                    self.doubtful.add((path[0], path[1]))
                if path:
                    _without(content, path, item["type"] == "missing")


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
