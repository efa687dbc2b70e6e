"""What a mistake in a section is called: the key, the value and the fix."""

from __future__ import annotations

import datetime
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, TypeAdapter, ValidationError

from core.console import UserError
from core.section import LATER, Section

S = TypeVar("S", bound=Section)


def validated(section: type[S], content: Mapping[str, Any], *, place: str) -> S:
    """What a command was given as one section, or as one of a union of sections.

    Raises:
        UserError: with one line per mistake, after `place` (a flag).
    """
    try:
        found = TypeAdapter(section).validate_python(content, context=LATER)
    except ValidationError as error:
        lines = messages(error.errors(), section)
    else:
        lines = list(found.mistakes())
        if not lines:
            return found
    raise UserError(f"{place}: " + (lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} mistakes:", *lines])))


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A question for the nearest of the known names, capitals, blanks and dashes aside; `otherwise` if none is near."""
    alike = {_plain(one): one for one in known}
    close = difflib.get_close_matches(_plain(name), alike, n=1)
    return f"did you mean {alike[close[0]]!r}?" if close else otherwise


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def key_path(error: Mapping[str, Any], root: type[BaseModel]) -> tuple[str, ...]:
    """The keys in the file that lead to one of pydantic's errors."""
    return _walk(error, root)[0]


def messages(errors: list[dict[str, Any]], root: type[BaseModel]) -> list[str]:
    """One line per key; a value that fits no variant of a union has an error for each of them."""
    lines: list[str] = []
    values: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        (path, here), kind, value = _walk(error, root), error["type"], error.get("input")
        key = ".".join(path) or "the configuration"
        if kind == "extra_forbidden":
            known = sorted({name for section, _ in here if _is_section(section) for name in section.model_fields})
            lines.append(f"{key}: unknown key; {did_you_mean(path[-1], known, 'remove it')}")
        elif kind == "missing":
            lines.append(f"{key}: missing; add it")
        elif kind in ("union_tag_not_found", "union_tag_invalid"):
            # Of a callable discriminator pydantic knows the name: `_engine()` decides by the key `engine`.
            name = error["ctx"]["discriminator"].strip("'_()")
            choices = list(dict.fromkeys(tag for variant in here for tag in _tags(*variant, name)))
            given = value.get(name) if isinstance(value, dict) else getattr(value, name, value)
            hint = f"choose one of {', '.join(choices)}"
            if isinstance(value, dict) and name not in value:
                lines.append(f"{'.'.join([*path, name])}: missing; {hint}")
            else:
                article = "an" if name[0] in "aeiou" else "a"
                lines.append(
                    f"{'.'.join([*path, name])}: {given!r} is not {article} {name} here; {did_you_mean(str(given), choices, hint)}"
                )
        else:
            written = str(value) if isinstance(value, datetime.date) else repr(value)
            shown = written if len(written) <= 80 else written[:77] + "..."
            values.setdefault((key, shown), []).append(_advice(error))
    for (key, shown), advice in values.items():
        first, *others = dict.fromkeys(advice)
        lines.append(f"{key}: {shown} - {' or '.join([first, *(o.removeprefix('should be ') for o in others)])}")
    return list(dict.fromkeys(lines))


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
    if kind == "string_type" and isinstance(value, bool | int | float | datetime.date):
        return "is no text to YAML; put it in quotes"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            # YAML 1.1 takes 1e-4 for text; the dot makes it a number.
            shown = f"{number:.0f}" if kind == "int_type" and number.is_integer() else f"{number:f}".rstrip("0")
            return f"is text; write the number as {shown if float(shown) == number else repr(number)}, without quotes"
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")


# What pydantic says of a place: keys of the file, and in between the variants of unions (an engine, `int`, ...), which are
# no keys. Only the sections tell which is which.

_Variant = tuple[Any, str | None]  # one type of a union, and its tag


def _walk(error: Mapping[str, Any], root: type[BaseModel]) -> tuple[tuple[str, ...], list[_Variant]]:
    """The keys that lead to an error, and the types that may stand there (where the key is unknown, around it)."""
    location, unknown = list(error["loc"]), []
    if error["type"] == "extra_forbidden":
        unknown.append(str(location.pop()))
    keys: list[str] = []
    here = list(_variants(root))
    for part in location:
        only = here[0][0] if len(here) == 1 else None
        if _is_section(only) and part in only.model_fields:
            within = only.model_fields[part].annotation
        elif get_origin(only) in (dict, list) and part != "[key]":
            within = get_args(only)[-1]
        else:
            here = [variant for variant in here if part in _tags(*variant)] or here
            continue
        keys.append(str(part))
        here = list(_variants(within))
    return (*keys, *unknown), here


def _variants(annotation: Any) -> Iterator[_Variant]:
    """The types that a union allows, with their tags."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tag = next((item.tag for item in metadata if isinstance(item, Tag)), None)
        for found, own in _variants(inner):
            yield found, own or tag
    elif get_origin(annotation) in (Union, UnionType):
        for choice in get_args(annotation):
            yield from _variants(choice)
    elif annotation is not NoneType:  # for which pydantic tells no variants apart
        yield annotation, None


def _tags(section: Any, tag: str | None, name: str | None = None) -> list[str]:
    """What chooses this variant of a union: its tag, or the value of the key `name` (any key) that only it allows."""
    if tag is not None:
        return [tag]
    fields = section.model_fields if _is_section(section) else {}
    chosen = [field.annotation for key, field in fields.items() if name in (None, key)]
    return [value for annotation in chosen for value in get_args(annotation) if isinstance(value, str)]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
