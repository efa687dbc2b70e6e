"""What may be asked for by name."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from core.console import UserError
from core.messages import did_you_mean

#: Of `rules/targets.smk`, in its order, and what is made without a name.
TARGETS = (
    "all",
    "index",
    "regions",
    "grids",
    "panoptic",
    "features",
    "train",
    "evaluate",
    "search",
    "report",
    "export",
    "verify",
    "check",
)

_OF_IMAGES = {"regions", "grids", "panoptic", "features", "verify"}  # they read no captions


def of_images_alone(words: Sequence[str]) -> bool:
    """Whether Snakemake, called with these words, is asked for nothing that reads captions."""
    return not _OF_IMAGES.isdisjoint(words[1:]) and _OF_IMAGES.issuperset(_targets(words))


def check_targets(words: Sequence[str], rules: Collection[str]) -> None:
    """UserError: a target is a mere word and no rule's name; files are Snakemake's to look for.

    Args:
        words: Snakemake's command line. rules: the names of all rules.
    """
    unknown = [w for w in words[1:] if re.fullmatch(r"[A-Za-z]\w*", w) and w not in rules and not os.path.exists(w)]
    # Words are values of options too: Snakemake is asked, which takes a moment, where there is reason to.
    for target in _targets(words) if unknown else ():
        if target in unknown:
            hint = did_you_mean(target, TARGETS, "choose one, or name a file below the results;")
            raise UserError(f"there is no target {target!r}; {hint} Targets are {', '.join(TARGETS)}")


def _targets(words: Sequence[str]) -> list[str]:
    from snakemake.cli import get_argument_parser

    try:
        return list(get_argument_parser().parse_known_args(words[1:])[0].targets or ())
    except SystemExit:  # it has understood this before, with a profile perhaps
        return []
