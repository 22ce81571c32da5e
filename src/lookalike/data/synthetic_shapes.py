"""The built-in classes: six families of four members.

The members of a family differ only in the feature that they are named after. All other features, such as proportions,
posture and decoration, are random.

A drawing function takes a canvas (x to the right, y down, the object within about -1..1), a generator and the name of
the member.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lookalike.data.synthetic_scene import Canvas, Field, box, disc, limb, oval, repeat

DrawFunction = Callable[[Canvas, np.random.Generator, str], None]


def _beetle(c: Canvas, g: np.random.Generator, member: str) -> None:
    """Draw a beetle from above, head up; its wing cases are plain, spotted, striped (along) or banded (across)."""
    x, y, ink = np.abs(c.x), c.y, c.palette
    width, length, head = g.uniform(0.4, 0.54), g.uniform(0.54, 0.66), g.uniform(0.15, 0.22)
    low = 0.96 - length
    thick, bend = g.uniform(0.035, 0.055), g.uniform(-0.1, 0.1)
    for root, out in ((-0.22, -0.4), (0.1, 0.1), (0.4, 0.62)):
        knee = root + 0.5 * (out - root) + bend
        c.paint(limb(x, y, 0.2, root, width + 0.16, knee, thick * 1.3, thick), ink.trim, dome=0.05)
        c.paint(
            limb(x, y, width + 0.16, knee, width + 0.36, out + 1.5 * bend + 0.1, thick, thick * 0.6),
            ink.trim,
            dome=0.05,
        )
    top, spread = g.uniform(-1.0, -0.85), g.uniform(0.2, 0.5)
    if g.random() < 0.35:  # mandibles instead of antennae
        jaw = g.uniform(0.2, 0.3)
        c.paint(limb(x, y, 0.08, -0.7, jaw, -0.88, 0.06, 0.05), ink.trim, dome=0.05)
        c.paint(limb(x, y, jaw, -0.88, jaw - 0.12, -1.04, 0.05, 0.02), ink.trim, dome=0.05)
    else:
        c.paint(limb(x, y, 0.08, -0.7, spread, top, 0.03, 0.02), ink.trim, dome=0.03)
        c.paint(limb(x, y, spread, top, spread + 0.14, top + 0.08, 0.025, 0.05), ink.trim, dome=0.03)
    c.paint(disc(x, y, 0, -0.62, head), ink.trim, dome=0.15)
    c.stain(disc(x, y, head * 0.7, -0.7, 0.055), ink.dark, c.cover)
    c.paint(
        oval(x, y, 0, low - length + 0.02, width * 0.78, 0.24), ink.body if g.random() < 0.5 else ink.trim, dome=0.2
    )
    shell = c.paint(oval(x, y, 0, low, width, length), ink.body, dome=0.4)
    if member == "spotted":
        size = g.uniform(0.075, 0.105)
        rows = 3 if size > 0.09 else 4
        for row in range(rows):
            at = low + length * (-0.62 + 1.24 * row / (rows - 1))
            out = width * (0.32 + 0.28 * (row % 2)) if g.random() < 0.7 else width * 0.5
            c.stain(disc(x, y, out, at, size), ink.pattern, shell)
    elif member == "striped":
        period = width / int(g.integers(2, 4))
        c.stain(repeat(x - period / 2, period, g.uniform(0.38, 0.55)), ink.pattern, shell)
    elif member == "banded":
        period = g.uniform(0.26, 0.42)
        c.stain(
            repeat(y + g.uniform(-0.5, 0.5) * x * x - g.uniform(0, period), period, g.uniform(0.38, 0.55)),
            ink.pattern,
            shell,
        )
    c.stain(x - 0.016, ink.dark, shell, 0.8)


def _butterfly(c: Canvas, g: np.random.Generator, member: str) -> None:
    """Draw a butterfly; its wings are eyed (a ringed spot on each), veined, bordered (a coloured edge) or barred."""
    x, y, ink = np.abs(c.x), c.y, c.palette
    lift, wide, tall = g.uniform(0.25, 0.6), g.uniform(0.46, 0.54), g.uniform(0.3, 0.4)
    fore = (0.5, -0.36, wide, tall, -lift)
    hind = (0.4, 0.4, g.uniform(0.36, 0.44), g.uniform(0.3, 0.4), g.uniform(0.3, 0.9))
    second = ink.body if g.random() < 0.6 else ink.trim
    if g.random() < 0.35:
        c.paint(limb(x, y, 0.5, 0.6, g.uniform(0.5, 0.72), 0.98, 0.1, 0.035), second, dome=0.1)
    for wing, colour in ((hind, second), (fore, ink.body)):
        edge = oval(x, y, *wing)
        edge = np.minimum(edge, limb(x, y, 0.05, 0.2 * wing[1], wing[0], wing[1], 0.07, 0.2))
        cover = c.paint(edge, colour, dome=0.12, base=0.02)
        cx, cy = wing[0] + 0.05, wing[1]
        if member == "eyed":
            ring = g.uniform(0.15, 0.2)
            c.stain(disc(x, y, cx, cy, ring), ink.pattern, cover)
            c.stain(disc(x, y, cx, cy, ring * 0.62), ink.pale, cover)
            c.stain(disc(x, y, cx, cy, ring * 0.36), ink.dark, cover)
        elif member == "veined":
            turn = math.atan2(cy, cx)
            for step in (-0.45, -0.15, 0.15, 0.45):
                far = turn + step * 1.3
                c.stain(
                    limb(x, y, 0, 0.1 * cy, 1.2 * math.cos(far), 1.2 * math.sin(far), 0.022, 0.035), ink.pattern, cover
                )
        elif member == "bordered":
            c.stain(-edge - g.uniform(0.11, 0.16), ink.pattern, cover)
        else:
            reach = np.sqrt(x * x + (y - 0.1 * cy) ** 2)
            period = g.uniform(0.26, 0.34)
            c.stain(repeat(reach - g.uniform(0, 0.1), period, 0.45), ink.pattern, cover)
    spread = g.uniform(0.15, 0.4)
    c.paint(limb(x, y, 0.03, -0.42, spread, -0.92, 0.022), ink.dark, dome=0.03)
    c.paint(disc(x, y, spread, -0.92, 0.05), ink.dark, dome=0.04)
    c.paint(
        limb(x, y, 0, -0.36, 0, g.uniform(0.4, 0.6), 0.1, 0.05),
        ink.trim if g.random() < 0.5 else ink.dark,
        dome=0.1,
        base=0.1,
    )


def _decorate(c: Canvas, g: np.random.Generator, cover: Field, u: Field, v: Field) -> None:
    """Decorate one part with a pattern that is independent of the class: none, bars, dots or two tones."""
    kind, ink = g.integers(4), c.palette
    if kind == 1:
        c.stain(repeat(u - g.uniform(0, 0.3), g.uniform(0.24, 0.4), g.uniform(0.3, 0.55)), ink.pattern, cover)
    elif kind == 2:
        period = g.uniform(0.22, 0.3)
        row = np.round(v * (1 / period))
        p = u + 0.5 * period * (row % 2)
        p, q = p - np.round(p * (1 / period)) * period, v - row * period
        c.stain(np.sqrt(p * p + q * q) - g.uniform(0.05, 0.08), ink.pattern, cover)
    elif kind == 3:
        c.stain(v - g.uniform(-0.1, 0.1), ink.pattern, cover, 0.8)


def _fish(c: Canvas, g: np.random.Generator, member: str) -> None:
    """Draw a fish swimming to the left; it has a fan tail, a forked tail, a large dorsal fin or a long snout."""
    x, y, ink = c.x * 0.88 + 0.08, c.y * 0.88, c.palette
    tall, fin = g.uniform(0.32, 0.48), ink.trim if g.random() < 0.6 else ink.accent
    forked = member == "forktail" or (member != "fantail" and g.random() < 0.5)
    root, high = 0.48, g.uniform(0.34, 0.46)
    if forked:
        tail = limb(x, np.abs(y), root - 0.08, 0.0, 0.92, high, 0.1, 0.045)
    else:
        tail = np.maximum(oval(x, y, 0.8, 0, 0.32, high * 0.9), disc(x, y, root - 0.02, 0, 0.46))
        tail = np.minimum(tail, limb(x, y, 0.3, 0, 0.7, 0, 0.14, 0.18))
    c.paint(tail, fin, dome=0.1)
    if member == "sailfin":
        crest = np.maximum(oval(x, y, 0.0, -0.15, 0.5, g.uniform(0.66, 0.8)), y)
        cover = c.paint(crest, fin, dome=0.08)
        c.stain(repeat(x + 0.25 * y, 0.15, 0.28), ink.pattern, cover, 0.7)
    else:
        c.paint(oval(x, y, 0.1, -tall * 0.95, 0.26, 0.13, 0.25), fin, dome=0.08)
    c.paint(oval(x, y, 0.14, tall * 0.92, 0.2, 0.12, -0.4), fin, dome=0.08)
    if member == "swordbill":
        c.paint(limb(x, y, -0.45, 0.02, -1.08, g.uniform(-0.04, 0.06), 0.11, 0.02), ink.trim, dome=0.06)
    body = np.minimum(oval(x, y, -0.1, 0, 0.58, tall), limb(x, y, 0, 0, 0.52, 0, tall * 0.62, 0.09))
    cover = c.paint(body, ink.body, dome=0.3, base=0.04)
    _decorate(c, g, cover * (x > -0.36), x + g.uniform(-0.3, 0.3) * y * y, -y)
    gill = np.abs(disc(x, y, -0.62, 0, 0.3)) - 0.018
    c.stain(np.maximum(gill, np.abs(y) - 0.6 * tall), ink.dark, cover, 0.5)
    c.paint(oval(x, y, 0.02, 0.1, 0.17, 0.09, g.uniform(0.2, 0.7)), fin, dome=0.06, base=0.3)
    eye = g.uniform(0.075, 0.105)
    c.paint(disc(x, y, -0.46, -0.09, eye), ink.pale, dome=0.08, base=0.3)
    c.stain(disc(x, y, -0.48, -0.09, eye * 0.6), ink.dark, c.cover)


PETALS = {"four": 4, "five": 5, "six": 6, "eight": 8}


def _flower(c: Canvas, g: np.random.Generator, member: str) -> None:
    """Draw a flower from above with four, five, six or eight petals."""
    x, y, ink = c.x, c.y, c.palette
    petals = PETALS[member]
    if g.random() < 0.6:  # leaves behind the petals
        for side in (-1, 1):
            c.paint(oval(x, y, side * 0.6, 0.62, 0.4, 0.16, side * g.uniform(0.4, 1.0)), ink.trim, dome=0.12)
    angle = np.arctan2(y, x) + g.uniform(0, math.tau)
    angle -= np.round(angle * (petals / math.tau)) * (math.tau / petals)
    reach = np.sqrt(x * x + y * y)
    p, q = reach * np.cos(angle), reach * np.sin(angle)
    heart, inner = g.uniform(0.17, 0.27), g.uniform(0.08, 0.16)
    half = g.uniform(0.85, 1.02) * 0.6 * math.tan(math.pi / petals) if petals > 4 else g.uniform(0.34, 0.4)
    tip = g.uniform(0.86, 0.98)
    middle, long = (tip + inner) / 2, (tip - inner) / 2
    if g.random() < 0.5:
        petal = oval(p, q, middle, 0, long, half)
    else:  # pointed petals: the intersection of two discs
        radius = (long * long + half * half) / (2 * half)
        petal = disc(p, np.abs(q), middle, half - radius, radius)
    cover = c.paint(petal, ink.body, dome=min(half, 0.3))
    mark = g.integers(3)
    if mark == 1:
        c.stain(np.abs(q) - 0.03 + 0.04 * (p - inner), ink.pattern, cover)
    elif mark == 2:
        c.stain(reach - g.uniform(0.4, 0.6), ink.pattern, cover, 0.8)
    cover = c.paint(disc(x, y, 0, 0, heart), ink.accent, dome=heart, base=0.05)
    if g.random() < 0.5:
        c.stain(np.abs(reach - heart * 0.6) - 0.03, ink.dark, cover, 0.7)


def _pot(c: Canvas, g: np.random.Generator, member: str) -> None:
    """Draw a pot from the side; it has one handle, two handles (eared), a spout and a handle, or a lid."""
    x, y, ink = c.x, c.y, c.palette
    top = -0.56 if member == "lidded" else g.uniform(-0.86, -0.6)
    belly, neck, foot, lip = g.uniform(0.48, 0.66), g.uniform(0.22, 0.44), g.uniform(0.26, 0.44), g.uniform(0.0, 0.14)
    swell = g.uniform(-0.02, 0.36)
    heights = np.linspace(top, 0.92, 48)
    outline = np.interp(heights, (top, top + 0.22, swell, 0.92), (neck + lip, neck, belly, foot))
    for _ in range(3):  # round the corners
        outline = np.convolve(np.pad(outline, 4, mode="edge"), np.full(9, 1 / 9), mode="valid")
    half = np.interp(y.ravel(), heights, outline).astype(np.float32).reshape(y.shape)
    wall = np.maximum((np.abs(x) - half) * 0.85, np.abs(y - (0.92 + top) / 2) - (0.92 - top) / 2)
    belly_out = np.sqrt(np.maximum(half * half - x * x, 0.0025))  # height map of a solid of revolution
    ear, high = g.uniform(0.2, 0.28), g.uniform(0.24, 0.32)
    place, thick = 0.5 * (top + 0.22 + swell), g.uniform(0.045, 0.07)
    if member in ("handled", "eared", "spouted"):
        across = np.abs(x) if member == "eared" else x
        start = float(np.interp(place, heights, outline))
        c.paint(np.abs(oval(across, y, start, place, ear, high)) - thick, ink.trim, dome=0.06)
    if member == "spouted":
        mouth = g.uniform(-0.5, -0.2)
        c.paint(limb(x, y, -0.25, 0.35, -0.82, mouth, 0.19, 0.065), ink.trim, dome=0.12)
        c.paint(limb(x, y, -0.82, mouth, -0.96, mouth - 0.02, 0.065, 0.05), ink.trim, dome=0.06)
    cover = c.paint(wall, ink.body, dome=0.4, relief=belly_out)
    belt = cover * (np.abs(y - swell) < g.uniform(0.15, 0.5))
    if g.random() < 0.5:
        _decorate(c, g, belt, y - swell, x)
    else:
        _decorate(c, g, belt, x, swell - y)
    if member == "lidded":
        lid = np.maximum(oval(x, y, 0, top, neck + lip + 0.07, g.uniform(0.2, 0.3)), y - top)
        c.paint(lid, ink.trim, dome=0.15, base=0.2)
        c.paint(limb(x, y, 0, top - 0.24, 0, top - 0.32, 0.085), ink.trim, dome=0.08)
    else:
        c.paint(oval(x, y, 0, top, neck + lip + 0.03, 0.09), ink.trim, dome=0.05, base=0.3)
        c.stain(oval(x, y, 0, top, neck + lip - 0.04, 0.055), ink.dark, c.cover)


def _undercarriage(c: Canvas, g: np.random.Generator, member: str, wide: float) -> None:
    """Draw the legs, wheels, tracks or thrusters of a robot."""
    x, y, ink = np.abs(c.x), c.y, c.palette
    if member == "legged":
        stance = g.uniform(0.16, 0.28)
        c.paint(limb(x, y, stance, 0.4, stance + 0.04, 0.82, 0.075), ink.trim, dome=0.07)
        c.paint(box(x, y, stance + 0.08, 0.87, 0.16, 0.07, 0.06), ink.body, dome=0.07)
    elif member == "wheeled":
        radius = g.uniform(0.19, 0.24)
        c.paint(disc(x, y, wide * 0.75, 0.96 - radius, radius), ink.dark, dome=0.08)
        c.paint(disc(x, y, wide * 0.75, 0.96 - radius, radius * 0.55), ink.trim, dome=0.06)
    elif member == "tracked":
        belt = box(x, y, 0, 0.76, wide + 0.12, 0.19, 0.19)
        cover = c.paint(belt, ink.dark, dome=0.07)
        c.stain(belt + 0.07, ink.trim, cover)
        c.stain(disc(x - np.round(x * (1 / 0.26)) * 0.26, y, 0, 0.76, 0.075), ink.dark, cover)
    else:
        for at in (0.0, wide * 0.6):
            c.paint(limb(x, y, at, 0.55, at, g.uniform(0.85, 0.98), 0.13, 0.02), ink.accent, dome=0.2)
            c.paint(limb(x, y, at, 0.55, at, 0.75, 0.06, 0.01), ink.pale, dome=0.2)


def _robot(c: Canvas, g: np.random.Generator, member: str) -> None:
    """Draw a robot from the front; it is legged, wheeled, tracked or flying."""
    x, y, ink = np.abs(c.x), c.y, c.palette
    wide, brow, corner = g.uniform(0.32, 0.46), g.uniform(0.26, 0.38), g.uniform(0.05, 0.16)
    _undercarriage(c, g, member, wide)
    aerials = g.integers(3)
    if aerials:
        at = 0.0 if aerials == 1 else brow * 0.7
        c.paint(limb(x, y, at, -0.7, at, -0.92, 0.025), ink.trim, dome=0.03)
        c.paint(disc(x, y, at, -0.94, 0.06), ink.accent, dome=0.06)
    elbow, hand = g.uniform(0.0, 0.3), g.uniform(-0.25, 0.4)
    c.paint(limb(x, y, wide, -0.05, wide + 0.2, elbow, 0.06), ink.trim, dome=0.06)
    c.paint(limb(x, y, wide + 0.2, elbow, wide + 0.3, hand, 0.055), ink.trim, dome=0.06)
    c.paint(disc(x, y, wide + 0.3, hand, 0.09), ink.body, dome=0.08)
    c.paint(box(x, y, 0, -0.2, 0.12, 0.1), ink.trim, dome=0.08)
    c.paint(box(x, y, 0, 0.2, wide, 0.36, corner), ink.body, dome=0.13)
    chest = g.integers(3)
    if chest == 1:
        c.paint(disc(x, y, 0, 0.16, 0.15), ink.pattern, dome=0.07, base=0.1)
    elif chest == 2:
        cover = c.paint(box(x, y, 0, 0.18, wide * 0.65, 0.16, 0.04), ink.pattern, dome=0.03, base=0.1)
        c.stain(disc(x, y, 0.12, 0.18, 0.055), ink.accent, cover)
    c.paint(box(x, y, 0, -0.5, brow, 0.22, corner), ink.body if g.random() < 0.6 else ink.trim, dome=0.12)
    look = g.integers(3)
    if look == 0:
        c.paint(disc(x, y, 0, -0.52, 0.14), ink.pale, dome=0.1, base=0.1)
        c.stain(disc(c.x, y, g.uniform(-0.05, 0.05), -0.52, 0.07), ink.dark, c.cover)
    elif look == 1:
        c.paint(disc(x, y, brow * 0.45, -0.52, 0.095), ink.pale, dome=0.08, base=0.1)
        c.stain(disc(c.x - g.uniform(-0.03, 0.03) - np.sign(c.x) * brow * 0.45, y, 0, -0.52, 0.05), ink.dark, c.cover)
    else:
        c.paint(box(x, y, 0, -0.52, brow * 0.75, 0.08, 0.07), ink.dark, dome=0.05, base=0.1)
        c.stain(disc(x, y, brow * 0.35, -0.52, 0.045), ink.accent, c.cover)
    c.stain(box(x, y, 0, -0.36, brow * 0.4, 0.02), ink.dark, c.cover)


FAMILIES: dict[str, tuple[DrawFunction, tuple[str, ...]]] = {
    "beetle": (_beetle, ("plain", "spotted", "striped", "banded")),
    "butterfly": (_butterfly, ("eyed", "veined", "bordered", "barred")),
    "fish": (_fish, ("fantail", "forktail", "sailfin", "swordbill")),
    "flower": (_flower, tuple(PETALS)),
    "pot": (_pot, ("handled", "eared", "spouted", "lidded")),
    "robot": (_robot, ("legged", "wheeled", "tracked", "flying")),
}
