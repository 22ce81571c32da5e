"""Charts of retrieval alone: the map of the embeddings, and how similar pairs are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lookalike.evaluation.figures import BOTTOM, WIDTH, Frame, percent, plain, svg, ticks, x_axis, y_axis
from lookalike.evaluation.similarities import Similarities, Threshold

BINS = 60
RADIUS = 2.4
MAP_HEIGHT, EDGE = 400, 14
TALL = 300


def similarity_chart(pairs: Similarities, thresholds: Sequence[Threshold], *, about: str) -> Markup:
    """Share of the pairs over their cosine, of one class and of different ones, with the thresholds as upright lines.

    Args:
        pairs: at least one of either kind.
        thresholds: none to two, the higher rate first.
        about: what the chart shows, for those who cannot see it.
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
    """A point for each image, in the colour of its group, and the number of each group amid its points.

    Args:
        places: (N, 2) in -1..1.
        names: what a point is called when pointed at.
        groups: 1 and on, or 0 for those without a colour.
        about: what the chart shows, for those who cannot see it.
    """
    reach_x, reach_y = np.abs(places).max(0)
    scale = min((WIDTH / 2 - EDGE) / max(reach_x, 1e-9), (MAP_HEIGHT / 2 - EDGE) / max(reach_y, 1e-9))
    at = np.round(places * [scale, -scale] + [WIDTH / 2, MAP_HEIGHT / 2], 1)
    dot = Markup('<circle class="m{}" cx="{:g}" cy="{:g}" r="{}"><title>{}</title></circle>')
    order = sorted(range(len(at)), key=lambda row: groups[row] > 0)  # grey ones below
    parts = [dot.format(groups[row], *at[row], RADIUS if groups[row] else RADIUS * 0.75, names[row]) for row in order]
    label = Markup('<text class="place" x="{:g}" y="{:g}" text-anchor="middle">{}</text>')
    own = np.asarray(groups)
    for group in sorted(set(groups) - {0}):
        points = at[own == group]
        middle = points[np.linalg.norm(points - np.median(points, 0), axis=1).argmin()]
        parts.append(label.format(middle[0], middle[1] + 4, group))
    return svg(about, parts, MAP_HEIGHT)


def _outline(frame: Frame, edges: NDArray[np.float64], shares: NDArray[np.float64], look: str) -> Markup:
    """An area with steps at the edges of the bins."""
    drawn = f"M{frame.across(edges[0]):g} {frame.bottom:g}"
    for right, share in zip(edges[1:], shares, strict=True):
        drawn += f"V{frame.down(share):g}H{frame.across(right):g}"
    return Markup('<path class="area {}" d="{}V{:g}Z"/>').format(look, drawn, frame.bottom)
