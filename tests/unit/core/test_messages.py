"""A command's settings are validated as the configuration is: all mistakes at once, each with its key, value and fix."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from typing import Annotated, Literal

import pytest
from pydantic import Field

from core.console import UserError
from core.messages import validated
from core.section import Section


class Circle(Section):
    shape: Literal["circle"] = "circle"
    radius: Annotated[int, Field(ge=1)] = 1


class Square(Section):
    shape: Literal["square"]
    circle: int = 0  # a key that is called like another variant


class Drawing(Section):
    shapes: dict[str, Annotated[Circle | Square, Field(discriminator="shape")]] = {}
    scale: float | Literal["auto"] = "auto"
    steps: list[int] = [1]
    name: str = "drawing"

    def mistakes(self) -> Iterator[str]:
        if self.steps != sorted(self.steps):
            yield f"steps: {self.steps} must ascend; write {sorted(self.steps)}"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"scal": 1.0}, "scal: unknown key; did you mean 'scale'?"),
        ({"SCALE ": 1.0}, "SCALE : unknown key; did you mean 'scale'?"),
        ({"steps": [2, 1]}, "steps: [2, 1] must ascend; write [1, 2]"),
        ({"steps": [1, "2"]}, "steps.1: '2' - is text; write the number as 2, without quotes"),
        ({"steps": ["nan"]}, "steps.0: 'nan' - should be a valid integer"),
        ({"scale": math.inf}, "scale: inf - should be a finite number or 'auto'"),
        ({"name": 2024}, "name: 2024 - is no text to YAML; put it in quotes"),
        ({"name": datetime.date(2024, 5, 1)}, "name: 2024-05-01 - is no text to YAML; put it in quotes"),
        ({"scale": "big"}, "scale: 'big' - should be a valid number or 'auto'"),
        ({"shapes": {"circle": {"shape": "circle", "radius": 0}}}, "shapes.circle.radius: 0 - should be greater than"),
        ({"shapes": {"a": {"shape": "circle", "radios": 2}}}, "shapes.a.radios: unknown key; did you mean 'radius'?"),
        ({"shapes": {"a": {"radius": 2}}}, "shapes.a.shape: missing; choose one of circle, square"),
        ({"shapes": {"a": {"shape": "sqare"}}}, "shapes.a.shape: 'sqare' is not a shape here; did you mean 'square'?"),
    ],
)
def test_a_mistake_names_key_value_and_fix(content, line):
    with pytest.raises(UserError) as error:
        validated(Drawing, content, place="--settings")
    assert str(error.value).startswith(f"--settings: {line}")


def test_several_mistakes_are_told_together():
    with pytest.raises(UserError, match="^--settings: 2 mistakes:\n  scal: unknown key; .*\n  steps: 3 - should be a"):
        validated(Drawing, {"scal": 1, "steps": 3}, place="--settings")
    assert validated(Drawing, {"steps": [1, 4]}, place="--settings").steps == [1, 4]
