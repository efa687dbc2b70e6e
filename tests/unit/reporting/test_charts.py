from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import pytest

from reporting.charts import HEIGHT, WIDTH, Series, line_chart, log_ticks, standalone, ticks


def points(chart):
    root = ElementTree.fromstring(chart)
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in root.iter("polyline")
    ]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (3.2, 517), (-4, 4), (0.001, 0.0012), (5, 5), (5e-4, 5e-4), (-2, -2), (0, 0), (1e6, 3e6)]
)
def test_ticks_span_the_data(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 9
    assert any(tick > 0 for tick in found) or low < 0, "a small number is told from nothing"
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
    assert steps == {1}


def test_lines_run_the_right_way_inside_the_frame():
    line = points(line_chart([Series("a", [1, 2, 3], [10, 30, 20], 0)], title="t", x_label="epoch"))[0]
    assert line[0][0] < line[1][0] < line[2][0]
    assert line[1][1] < line[2][1] < line[0][1], "larger values are higher up"
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in line)


def test_a_wide_range_gets_a_logarithmic_axis():
    line = points(line_chart([Series("a", [1, 2, 3], [1000, 100, 10], 0)], title="t", x_label="epoch"))[0]
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)
    narrow = points(line_chart([Series("a", [1, 2, 3], [40, 20, 10], 0)], title="t", x_label="epoch"))[0]
    assert narrow[1][1] - narrow[0][1] == pytest.approx(2 * (narrow[2][1] - narrow[1][1]), abs=0.3)


@pytest.mark.parametrize(("low", "high"), [(1, 1000), (3, 80), (0.002, 7), (12.5, 4100)])
def test_logarithmic_ticks_span_the_data(low, high):
    found = log_ticks(low, high)
    assert found[0] <= low < found[1] and found[-2] < high <= found[-1]
    assert 3 <= len(found) <= 12


def test_missing_values_are_left_out_and_names_escaped():
    chart = line_chart(
        [Series("<b>&", [1, 2, 3], [1.0, math.nan, 3.0], 0), Series("none", [1], [math.nan], 1)],
        title="<script>",
        x_label="epoch",
        best="max",
    )
    assert len(points(chart)) == 1 and len(points(chart)[0]) == 2
    assert "<b>" not in chart and "<script>" not in chart
    titles = [title.text for title in ElementTree.fromstring(chart).iter("title")]
    assert titles == ["<script>", "<b>&, epoch 1: 1", "<b>&, epoch 3: 3 (best)"]


def test_one_point_and_no_points():
    assert 'class="best"' in line_chart([Series("a", [1], [5], 0)], title="t", x_label="epoch", best="min")
    assert line_chart([], title="t", x_label="epoch") == ""


def test_a_chart_stands_alone_as_a_file():
    """With its namespace, its own colours, and the names of its lines, whatever they hold."""
    names = [("a & <b>", 0), ("second", 3)]
    series = [Series(name, [1, 2, 3], [4.0, 5.0, 6.0], slot) for name, slot in names]
    text = standalone(line_chart(series, title="Loss", x_label="epoch"), names)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg" and root.find(f"{space}style") is not None
    named = [group.find(f"{space}text").text for group in root.findall(f"{space}g[@class='names']/{space}g")]
    assert named == ["a & <b>", "second"]
    assert float(root.get("height")) == float(root.get("viewBox").split()[3]) > 300
    lowest = max(float(t.get("y")) for t in root.iter(f"{space}text"))
    assert lowest < float(root.get("height"))


def test_lines_that_run_the_same_way_are_both_seen():
    chart = line_chart([Series(n, [1, 2], [5e-4, 5e-4], k) for k, n in enumerate("ab")], title="t", x_label="epoch")
    lines = list(ElementTree.fromstring(chart).iter("polyline"))
    assert [line.get("stroke-dasharray") for line in lines] == [None, "9 9"]
