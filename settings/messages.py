"""What a mistake in the configuration is called: the key, the value and the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel

from catalog.settings import SOURCES
from extractors.settings import ENGINES


def _sections(model: Any) -> Iterator[type[BaseModel]]:
    """All section classes reachable from an annotation."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        yield model
    for argument in get_args(model):
        yield from _sections(argument)


def _known_keys(location: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    """Field names valid at the place of a misspelt key, for the suggestion."""
    models: list[type[BaseModel]] = [root]
    for part in location[:-1]:
        following: list[type[BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                field = model.model_fields[part]
                following += _sections(field.annotation)
                for extra in field.metadata:
                    following += _sections(extra)
        # A dataset's name or its discriminator leads to no field of its own: stay, with an engine's own section.
        chosen = [
            m for m in models if "engine" in m.model_fields and part in get_args(m.model_fields["engine"].annotation)
        ]
        models = following or chosen or models
    return sorted({name for model in models for name in model.model_fields})


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise


def key_path(location: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys in the file that lead to an error.

    pydantic puts the chosen variant of a union (scenes, folder, an engine, int, ...) into the path; the file has no such key.
    """
    parts = [
        str(part)
        for i, part in enumerate(location)
        if not (i == 2 and location[0] == "datasets" and part in SOURCES)
        and not (i == 2 and location[0] == "features" and part in ENGINES)
    ]
    variant = re.compile(r"^(constrained-|literal\[|int$|float$|bool$|str$|function-|\[key\]$)")
    return tuple(part for part in parts if not variant.match(part))


def _advice(error: dict[str, Any]) -> str:
    """What is wrong with a value and what to do, as a clause to follow it."""
    kind, value = error["type"], error.get("input")
    if "[key]" in error["loc"]:
        if isinstance(value, str):
            return "cannot be a name; use 1 to 64 letters, digits, - and _, a letter or digit first"
        return "is a name that is no text; put it in quotes"
    if value is None and kind != "literal_error":
        return "is empty; fill it in or remove the key"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "should be a section of keys and values"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            # YAML 1.1 takes 1e-4 for text; the dot makes it a number.
            shown = f"{number:.0f}" if kind == "int_type" and number.is_integer() else f"{number:f}".rstrip("0")
            return f"is text; write the number as {shown if float(shown) == number else repr(number)}, without quotes"
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")


def messages(errors: list[dict[str, Any]], root: type[BaseModel]) -> list[str]:
    """One line per key; a value that fits no variant of a union has an error for each of them."""
    lines: list[str] = []
    values: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        path, kind, value = key_path(error["loc"]), error["type"], error.get("input")
        key = ".".join(path) or "the configuration"
        if kind == "extra_forbidden":
            lines.append(f"{key}: unknown key; {did_you_mean(path[-1], _known_keys(error['loc'], root), 'remove it')}")
        elif kind == "missing":
            lines.append(f"{key}: missing; add it")
        elif kind in ("union_tag_not_found", "union_tag_invalid") and path[0] == "features":
            engine = value.get("engine") if isinstance(value, dict) else value
            engines = re.findall(r"'(\w+)'", str(error["ctx"].get("expected_tags", ENGINES)))
            hint = did_you_mean(str(engine), engines, f"choose one of {', '.join(engines)}")
            lines.append(f"{key}.engine: {engine!r} is not an engine of {path[-1]}; {hint}")
        elif kind in ("union_tag_not_found", "union_tag_invalid"):
            source = value.get("source") if isinstance(value, dict) else value
            choices = "choose " + ", ".join(repr(s) for s in SOURCES[:-1]) + f" or {SOURCES[-1]!r}"
            hint = did_you_mean(str(source), SOURCES, choices)
            lines.append(
                f"{key}.source: missing; {choices}"
                if source is None
                else f"{key}.source: {source!r} is not a source; {hint}"
            )
        else:
            shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
            values.setdefault((key, shown), []).append(_advice(error))
    for (key, shown), advice in values.items():
        first, *others = dict.fromkeys(advice)
        lines.append(f"{key}: {shown} - {' or '.join([first, *(o.removeprefix('should be ') for o in others)])}")
    return list(dict.fromkeys(lines))
