"""Puts the page together: every section's values, then one HTML text.

Nothing here knows how to compute a result; the gallery's rankings of a few queries are the only numbers made.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from core.embedded import warning
from reporting.artefacts import Artefacts
from reporting.sections import configuration, data, failures, features, gallery, results, training
from reporting.seen import seen_in_training

_TEMPLATES = Path(__file__).parent / "templates"
#: In the order of the page. A section is a module with `TITLE` and `context`, and the template of its name.
SECTIONS = (results, gallery, failures, training, data, features, configuration)


def build(artefacts: Artefacts, *, queries: int, seed: int) -> dict[str, Any]:
    """All values of the template. `queries`: per direction and test set; `seed`: of everything drawn at random."""
    values: dict[str, Any] = {"sections": []}
    for section in SECTIONS:
        found = section.context(artefacts, queries, seed)
        if found.pop("shown", True):
            values["sections"].append((section.__name__.rpartition(".")[2], section.TITLE))
        values |= found
    # Last, as every section may add to them.
    warnings = [
        warning(name, features) for name in artefacts.section("datasets") if (features := artefacts.unfamiliar(name))
    ]
    seen = seen_in_training(artefacts)
    return values | {"notes": list(artefacts.notes), "warnings": warnings + seen, "seen": seen}


def render(context: Mapping[str, Any]) -> str:
    """The page. Every value is escaped, as captions, file names and settings are anybody's text; the one script is ours."""
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(context, script=Markup(script), script_digest=digest)
