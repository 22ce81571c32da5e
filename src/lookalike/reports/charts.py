"""Charts as inline SVG, styled by the style sheet of the page.

The style sheet defines the CSS classes `axis`, `grid`, `tick`, `first` to `fourth` (series and their labels), `bar`,
`few`, `count` and `ideal`. Sizes are in units of the view box, which is `WIDTH` wide; the page sets the displayed size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lookalike.evaluation.calibration import Bin
from lookalike.evaluation.pair_similarity import PairSimilarities, Threshold

WIDTH, HEIGHT = 480, 270


LEFT, RIGHT, TOP, BOTTOM = 54, 106, 14, 46  # margins of the plot; the line labels are in the right margin


MOST_POINTS = 300  # points of a line; above it, neighbouring points are averaged


DOTTED = 40  # maximum points of a line that shows a dot at each point


LOOKS = ("first", "second", "third", "fourth")


QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


Format = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A named series of points, sorted by x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Frame:
    """Mapping from data to view box coordinates; x and y are the (min, max) of the data."""

    x: tuple[float, float]
    y: tuple[float, float]
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM

    def across(self, x: float) -> float:
        """Return the horizontal coordinate of x."""
        return round(LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - LEFT), 1)

    def down(self, y: float) -> float:
        """Return the vertical coordinate of y."""
        return round(self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - TOP), 1)


def percent(share: float, digits: int | None = None) -> str:
    """Format 0.5 as "50 %" with a non-breaking space; three significant digits, or `digits` decimal places."""
    number = f"{100 * share:.3g}" if digits is None else f"{100 * share:.{digits}f}"
    return f"{number}\u00a0%"


def pixels(side: float) -> str:
    """Format 64 as "64 px" with a non-breaking space."""
    return f"{side:g}\u00a0px"


def plain(value: float) -> str:
    """Format a number with three significant digits, or without decimals from 1000 up."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return ticks that cover `low` to `high` in about `about` steps of 1, 2 or 5 times a power of 10.

    >>> ticks(0, 0.43)
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    >>> ticks(3, 17)
    [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= about + 0.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Average neighbouring points so that at most `most` remain.

    >>> thinned([(0, 1), (1, 3), (2, 5), (3, 7)], most=2)
    [(0.5, 2.0), (2.5, 6.0)]
    """
    if len(points) <= most:
        return list(points)
    edges = [number * len(points) // most for number in range(most + 1)]
    groups = [points[start:end] for start, end in itertools.pairwise(edges)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the first point, the points where y changes, and the last point.

    >>> steps([(0, 32), (1, 32), (2, 64), (3, 64), (4, 64)])
    [(0, 32), (2, 64), (4, 64)]
    """
    befores = [None, *(y for _, y in points)]
    last = len(points) - 1
    return [point for n, point in enumerate(points) if point[1] != befores[n] or n == last]


def line_chart(
    lines: Sequence[Line], *, about: str, x_name: str, form: Format = plain, stairs: bool = False
) -> Markup | None:
    """Draw a line chart with a label at the end of each line; x starts at 0.

    Args:
        lines: one to four lines. Points that are not finite are skipped.
        about: text alternative for screen readers.
        x_name: label of the x axis.
        form: formatter of the y values.
        stairs: draw steps instead of connecting the points.

    Returns:
        The SVG, or None if no line has a finite point.
    """
    finite = [[(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)] for line in lines]
    kept = [Line(line.name, (steps if stairs else thinned)(points)) for line, points in zip(lines, finite, strict=True)]
    kept = [line for line in kept if line.points]
    if not kept:
        return None
    xs = [x for line in kept for x, _ in line.points]
    ys = [y for line in kept for _, y in line.points]
    x_ticks, y_ticks = ticks(0, max(xs), 6), ticks(min(0.0, *ys), max(ys))
    frame = Frame((0, max(xs) or 1.0), (y_ticks[0], y_ticks[-1]))
    parts = [
        y_axis(frame, y_ticks, form),
        x_axis(frame, [x for x in x_ticks if x <= 1.01 * frame.x[1]], plain, x_name),
    ]
    ends = []
    for line, look in zip(kept, LOOKS, strict=False):
        parts.append(_path(frame, line, look, form, stairs))
        ends.append((frame.down(line.points[-1][1]), look, line.name, form(line.points[-1][1])))
    parts.append(_labels(frame, ends))
    return svg(about, parts)


def reliability_diagram(before: Sequence[Bin], after: Sequence[Bin], *, few: int, about: str) -> Markup:
    """Draw accuracy against confidence, with a histogram of the confidences below.

    Bars show the bins before temperature scaling, the line shows the bins after it, and the dashed line is ideal.

    Args:
        before: bins before temperature scaling.
        after: bins after temperature scaling.
        few: bins with fewer images are drawn pale and are not part of the line.
        about: text alternative for screen readers.
    """
    strip, gap = 44, 30
    frame = Frame((0, 1), (0, 1), right=WIDTH - 24, bottom=300)
    base = frame.bottom + gap + strip
    most, total = max(b.count for b in before), sum(b.count for b in before)
    parts, counts = [y_axis(frame, QUARTERS, percent)], []
    for b in before:
        words = f"{b.count:,} images, {percent(b.confidence)} sure, {percent(b.accuracy)} right"
        look = "bar few" if b.count < few else "bar"
        parts.append(
            _bar(frame, b.low, b.high, frame.bottom, max(frame.bottom - frame.down(b.accuracy), 1), look, words)
        )
        counts.append(_bar(frame, b.low, b.high, base, max(strip * b.count / most, 1), "count", words))
    corners = (frame.across(0), frame.down(0), frame.across(1), frame.down(1))
    parts.append(Markup('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(*corners))
    if scaled := [(b.confidence, b.accuracy) for b in after if b.count >= few]:
        parts.append(_path(frame, Line("after scaling", scaled), "second", percent, False))
    words = f"images (highest bar: {percent(most / total)})"
    parts.append(Markup('<text class="tick" x="{}" y="{}">{}</text>').format(LEFT, frame.bottom + gap - 8, words))
    below = Frame((0, 1), (0, 1), right=frame.right, bottom=base)
    return svg(about, [*parts, *counts, x_axis(below, QUARTERS, percent, "confidence")], base + BOTTOM)


def histogram(shares: Sequence[float], *, about: str, bins: int = 20, x_name: str = "accuracy of a class") -> Markup:
    """Draw a histogram of class accuracies.

    Args:
        shares: one accuracy per class, 0..1.
        about: text alternative for screen readers.
        bins: number of bins of equal width; the last one includes 1.
        x_name: label of the x axis.
    """
    counts = [0] * bins
    for share in shares:
        counts[min(int(share * bins), bins - 1)] += 1
    whole = [t for t in ticks(0, max(counts)) if t == int(t)]
    frame = Frame((0, 1), (0, whole[-1]), right=WIDTH - 24)
    parts = [y_axis(frame, whole, plain)]
    for number, count in enumerate(counts):
        low, high = number / bins, (number + 1) / bins
        words = f"{percent(low)} to {percent(high)}: {count} classes"
        if count:
            parts.append(_bar(frame, low, high, frame.bottom, frame.bottom - frame.down(count), "bar", words))
    parts.append(x_axis(frame, QUARTERS, percent, x_name))
    return svg(about, parts)


def _bar(frame: Frame, low: float, high: float, base: float, tall: float, look: str, words: str) -> Markup:
    """Draw a bar of height `tall` on `base`, from `low` to `high` on the x axis, with a margin of 1 on both sides."""
    left, width = frame.across(low) + 1, frame.across(high) - frame.across(low) - 2
    rect = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
    return rect.format(look, left, base - tall, width, tall, words)


def svg(about: str, parts: Sequence[Markup], height: float = HEIGHT) -> Markup:
    """Combine the parts into an SVG element with the text alternative `about`."""
    return Markup('<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, about, Markup("").join(parts)
    )


def y_axis(frame: Frame, at: Sequence[float], form: Format) -> Markup:
    """Draw horizontal grid lines and their values to the left of the frame."""
    line = Markup('<line class="{}" x1="{}" x2="{}" y1="{y}" y2="{y}"/>')
    text = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    parts = []
    for number, y in enumerate(at):
        parts.append(line.format("grid" if number else "axis", LEFT, frame.right, y=frame.down(y)))
        parts.append(text.format(LEFT - 8, frame.down(y) + 4, form(y)))
    return Markup("").join(parts)


def x_axis(frame: Frame, at: Sequence[float], form: Format, name: str) -> Markup:
    """Draw the tick values and the axis label below the frame."""
    text = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
    parts = [text.format(frame.across(x), frame.bottom + 18, form(x)) for x in at]
    middle = (LEFT + frame.right) / 2
    return Markup("").join([*parts, text.format(middle, frame.bottom + 39, name)])


def _path(frame: Frame, line: Line, look: str, form: Format, stairs: bool) -> Markup:
    places = [(frame.across(x), frame.down(y)) for x, y in line.points]
    drawn = "M{:g} {:g}".format(*places[0])
    for x, y in places[1:]:
        drawn += f"H{x:g}V{y:g}" if stairs else f"L{x:g} {y:g}"
    parts = [Markup('<path class="{}" d="{}"/>').format(look, drawn)]
    if len(places) <= DOTTED and not stairs:
        dot = Markup('<circle class="{}" cx="{:g}" cy="{:g}" r="3"><title>{}</title></circle>')
        for (x, y), (_, value) in zip(places, line.points, strict=True):
            parts.append(dot.format(look, x, y, f"{line.name}: {form(value)}"))
    return Markup("").join(parts)


def _labels(frame: Frame, ends: Sequence[tuple[float, str, str, str]]) -> Markup:
    """Draw the name and last value at the end of each line, moved apart to avoid overlaps."""
    text = Markup('<text class="label {}" x="{}" y="{:g}">{} <tspan class="value" x="{}" dy="1.25em">{}</tspan></text>')
    apart, lowest = 46, frame.bottom - 20
    placed: list[float] = []
    order = sorted(ends)
    for number, (y, *_) in enumerate(order):
        room_below = apart * (len(order) - 1 - number)
        place = min(max(y, TOP + 8, placed[-1] + apart if placed else 0.0), lowest - room_below)
        placed.append(place)
    x = frame.right + 10
    return Markup("").join(
        text.format(look, x, place, name, x, value) for place, (_, look, name, value) in zip(placed, order, strict=True)
    )


# Retrieval charts: similarities of pairs, and the map of the embeddings

BINS = 60


RADIUS = 2.4


MAP_HEIGHT, EDGE = 400, 14


TALL = 300


def similarity_chart(pairs: PairSimilarities, thresholds: Sequence[Threshold], *, about: str) -> Markup:
    """Draw histograms of the cosines of same-class and different-class pairs, with thresholds as vertical lines.

    Args:
        pairs: at least one same-class or different-class pair.
        thresholds: at most two, the higher rate first.
        about: text alternative for screen readers.
    """
    kinds = [("different", pairs.different), ("same", pairs.same)]
    kinds = [(look, np.clip(cosines, -1, 1)) for look, cosines in kinds if len(cosines)]
    low = np.floor(10 * min(float(cosines.min()) for _, cosines in kinds) - 1e-6) / 10
    edges = np.linspace(low, 1, BINS + 1)
    shares = [(look, np.histogram(cosines, edges)[0] / len(cosines)) for look, cosines in kinds]
    heights = ticks(0, max(float(share.max()) for _, share in shares))
    frame = Frame((low, 1), (0, heights[-1]), right=WIDTH - 24, bottom=TALL)
    at = [x for x in ticks(low, 1, 6) if low - 1e-9 <= x <= 1]
    parts = [y_axis(frame, heights, percent), x_axis(frame, at, plain, "cosine of the two images")]
    parts += [_outline(frame, edges, share, look) for look, share in shares]
    line = Markup('<line class="ideal" x1="{x}" x2="{x}" y1="{}" y2="{}"/>')
    text = Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>')
    for number, one in enumerate(thresholds):
        x, top = frame.across(one.cosine), frame.down(heights[-1])
        parts.append(line.format(top - 2, frame.bottom, x=x))
        parts.append(text.format(x + (4 if number else -4), top + 10, "start" if number else "end", percent(one.rate)))
    return svg(about, parts, TALL + BOTTOM)


def map_chart(places: NDArray[np.float64], names: Sequence[str], groups: Sequence[int], *, about: str) -> Markup:
    """Draw a point for each image in the colour of its group, and the group number near the median of its points.

    Args:
        places: (N, 2) coordinates in -1..1.
        names: N tooltips.
        groups: N group numbers from 1; 0 is drawn in grey.
        about: text alternative for screen readers.
    """
    reach_x, reach_y = np.abs(places).max(0)
    scale = min((WIDTH / 2 - EDGE) / max(reach_x, 1e-9), (MAP_HEIGHT / 2 - EDGE) / max(reach_y, 1e-9))
    at = np.round(places * [scale, -scale] + [WIDTH / 2, MAP_HEIGHT / 2], 1)
    dot = Markup('<circle class="m{}" cx="{:g}" cy="{:g}" r="{}"><title>{}</title></circle>')
    order = sorted(range(len(at)), key=lambda row: groups[row] > 0)  # draw grey points first
    parts = [dot.format(groups[row], *at[row], RADIUS if groups[row] else RADIUS * 0.75, names[row]) for row in order]
    label = Markup('<text class="place" x="{:g}" y="{:g}" text-anchor="middle">{}</text>')
    own = np.asarray(groups)
    for group in sorted(set(groups) - {0}):
        points = at[own == group]
        middle = points[np.linalg.norm(points - np.median(points, 0), axis=1).argmin()]
        parts.append(label.format(middle[0], middle[1] + 4, group))
    return svg(about, parts, MAP_HEIGHT)


def _outline(frame: Frame, edges: NDArray[np.float64], shares: NDArray[np.float64], look: str) -> Markup:
    """Draw a histogram as a filled step curve."""
    drawn = f"M{frame.across(edges[0]):g} {frame.bottom:g}"
    for right, share in zip(edges[1:], shares, strict=True):
        drawn += f"V{frame.down(share):g}H{frame.across(right):g}"
    return Markup('<path class="area {}" d="{}V{:g}Z"/>').format(look, drawn, frame.bottom)
