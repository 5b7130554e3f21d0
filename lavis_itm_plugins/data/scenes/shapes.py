"""The outline of every kind of thing, as polygons in the square from -1 to 1 (y points down)."""

from __future__ import annotations

import math
from dataclasses import dataclass

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Part:
    """One polygon of a thing. `paint` is "body" (the thing's colour and texture) or a fixed shade, see draw.py."""

    paint: str
    outline: Points
    hole: Points = ()


def _oval(x: float, y: float, width: float, height: float) -> Points:
    return _arc(x, y, width, height, 0, 348)


def _disc(x: float, y: float, radius: float) -> Points:
    return _oval(x, y, radius, radius)


def _arc(x: float, y: float, width: float, height: float, start: float, stop: float) -> Points:
    """Points on an ellipse with the given half-axes, clockwise from `start` to `stop` degrees (0 is to the right)."""
    steps = max(8, round((stop - start) / 12))
    angles = [math.radians(start + (stop - start) * step / steps) for step in range(steps + 1)]
    return tuple((x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return (left, top), (right, top), (right, bottom), (left, bottom)


def _spikes(count: int, outer: float, inner: float) -> Points:
    """A star with `count` points, the first one up."""
    angles = [math.pi * (step / count - 0.5) for step in range(2 * count)]
    radii = [outer, inner] * count
    return tuple((r * math.cos(angle), r * math.sin(angle)) for r, angle in zip(radii, angles, strict=True))


def _heart() -> Points:
    points = []
    for angle in (math.tau * step / 40 for step in range(40)):
        height = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
        points.append((0.95 * math.sin(angle) ** 3, -0.12 - height / 18))
    return tuple(points)


def _crown() -> Points:
    """The leaves of a tree: a round outline with seven lobes."""
    angles = [math.tau * step / 70 for step in range(70)]
    radii = [0.56 + 0.1 * abs(math.sin(3.5 * angle)) for angle in angles]
    return tuple((1.1 * r * math.cos(a), r * math.sin(a) - 0.3) for r, a in zip(radii, angles, strict=True))


def _wing(side: int) -> tuple[Part, ...]:
    upper = ((0.05, -0.1), (0.35, -0.75), (0.8, -0.85), (0.98, -0.5), (0.8, -0.05), (0.3, 0.1))
    lower = ((0.05, 0.05), (0.5, 0.05), (0.8, 0.3), (0.7, 0.75), (0.4, 0.8), (0.1, 0.3))
    return tuple(Part("body", tuple((side * x, y) for x, y in points)) for points in (lower, upper))


_CRESCENT = _arc(0.1, 0, 0.9, 0.9, 60, 300) + _arc(0.8, 0, 0.82, 0.82, 108, 252)[::-1]
_CROSS = (
    (-0.32, -0.9), (0.32, -0.9), (0.32, -0.32), (0.9, -0.32), (0.9, 0.32), (0.32, 0.32),
    (0.32, 0.9), (-0.32, 0.9), (-0.32, 0.32), (-0.9, 0.32), (-0.9, -0.32), (-0.32, -0.32),
)  # fmt: skip
_CAR = ((-1, 0.38), (-1, -0.08), (-0.62, -0.15), (-0.4, -0.62), (0.35, -0.62), (0.62, -0.15), (1, -0.05), (1, 0.38))
_CAT = ((-0.85, -0.95), (-0.35, -0.6), (0.35, -0.6), (0.85, -0.95)) + _arc(0, 0.1, 0.9, 0.75, -20, 200)
_PETALS = tuple(
    Part("body", _disc(0.42 * math.cos(angle), 0.42 * math.sin(angle) - 0.35, 0.3))
    for angle in (math.tau * step / 6 for step in range(6))
)

SHAPES: dict[str, tuple[Part, ...]] = {
    "circle": (Part("body", _disc(0, 0, 0.9)),),
    "square": (Part("body", _box(-0.82, -0.82, 0.82, 0.82)),),
    "triangle": (Part("body", ((0, -0.9), (0.95, 0.78), (-0.95, 0.78))),),
    "star": (Part("body", _spikes(5, 1.0, 0.44)),),
    "cross": (Part("body", _CROSS),),
    "ring": (Part("body", _disc(0, 0, 0.92), hole=_disc(0, 0, 0.46)),),
    "heart": (Part("body", _heart()),),
    "moon": (Part("body", _CRESCENT),),
    "house": (
        Part("body", _box(-0.75, -0.2, 0.75, 0.9)),
        Part("shade", ((0, -0.95), (0.98, -0.15), (-0.98, -0.15))),
        Part("ink", _box(-0.2, 0.3, 0.2, 0.9)),
    ),
    "tree": (Part("wood", _box(-0.16, 0.1, 0.16, 0.95)), Part("body", _crown())),
    "car": (
        Part("body", _CAR),
        Part("light", ((-0.34, -0.5), (0.28, -0.5), (0.46, -0.12), (-0.48, -0.12))),
        Part("ink", _disc(-0.52, 0.4, 0.26)),
        Part("ink", _disc(0.52, 0.4, 0.26)),
    ),
    "boat": (
        Part("wood", _box(-0.08, -0.95, 0.06, 0.35)),
        Part("light", ((0.12, -0.9), (0.8, 0.2), (0.12, 0.2))),
        Part("body", ((-1, 0.3), (1, 0.3), (0.65, 0.9), (-0.65, 0.9))),
        Part("body", ((-0.14, -0.65), (-0.14, 0.2), (-0.75, 0.2))),
    ),
    "sun": (Part("body", _spikes(12, 1.0, 0.66)), Part("light", _disc(0, 0, 0.42))),
    "fish": (
        Part("body", ((0.4, 0), (1, -0.6), (0.85, 0), (1, 0.6))),
        Part("body", _oval(-0.2, 0, 0.78, 0.52)),
        Part("ink", _disc(-0.58, -0.12, 0.13)),
    ),
    "flower": (Part("leaf", _box(-0.09, 0.1, 0.09, 1.0)), *_PETALS, Part("light", _disc(0, -0.35, 0.26))),
    "cup": (
        Part("body", _disc(0.5, -0.05, 0.46), hole=_disc(0.5, -0.05, 0.2)),
        Part("body", ((-0.8, -0.65), (0.5, -0.65), (0.4, 0.75), (-0.7, 0.75))),
    ),
    "balloon": (
        Part("ink", ((-0.03, 0.4), (0.05, 0.4), (0.12, 0.7), (0.0, 1.0), (-0.08, 1.0), (0.02, 0.7))),
        Part("body", ((0, 0.3), (0.16, 0.55), (-0.16, 0.55))),
        Part("body", _oval(0, -0.3, 0.6, 0.7)),
    ),
    "mushroom": (
        Part("light", ((-0.26, 0), (0.26, 0), (0.34, 0.9), (-0.34, 0.9))),
        Part("body", _arc(0, 0.1, 0.95, 0.95, 180, 360)),
    ),
    "cat": (
        Part("body", _CAT),
        Part("ink", _oval(-0.36, -0.05, 0.12, 0.17)),
        Part("ink", _oval(0.36, -0.05, 0.12, 0.17)),
        Part("ink", ((-0.14, 0.3), (0.14, 0.3), (0, 0.46))),
    ),
    "butterfly": (*_wing(-1), *_wing(1), Part("ink", _oval(0, 0, 0.1, 0.7))),
}
