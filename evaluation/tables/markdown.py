"""Markdown: one table per block in the field's layout, intervals in a line of their own below each system."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.published import TIES
from evaluation.tables.blocks import Entry, Sources, blocks_of, cells, interval_cells


def render(entries: Sequence[Entry]) -> str:
    text, sources = [], Sources()
    for block in blocks_of(entries):
        ways, metrics = block.layout.directions.values(), block.layout.columns.values()
        headings = [f"{way.replace('->', '→')} {metric}" for way in ways for metric in metrics]
        headings += ["rSum"] * block.layout.rsum
        text += [f"### {block.title}", "", _row("", headings), "|---|" + "---:|" * len(headings)]
        for line in block.systems:
            text.append(_row(sources.label(line), cells(line.values, "")))
            if line.bounds:
                text.append(_row("95 % interval", interval_cells(line)))
        text.append("")
    text += [f"[{number}] {source}  " for number, source in enumerate(sources.names, 1)]
    text += ["", TIES] if sources.names else []
    return "\n".join(text).rstrip() + "\n"


def _row(label: str, values: Sequence[str]) -> str:
    return " | ".join([f"| {label}".rstrip(), *values]) + " |"
