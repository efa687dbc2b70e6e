"""Line charts as inline SVG that follow the page's light and dark colours. Built as XML, so every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

WIDTH, HEIGHT = 520, 300
WIDE_RANGE = 20  # largest / smallest value from which an axis is logarithmic
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 18, 14, 40


@dataclass(frozen=True)
class Series:
    """One line. `slot` is its colour's number in the page's palette; NaN values are left out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    slot: int


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span [low, high]."""
    if high <= low:  # one number: from nothing to twice as much, so that a small one is told from nothing
        low, high = sorted((0.0, 2 * low)) if low else (-0.5, 0.5)
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """The numbers 1, 2 and 5 times powers of ten that span [low, high] (both positive); powers alone if it is wide."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1,) if last - first > 3 else (1, 2, 5)
    found = [float(f"{factor}e{power}") for power in range(first, last + 1) for factor in factors]
    start = max(index for index, value in enumerate(found) if value <= low)
    stop = min(index for index, value in enumerate(found) if value >= high)
    return found[start : stop + 1] if stop > start else [low / 2, low, low * 2]


def format_tick(value: float) -> str:
    """Shortest text of a tick's value, with thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def line_chart(series: Sequence[Series], *, title: str, x_label: str, unit: str = "", best: str = "") -> Markup:
    """A line chart; hovering over a point shows its numbers. Positive values over a wide range get a logarithmic axis.

    Args:
        series: lines over a shared axis. title: read out in place of the image. unit: after values in tooltips.
        best: "max" or "min" marks each line's best point; "" marks none.
    """
    lines = []
    for line in series:
        points = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if points:
            lines.append((line, points))
    if not lines:
        return Markup("")
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    # The first epoch's loss counts all negatives, later ones the hardest: a linear axis would show only the first.
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > WIDE_RANGE
    y_ticks = log_ticks(min(ys), max(ys)) if logarithmic else ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    if x_high == x_low:
        x_low, x_high = x_low - 1, x_high + 1
    x_ticks = [tick for tick in ticks(x_low, x_high, 6) if x_low <= tick <= x_high and tick == int(tick)]

    def px(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT), 1)

    def py(y: float) -> float:
        low, value, high = (math.log(v) if logarithmic else v for v in (y_ticks[0], y, y_ticks[-1]))
        return round(HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    root = ElementTree.Element("svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "class": "chart", "role": "img"})
    ElementTree.SubElement(root, "title").text = title
    grid = ElementTree.SubElement(root, "g", {"class": "grid"})
    labels = ElementTree.SubElement(root, "g", {"class": "ticks"})
    for tick in y_ticks:
        y = str(py(tick))
        ElementTree.SubElement(grid, "line", {"x1": str(_LEFT), "x2": str(WIDTH - _RIGHT), "y1": y, "y2": y})
        text = ElementTree.SubElement(labels, "text", {"x": str(_LEFT - 8), "y": y, "dy": "0.32em", "class": "end"})
        text.text = format_tick(tick)
    if logarithmic:
        text = ElementTree.SubElement(labels, "text", {"x": str(WIDTH - _RIGHT), "y": str(_TOP + 8), "class": "end"})
        text.text = "logarithmic"
    for tick in x_ticks:
        text = ElementTree.SubElement(
            labels, "text", {"x": str(px(tick)), "y": str(HEIGHT - _BOTTOM + 18), "class": "middle"}
        )
        text.text = format_tick(tick)
    text = ElementTree.SubElement(
        labels, "text", {"x": str((WIDTH + _LEFT - _RIGHT) / 2), "y": str(HEIGHT - 4), "class": "middle"}
    )
    text.text = x_label
    drawn: set[str] = set()
    for line, points in lines:
        group = ElementTree.SubElement(root, "g", {"class": f"series s{line.slot}"})
        path = " ".join(f"{px(x)},{py(y)}" for x, y in points)
        if len(points) > 1:
            # Over a line that runs the same way: dashed, so that both are seen.
            dashed = {"stroke-dasharray": "9 9"} if path in drawn else {}
            ElementTree.SubElement(group, "polyline", {"points": path} | dashed)
            drawn.add(path)
        top = None
        if best:
            top = (max if best == "max" else min)(points, key=lambda point: point[1])
            ElementTree.SubElement(
                group, "circle", {"class": "best", "cx": str(px(top[0])), "cy": str(py(top[1])), "r": "5"}
            )
        for x, y in points:
            dot = ElementTree.SubElement(
                group, "circle", {"class": "point", "cx": str(px(x)), "cy": str(py(y)), "r": "9"}
            )
            mark = " (best)" if (x, y) == top else ""
            note = f"{line.name}, {x_label} {format_tick(x)}: {y:,.4g}{unit}{mark}"
            ElementTree.SubElement(dot, "title").text = note
    return Markup(ElementTree.tostring(root, encoding="unicode"))


#: The page's light colours, for a chart that stands alone.
_ALONE = """
svg { background: #fff; color: #191d24; font-family: system-ui, Arial, sans-serif; }
.grid line { stroke: #dfe3ea; } text { fill: #586172; font-size: 13px; } .end { text-anchor: end; } .middle { text-anchor: middle; }
polyline { fill: none; stroke: currentColor; stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round; }
.best { fill: #fff; stroke: currentColor; stroke-width: 2.5; } .point { opacity: 0; } .names text { fill: currentColor; }
.s0 { color: #2552c2; } .s1 { color: #b04d08; } .s2 { color: #0a7f5a; } .s3 { color: #8a3fc0; } .s4 { color: #b3261e; } .s5 { color: #0e7c86; }
"""
_LINE = 18  # height of a name beneath a chart that stands alone


def standalone(chart: str, names: Sequence[tuple[str, int]]) -> str:
    """A chart as an SVG file of its own, for papers: light, with the lines' names beneath.

    Args:
        chart: of `line_chart`. names: of the lines, each with the slot of its colour.
    """
    root = ElementTree.fromstring(chart)
    height = HEIGHT + 10 + _LINE * len(names)
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {height}"}
    root.attrib |= {"width": str(WIDTH), "height": str(height)}
    style = ElementTree.Element("style")
    style.text = _ALONE
    root.insert(0, style)
    group = ElementTree.SubElement(root, "g", {"class": "names"})
    for number, (name, slot) in enumerate(names):
        y = HEIGHT + 14 + _LINE * number
        line = ElementTree.SubElement(group, "g", {"class": f"s{slot}"})
        ElementTree.SubElement(line, "polyline", {"points": f"{_LEFT},{y} {_LEFT + 22},{y}"})
        text = ElementTree.SubElement(line, "text", {"x": str(_LEFT + 30), "y": str(y), "dy": "0.32em"})
        text.text = name
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"
