"""Scenes of the built-in images: colours, backgrounds, pose, light and lens, independent of the object class.

Shapes are signed distance fields in object units, negative inside, evaluated at every pixel at once. Edges are smoothed
over the width of one pixel, so no supersampling is needed. The parts of an object write a height map, which is shaded
with the reflection model of Phong (Illumination for Computer Generated Images, 1975).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Field = NDArray[np.floating]  # (S, S) float32, one value per pixel; NumPy's annotations do not keep the dtype
Colour = NDArray[np.float32]  # (3, 1, 1): RGB in 0..1


def disc(x: Field, y: Field, cx: float, cy: float, radius: float) -> Field:
    """Compute the signed distance to a disc around (cx, cy)."""
    dx, dy = x - cx, y - cy
    distance: Field = np.sqrt(dx * dx + dy * dy) - radius
    return distance


def oval(x: Field, y: Field, cx: float, cy: float, a: float, b: float, turn: float = 0.0) -> Field:
    """Compute the signed distance to an ellipse with half-axes a (along x) and b, rotated by `turn` radians.

    It is exact at the edge and approximate elsewhere.
    """
    dx, dy = x - cx, y - cy
    if turn:
        cos, sin = math.cos(turn), math.sin(turn)
        dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
    p, q = dx * (1 / a), dy * (1 / b)
    k = np.sqrt(p * p + q * q) + 1e-6
    p *= 1 / a
    q *= 1 / b
    distance: Field = k * (k - 1) / np.sqrt(p * p + q * q + 1e-6)
    return distance


def limb(x: Field, y: Field, ax: float, ay: float, bx: float, by: float, ra: float, rb: float | None = None) -> Field:
    """Compute the signed distance to a stroke from (ax, ay) to (bx, by) whose radius changes from ra to rb."""
    ex, ey = bx - ax, by - ay
    dx, dy = x - ax, y - ay
    along = np.clip((dx * ex + dy * ey) * (1 / (ex * ex + ey * ey + 1e-9)), 0, 1)
    dx -= along * ex
    dy -= along * ey
    distance: Field = np.sqrt(dx * dx + dy * dy) - (ra if rb is None else ra + along * (rb - ra))
    return distance


def box(x: Field, y: Field, cx: float, cy: float, a: float, b: float, corner: float = 0.0) -> Field:
    """Compute the signed distance to a rectangle with half-sides a and b and corner radius `corner`."""
    dx, dy = np.abs(x - cx) - (a - corner), np.abs(y - cy) - (b - corner)
    px, py = np.maximum(dx, 0), np.maximum(dy, 0)
    distance: Field = np.sqrt(px * px + py * py) + np.minimum(np.maximum(dx, dy), 0) - corner
    return distance


def repeat(u: Field, period: float, share: float) -> Field:
    """Compute the signed distance to bars of width `share * period`, centred at multiples of `period` along u."""
    return np.abs(u - np.round(u * (1 / period)) * period) - share * period / 2


def oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """Convert a colour from OKLCH (Ottosson 2020), hue in radians, to RGB; out-of-gamut channels are clipped."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    root = (
        lightness + 0.3963377774 * a + 0.2158037573 * b,
        lightness - 0.1055613458 * a - 0.0638541728 * b,
        lightness - 0.0894841775 * a - 1.2914855480 * b,
    )
    long, medium, short = (value**3 for value in root)
    linear = np.array(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        dtype=np.float32,
    )
    return (np.clip(linear, 0, 1) ** np.float32(1 / 2.2)).reshape(3, 1, 1)


@dataclass(frozen=True)
class Palette:
    """Colours of one image: body and trim contrast with the ground, pattern and accent with the body."""

    ground: tuple[Colour, Colour, Colour]
    body: Colour
    trim: Colour
    pattern: Colour
    accent: Colour
    dark: Colour
    pale: Colour

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Palette:
        """Draw a palette with random hues, either light on dark or dark on light."""
        g = generator
        hue = g.uniform(0, math.tau)
        far = hue + g.choice([0.0, 0.6, -0.6, 2.1, -2.1, math.pi]) + g.normal(0, 0.25)
        light = g.uniform(0.3, 0.9)
        away = -1 if light > 0.72 or (light > 0.48 and g.random() < 0.5) else 1
        body = min(max(light + away * g.uniform(0.24, 0.42), 0.26), 0.9)
        back = g.uniform(0.18, 0.36) * (
            -1 if body > 0.58 else 1
        )  # pattern: darker on light bodies, lighter on dark ones
        strength = g.uniform(0.05, 0.19)
        spread = g.normal(0, 0.35, size=3)
        return cls(
            ground=(
                oklch(light, g.uniform(0.0, 0.11), hue),
                oklch(light + g.uniform(-0.14, 0.14), g.uniform(0.0, 0.11), hue + spread[0]),
                oklch(light + g.uniform(-0.12, 0.12), g.uniform(0.02, 0.14), hue + 3 * spread[1]),
            ),
            body=oklch(body, strength, far),
            trim=oklch(body + g.uniform(-0.04, 0.02), strength * g.uniform(0.2, 1), far + 2 * spread[2]),
            pattern=oklch(body + back, g.uniform(0.02, 0.17), far + g.choice([0.0, 0.8, -0.8, math.pi])),
            accent=oklch(body + 0.6 * back, g.uniform(0.1, 0.2), far + g.uniform(1.5, 4.8)),
            dark=oklch(0.2, 0.03, far),
            pale=oklch(0.95, 0.02, far),
        )


class Canvas:
    """The object coordinates of every pixel, and the colour, coverage and height painted so far.

    Args:
        x: object coordinate to the right, (S, S) float32; the object fills about -1..1.
        y: object coordinate downwards, (S, S) float32.
        pixel: width of a pixel in object units.
        palette: colours of the image.
    """

    def __init__(self, x: Field, y: Field, pixel: float, palette: Palette) -> None:
        self.x, self.y, self.pixel, self.palette = x, y, pixel, palette
        self.colour = np.zeros((3, *x.shape), dtype=np.float32)
        self.cover = np.zeros_like(x)
        self.height = np.zeros_like(x)

    def inside(self, distance: Field) -> Field:
        """Compute the share of each pixel inside a shape, (S, S) in 0..1."""
        share: Field = np.clip(0.5 - distance * (1 / self.pixel), 0, 1)
        return share

    def paint(
        self, distance: Field, colour: Colour, *, dome: float, base: float = 0.0, relief: Field | None = None
    ) -> Field:
        """Paint a part over the existing ones and return its coverage, (S, S) in 0..1.

        Its height is `base` plus an edge rounded over the distance `dome`, or `relief` if given.
        """
        cover = self.inside(distance)
        self.colour += (colour - self.colour) * cover
        self.cover = np.maximum(self.cover, cover)
        if relief is None:
            slope = np.clip(1 + distance * (1 / dome), 0, 1)
            relief = base + dome - dome * slope * slope
        self.height += (relief - self.height) * cover
        return cover

    def stain(self, distance: Field, colour: Colour, within: Field, strength: float = 1.0) -> None:
        """Colour a mark on the part with coverage `within`, without changing the height."""
        self.colour += (colour - self.colour) * (self.inside(distance) * within * strength)


def _noise(g: np.random.Generator, size: int, cells: int) -> Field:
    """Generate smooth value noise in about 0..1 with `cells` cells per side, (size, size)."""
    grid = Image.fromarray(g.random((cells + 2, cells + 2), dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC, box=(0.5, 0.5, cells + 1.5, cells + 1.5)))


def _soften(field: Field, radius: float) -> Field:
    """Apply a Gaussian blur with a radius in pixels to a field in 0..1."""
    image = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius))).astype(np.float32) * np.float32(1 / 255)


def _clutter(g: np.random.Generator, u: Field, v: Field) -> Field:
    """Draw one random shape that is independent of the class."""
    cx, cy, radius, turn = g.uniform(-1, 1), g.uniform(-1, 1), g.uniform(0.08, 0.34), g.uniform(0, math.tau)
    kind = g.integers(5)
    if kind == 0:
        return disc(u, v, cx, cy, radius)
    if kind == 1:
        return np.abs(disc(u, v, cx, cy, radius)) - 0.2 * radius
    if kind == 2:
        return oval(u, v, cx, cy, radius * 1.4, radius * 0.6, turn)
    if kind == 3:
        reach = 2.5 * radius
        return limb(
            u, v, cx, cy, cx + reach * math.cos(turn), cy + reach * math.sin(turn), radius * g.uniform(0.1, 0.3)
        )
    cos, sin = math.cos(turn), math.sin(turn)
    p, q = cos * (u - cx) + sin * (v - cy), cos * (v - cy) - sin * (u - cx)
    if g.random() < 0.5:
        return box(p, q, 0, 0, radius, radius * g.uniform(0.4, 1), 0.2 * radius)
    return np.maximum(np.abs(p) * 0.87 + q * 0.5, -q) - 0.6 * radius  # a triangle


def _background(g: np.random.Generator, palette: Palette, u: Field, v: Field) -> Field:
    """Draw a linear gradient, a noise texture, waves or a radial gradient, with clutter; (3, S, S)."""
    size = u.shape[0]
    first, second, third = palette.ground
    turn = g.uniform(0, math.tau)
    along = u * math.cos(turn) + v * math.sin(turn)
    kind = g.integers(4)
    if kind == 0:
        mix = 0.5 + 0.45 * along
    elif kind == 1:
        mix = _noise(g, size, int(g.integers(2, 6))) * 0.7 + _noise(g, size, int(g.integers(8, 20))) * 0.3
    elif kind == 2:
        mix = 0.5 + 0.5 * np.sin(along * g.uniform(4, 16) + _noise(g, size, 3) * g.uniform(0, 6))
    else:
        mix = np.clip(disc(u, v, g.uniform(-0.6, 0.6), g.uniform(-0.6, 0.6), 0) * 0.8, 0, 1)
    ground = first + (second - first) * np.clip(mix, 0, 1)
    pixel = 2 / size
    for _ in range(int(g.integers(0, 7))):
        colour = (third, second, palette.trim, palette.accent)[g.integers(4)]
        shape = np.clip(0.5 - _clutter(g, u, v) * (1 / pixel), 0, 1)
        ground += (colour - ground) * (shape * g.uniform(0.25, 0.8))
    blur = g.uniform(0, 0.03) * size
    if blur > 0.3:
        ground = np.stack([_soften(channel, blur) for channel in ground])
    return ground


class Scene:
    """All parts of an image that do not depend on the class.

    They are drawn before the object, so the same seed gives the same scene for every class.

    Args:
        generator: source of randomness.
        size: side of the image in pixels.
    """

    def __init__(self, generator: np.random.Generator, size: int) -> None:
        g = generator
        self.size = size
        line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        u, v = np.meshgrid(line, line)
        self.palette = Palette.draw(g)
        self.background = _background(g, self.palette, u, v)
        scale = g.uniform(0.56, 0.86)
        turn, mirror = min(max(g.normal(0, 0.5), -1.4), 1.4), 1 if g.random() < 0.5 else -1
        cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
        room = 1.04 - scale
        du, dv = u - g.uniform(-room, room), v - g.uniform(-room, room)
        self.canvas = Canvas(mirror * (cos * du + sin * dv), cos * dv - sin * du, 2 / size / scale, self.palette)
        around, above = g.uniform(0, math.tau), g.uniform(0.6, 1.2)
        self.light = (math.cos(above) * math.cos(around), math.cos(above) * math.sin(around), math.sin(above))
        self.gloss, self.ambient = g.uniform(0.0, 0.55), g.uniform(0.35, 0.6)
        self.shadow, self.reach, self.softness = g.uniform(0.1, 0.6), g.uniform(0.02, 0.12), g.uniform(0.01, 0.05)
        self.exposure, self.cast = g.uniform(0.85, 1.12), g.uniform(0.94, 1.06, size=(3, 1, 1)).astype(np.float32)
        self.blur, self.grain = max(0.0, g.uniform(-0.006, 0.01)) * size, max(0.0, g.uniform(-0.02, 0.035))
        self.noise = g.standard_normal((3, size, size), dtype=np.float32)

    def _lit(self) -> Field:
        """Compute the shaded colours of the object, (3, S, S)."""
        height = self.canvas.height * (1 / self.canvas.pixel)
        nx, ny = np.zeros_like(height), np.zeros_like(height)
        nx[:, 1:-1] = (height[:, :-2] - height[:, 2:]) * 0.5
        ny[1:-1] = (height[:-2] - height[2:]) * 0.5
        np.clip(nx, -2, 2, out=nx)
        np.clip(ny, -2, 2, out=ny)
        lx, ly, lz = self.light
        length = 1 / np.sqrt(nx * nx + ny * ny + 1)
        diffuse = np.maximum((nx * lx + ny * ly + lz) * length, 0)
        half = math.sqrt(lx * lx + ly * ly + (lz + 1) ** 2)  # the viewer looks straight down
        shine = np.maximum((nx * lx + ny * ly + lz + 1) * length * (1 / half), 0)
        for _ in range(5):
            shine *= shine  # to the power of 32
        lit: Field = self.canvas.colour * (self.ambient + (1.1 - self.ambient) * diffuse) + self.gloss * shine
        return lit

    def _shaded(self) -> Field:
        """Compute the background with the shadow of the object, (3, S, S)."""
        size = self.size
        cover = _soften(self.canvas.cover, self.softness * size)
        dx = round(-self.light[0] * self.reach * size * 1.5)
        dy = round(-self.light[1] * self.reach * size * 1.5)
        cast = np.zeros_like(cover)
        cast[max(dy, 0) : size + min(dy, 0), max(dx, 0) : size + min(dx, 0)] = cover[
            max(-dy, 0) : size - max(dy, 0), max(-dx, 0) : size - max(dx, 0)
        ]
        shaded: Field = self.background * (1 - self.shadow * cast)
        return shaded

    def photograph(self) -> NDArray[np.uint8]:
        """Render the object on the canvas in the scene, (S, S, 3) uint8."""
        ground = self._shaded()
        picture = ground + (self._lit() - ground) * self.canvas.cover
        picture *= self.exposure * self.cast
        if self.blur > 0.2:
            picture = np.stack([_soften(channel, self.blur) for channel in picture])
        if self.grain:
            picture += self.grain * self.noise
        pixels = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))
