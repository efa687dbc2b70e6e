"""What a user gave, before it is checked: numbers and values of the command line that are read as text."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from core.console import UserError
from core.files import keys_given_twice
from core.text import decode_text

_BOOLEANS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}  # YAML 1.1's
_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


def check_readable(path: str | os.PathLike[str]) -> None:
    """UserError: a file of settings is no YAML and no JSON, holds more than one document, or no keys and values; with the line.

    Snakemake, which reads it after this, tells neither line nor reason.
    """
    text = decode_text(path)
    try:
        if isinstance(json.loads(text), dict):
            return
    except (ValueError, RecursionError):
        pass
    try:
        roots = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = text.splitlines()[mark.line : mark.line + 1] if mark else []
        tabs = "; YAML is indented by blanks, not by tabs" if at and "\t" in at[0] else ""
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{where}: {error.problem or error.context}{tabs}; mend that line or the one above"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deep to be a configuration") from error
    if len(roots) > 1:
        line = roots[1].start_mark.line + 1
        raise UserError(f"{path}, line {line}: a second document begins above (---); one file holds one configuration")
    if not roots or not isinstance(roots[0], yaml.MappingNode):
        raise UserError(f"{path} holds no keys and values; begin with `datasets:`, see configs/")
    if line := _within_itself(roots[0], set(), set()):
        raise UserError(f"{path}, line {line}: an alias (*) stands within what it stands for; write out what is meant")


def _within_itself(node: yaml.Node, above: set[int], known: set[int]) -> int | None:
    """The line of a node that an alias repeats inside of itself. above: nodes around it. known: nodes without any."""
    if id(node) in above:
        return node.start_mark.line + 1
    if id(node) in known or not isinstance(node.value, list):
        return None
    items = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
    found = next(filter(None, (_within_itself(item, above | {id(node)}, known) for item in items)), None)
    known.add(id(node))
    return found


_ODD = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def odd_numbers(text: str, place: str) -> list[str]:
    """Numbers of a YAML text that are others than they look like, as YAML 1.1 counts `010` by eights and `1:30` in minutes: a line each."""
    try:
        nodes = [yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)]
    except (yaml.YAMLError, RecursionError):
        return []  # whoever reads it for its content says what is wrong with it
    looked_into: set[int] = set()
    found: dict[int, str] = {}  # by where it stands
    for node in nodes:  # grows
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith((":int", ":float")) and _ODD.fullmatch(node.value):
                found[node.start_mark.index] = (
                    f"{place}, line {node.start_mark.line + 1}: {node.value} is {yaml.safe_load(node.value)} to YAML; write the number that is "
                    "meant, or put it in quotes where it is text"
                )
        elif node is not None and id(node) not in looked_into:
            looked_into.add(id(node))
            nodes += itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
    return [found[at] for at in sorted(found)]


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
    if re.fullmatch(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*|0x[0-9a-fA-F]+)|true|false|null|True|False|None|~|", value):
        # In decimals: YAML 1.1 would count `010` by eights.
        return None if value in ("None", "") else yaml.safe_load(re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", value))
    return value


def values_of(words: Sequence[str], *flags: str) -> list[str]:
    """The words behind any of some flags, up to the next flag."""
    found: list[str] = []
    for at, word in enumerate(words):
        flag, given, value = word.partition("=")
        if flag in flags:
            found += [value] if given else itertools.takewhile(lambda w: not w.startswith("-"), words[at + 1 :])
    return found


def twice_on_command_line(words: Sequence[str]) -> list[str]:
    """Keys that stand twice behind Snakemake's `--config`, or in a section given there: a line each, as for files."""
    pairs = _pairs(words)
    names = [key for key, _ in pairs]
    lines = [f"{key}: stands twice in --config; keep one" for key in dict.fromkeys(names) if names.count(key) > 1]
    # A section is written as YAML writes it in one line.
    return lines + [line for key, value in pairs for line in keys_given_twice(f"{key}: {value}", "--config")]


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Keys and values behind Snakemake's `--config`, as they stand there."""
    return [
        (key, value)
        for key, equals, value in (word.partition("=") for word in values_of(words, "--config", "-C"))
        if equals
    ]


def as_wanted(
    config: dict[str, Any], given: dict[str, Any], words: Sequence[str], wrong: Iterable[tuple[tuple[str, ...], str]]
) -> dict[str, Any]:
    """A configuration in which what was given on the command line, where nothing has a type, is what its key wants.

    A folder may be called `2024`; `yes` is true, as in a file, where it can be nothing else.

    Args:
        given, words: as for `load_settings`. wrong: keys that lead to a value, and what pydantic finds wrong with it.
    """
    config = copy.deepcopy(config)
    given = given | {key: text for key, text in _pairs(words) if not isinstance(given.get(key), dict | list)}
    for path, kind in wrong:
        above, before = config, given
        for key in path[:-1]:
            above, before = _entry(above, key), _entry(before, key)
        text = _entry(before, path[-1]) if path else None
        if not isinstance(text, str) or _entry(above, path[-1]) is None:
            continue
        at = int(path[-1]) if isinstance(above, list) else path[-1]
        if kind == "string_type":
            above[at] = text
        elif kind == "bool_type" and text.lower() in _BOOLEANS:
            above[at] = _BOOLEANS[text.lower()]
    return config


def _entry(section: Any, key: str) -> Any:
    if isinstance(section, list):
        return section[int(key)] if key.isdecimal() and int(key) < len(section) else None
    return section.get(key) if isinstance(section, dict) else None


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
