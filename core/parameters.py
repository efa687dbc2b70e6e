"""Names of weights."""

from __future__ import annotations

import re
from collections.abc import Iterable


def left_over(known: Iterable[str], keys: Iterable[str], prefix: str) -> list[str]:
    """Those of the keys of weights that found no place which differ in a number from one that did: layers too many, not heads.

    Args:
        known: keys of the model. prefix: what may stand before its keys in a file, without the dot.
    """

    def unnumbered(key: str) -> str:
        return re.sub(r"\d+", "#", key.removeprefix(f"{prefix}."))

    there = {unnumbered(key) for key in known}
    return [key for key in keys if unnumbered(key) in there]
