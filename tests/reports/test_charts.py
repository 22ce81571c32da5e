"""Charts: ticks that cover what is drawn, points that keep their means, places that are in proportion."""

from __future__ import annotations

import doctest
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.evaluation.calibration import Bin
from lookalike.reports import charts
from lookalike.reports.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    histogram,
    line_chart,
    reliability_diagram,
    steps,
    thinned,
    ticks,
)

numbers = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))


def drawn(chart: str | None) -> ET.Element:
    assert chart is not None
    return ET.fromstring(chart)


def of(chart: ET.Element, tag: str, look: str) -> list[ET.Element]:
    return [element for element in chart.iter(tag) if look in (element.get("class") or "").split()]


def test_the_examples_in_the_docstrings_are_true() -> None:
    result = doctest.testmod(charts)
    assert result.attempted >= 4
    assert result.failed == 0


@given(numbers, numbers, st.integers(2, 8))
def test_ticks_are_round_few_and_cover_the_range(one: float, other: float, about: int) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high, about)
    slack = 1e-6 * max(abs(low), abs(high), 1e-6)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= about + 3
    if low < high and high - low > 1e-4:
        gap = (found[-1] - found[0]) / (len(found) - 1)
        assert re.match(r"[125]\.0000", f"{gap:.4e}"), gap


@given(st.lists(st.tuples(numbers, numbers), max_size=50), st.integers(1, 20))
def test_thinned_points_keep_order_and_means(points: list[tuple[float, float]], most: int) -> None:
    found = thinned(points, most)
    assert len(found) == min(len(points), most)
    if points and len(points) % most == 0:
        assert math.fsum(y for _, y in found) / len(found) == pytest.approx(
            math.fsum(y for _, y in points) / len(points), abs=1e-6
        )


@given(st.lists(st.sampled_from([32.0, 48.0, 64.0]), min_size=1, max_size=30))
def test_steps_say_the_same_at_every_point(sides: list[float]) -> None:
    points = [(float(number), side) for number, side in enumerate(sides)]
    found = steps(points)
    for x, side in points:
        assert [y for at, y in found if at <= x][-1] == side
    assert found[-1] == points[-1]


def test_a_line_lies_where_its_values_are() -> None:
    chart = drawn(line_chart([Line("loss", [(0, 4.0), (5, 2.0), (10, 0.0)])], about="Loss.", x_name="epoch"))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    (path,) = of(chart, "path", "first")
    middle = (LEFT + right) / 2, (TOP + bottom) / 2
    assert path.get("d") == f"M{LEFT} {TOP}L{middle[0]:g} {middle[1]:g}L{right} {bottom}"
    assert [text.text for text in of(chart, "text", "tick")] == [*"01234", *("0", "2", "4", "6", "8", "10"), "epoch"]
    assert chart.get("aria-label") == "Loss."


def test_labels_of_lines_that_end_together_do_not_touch_and_stay_inside() -> None:
    for end in (0.0, 0.5, 1.0):
        lines = [Line("one", [(0, 1.0), (1, end)]), Line("two", [(0, 1.0), (1, end)])]
        chart = drawn(line_chart(lines, about="x", x_name="x"))
        places = sorted(float(label.get("y") or 0) for label in of(chart, "text", "label"))
        assert places[1] - places[0] >= 40
        assert places[0] >= 0
        assert places[1] <= HEIGHT - BOTTOM


@pytest.mark.parametrize("points", [[], [(0.0, math.nan)], [(math.inf, 1.0)]])
def test_no_finite_point_no_chart(points: list[tuple[float, float]]) -> None:
    assert line_chart([Line("a", points)], about="x", x_name="x") is None


@given(st.lists(st.tuples(st.floats(0, 300), numbers), min_size=1, max_size=60), st.booleans())
def test_whatever_is_drawn_stays_inside(points: list[tuple[float, float]], stairs: bool) -> None:
    chart = drawn(line_chart([Line("a", sorted(points))], about="x", x_name="x", stairs=stairs))
    (path,) = of(chart, "path", "first")
    for command, values in re.findall(r"([MLHV])([-\d.e+ ]+)", path.get("d") or ""):
        places = [float(value) for value in values.split()]
        xs = places[:1] if command != "V" else []
        ys = places[-1:] if command != "H" else []
        assert all(LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 for x in xs)
        assert all(TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1 for y in ys)


def test_the_reliability_bars_are_as_tall_as_the_share_that_is_right() -> None:
    bins = [Bin(0.2, 0.4, 50, 0.3, 0.5), Bin(0.8, 1.0, 4, 0.9, 1.0)]
    chart = drawn(reliability_diagram(bins, bins, few=10, about="x"))
    bars = of(chart, "rect", "bar")
    heights = [float(bar.get("height") or 0) for bar in bars]
    assert heights == [143.0, 286.0]
    assert [bar.get("class") for bar in bars] == ["bar", "bar few"]
    counts = [float(bar.get("height") or 0) for bar in of(chart, "rect", "count")]
    assert counts == [44.0, pytest.approx(44 * 4 / 50, abs=0.06)]
    assert len(of(chart, "circle", "second")) == 1, "the line leaves out the bin of few"
    assert not of(drawn(reliability_diagram(bins, [], few=10, about="x")), "path", "second")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80))
def test_every_class_is_in_one_bar_of_the_histogram(shares: list[float]) -> None:
    chart = drawn(histogram(shares, about="x"))
    counted = [int((bar.findtext("title") or "").split()[-2]) for bar in of(chart, "rect", "bar")]
    assert sum(counted) == len(shares)
    heights = [float(bar.get("height") or 0) for bar in of(chart, "rect", "bar")]
    assert heights == pytest.approx([count * heights[0] / counted[0] for count in counted], abs=2.0 * max(counted))


def test_the_bars_of_the_histogram_are_in_proportion() -> None:
    chart = drawn(histogram([0.0, 0.01, 0.5, 1.0, 1.0, 1.0, 1.0], about="x"))
    bars = [(bar.findtext("title"), float(bar.get("height") or 0)) for bar in of(chart, "rect", "bar")]
    tall = HEIGHT - BOTTOM - TOP
    assert bars == [
        ("0\u00a0% to 5\u00a0%: 2 classes", pytest.approx(tall / 2, abs=0.2)),
        ("50\u00a0% to 55\u00a0%: 1 classes", pytest.approx(tall / 4, abs=0.2)),
        ("95\u00a0% to 100\u00a0%: 4 classes", pytest.approx(tall, abs=0.2)),
    ]
