"""What is left of a configuration without its wrong values, so that the rest can be checked as well."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from core.messages import key_path, messages
from core.section import LATER

M = TypeVar("M", bound=BaseModel)


class Salvage(Generic[M]):
    """Takes wrong values out of a configuration until the rest is valid.

    Attributes:
        settings: that rest; None if nothing is left. lines: what was wrong with the values.
    """

    def __init__(self, config: dict[str, Any], root: type[M]) -> None:
        self.settings: M | None = None
        self.lines: list[str] = []
        self._wrong: set[tuple[str, ...]] = set()
        content = copy.deepcopy(config)
        # Each round takes something out; taking out a required key makes its section go in the next.
        for _ in range(5):
            try:
                self.settings = root.model_validate(content, context=LATER)
                return
            except ValidationError as error:
                errors = error.errors()
            if not self.lines:
                self.lines = messages(errors, root)
            for item in errors:
                path = key_path(item, root)
                # A misspelt key may have been meant for any other of its section.
                self._wrong.add(path[:-1] if item["type"] == "extra_forbidden" else path)
                if path:
                    _without(content, path, item["type"] == "missing")

    def doubtful(self, section: str, name: str, key: str | None = None) -> bool:
        """Whether a mistake was found in an entry; with a key, whether its value may be a stand-in for a mistake.

        Nothing else is said of what is doubtful.
        """
        entries = [path for path in self._wrong if path[:2] == (section, name)]
        return any(key is None or path[2:3] in ((), (key,)) for path in entries)


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
