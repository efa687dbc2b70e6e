"""LaTeX: one `tabular` per block (package booktabs) in the field's layout, intervals small below each system."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.published import TIES
from evaluation.tables.blocks import Block, Entry, Sources, blocks_of, cells, interval_cells

ESCAPES = {"\\": r"\textbackslash{}", "∞": r"$\infty$", "%": r"\%", "->": r"$\to$", "→": r"$\to$"}
ESCAPES |= {character: "\\" + character for character in "_&#${}"}


def render(entries: Sequence[Entry]) -> str:
    text, sources = ["% needs \\usepackage{booktabs}"], Sources()
    for block in blocks_of(entries):
        text += _head(block)
        for line in block.systems:
            text.append(_row(escape(sources.label(line)), cells(line.values, "--")))
            if line.bounds:
                small = [rf"{{\scriptsize {cell}}}" if cell else "" for cell in interval_cells(line)]
                text.append(_row(r"{\scriptsize 95\,\% interval}", small))
        text += [r"\bottomrule", r"\end{tabular}"]
    text += [""] + [rf"% [{number}] {source}" for number, source in enumerate(sources.names, 1)]
    text += [f"% {TIES}"] if sources.names else []
    return "\n".join(text).rstrip() + "\n"


def _head(block: Block) -> list[str]:
    headings, each = block.layout.headings, len(block.layout.columns)
    ways = [rf"\multicolumn{{{each}}}{{c}}{{{escape(way)}}}" for way in block.layout.directions.values()]
    return [
        "",
        rf"\begin{{tabular}}{{l*{{{len(headings)}}}{{r}}}}",
        r"\toprule",
        rf"\multicolumn{{{len(headings) + 1}}}{{l}}{{{escape(block.title)}}} \\",
        _row("", ways + [""] * block.layout.rsum),
        rf"\cmidrule(lr){{2-{each + 1}}} \cmidrule(lr){{{each + 2}-{2 * each + 1}}}",
        _row("", [escape(heading) for heading in headings]),
        r"\midrule",
    ]


def _row(label: str, values: Sequence[str]) -> str:
    return " & ".join([label, *values]) + r" \\"


def escape(text: str) -> str:
    """A text as LaTeX prints it."""
    pieces, place = [], 0
    while place < len(text):
        key = next((key for key in ESCAPES if text.startswith(key, place)), text[place])
        pieces.append(ESCAPES.get(key, key))
        place += len(key)
    return "".join(pieces)
