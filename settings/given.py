"""What a user gave, before it is checked: numbers and values of the command line that are read as text."""

from __future__ import annotations

import re
from typing import Any

import yaml

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def typed(value: Any) -> Any:
    """A value as YAML 1.2 reads it, of text that has lost its type: `3`, `5e-4`, `true`, `null` and lists of them.

    Snakemake reads sections given on its command line as text all the way down.
    """
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    if not isinstance(value, str):
        return value
    if _EXPONENT.fullmatch(value):
        return float(value)
    if re.fullmatch(r"[-+]?(\d+|\d*\.\d+|\d+\.)|true|false|null|True|False|None|~|", value):
        return None if value in ("None", "") else yaml.safe_load(value)
    return value


def with_exponents(value: Any) -> Any:
    """A configuration with `5e-4` as the number that is meant; YAML 1.1, which Snakemake reads, takes it for text."""
    if isinstance(value, dict):
        return {key: with_exponents(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_exponents(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def with_command_line(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which what was `given` on the command line has its types."""
    result = dict(config)
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = with_command_line(result[key], value)
        elif key in result:
            result[key] = typed(value) if isinstance(value, (dict, list, str)) else value
    return result
