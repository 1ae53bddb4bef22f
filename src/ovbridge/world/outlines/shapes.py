"""Geometry that the drawings are made of: every function returns points (x right, y down).

Angles are degrees, 0 to the right and 90 downwards, as y points down. Curves come back sampled, at most
60 points an outline. The scale is free: `fit` brings a finished drawing into [-1, 1]^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]
Outline = tuple[Point, ...]
Tone = Literal["main", "accent", "dark", "light", "white", "black", "glass", "wood", "metal", "skin", "green"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One filled polygon of a drawing."""

    outline: Outline
    """Closed polygon, last point joins the first; x right, y down."""
    tone: Tone
    """"main" and "accent" are coloured by the instance, "dark" and "light" are shades of main, the others fixed."""


Drawing = tuple[Part, ...]


def paint(tone: Tone, *outlines: Outline) -> Drawing:
    """The outlines as parts of one tone."""
    return tuple(Part(outline=outline, tone=tone) for outline in outlines)


def draw(*layers: Drawing) -> Drawing:
    """Layers back to front as one drawing, brought into [-1, 1]^2."""
    return fit(tuple(part for layer in layers for part in layer))


def bounds(drawing: Drawing) -> tuple[float, float, float, float]:
    """The box (x0, y0, x1, y1) around all parts."""
    xs, ys = zip(*(point for part in drawing for point in part.outline), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def fit(drawing: Drawing) -> Drawing:
    """Centre the drawing and scale it so that its longer side spans [-1, 1]."""
    x0, y0, x1, y1 = bounds(drawing)
    cx, cy, half = (x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0) / 2

    def place(outline: Outline) -> Outline:
        return tuple((round((x - cx) / half, 4), round((y - cy) / half, 4)) for x, y in outline)

    return tuple(Part(outline=place(part.outline), tone=part.tone) for part in drawing)


def poly(*points: Point) -> Outline:
    """A polygon through the given corners."""
    return points


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Outline:
    """An axis-aligned rectangle, with round corners where `radius` is positive."""
    if radius <= 0:
        return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    corners = (
        (x1 - radius, y0 + radius, -90.0),
        (x1 - radius, y1 - radius, 0.0),
        (x0 + radius, y1 - radius, 90.0),
        (x0 + radius, y0 + radius, 180.0),
    )
    return tuple(p for x, y, start in corners for p in arc(x, y, radius, radius, start, start + 90, count=6))


def arc(
    cx: float, cy: float, rx: float, ry: float, start: float, end: float, *, count: int = 20, turn: float = 0.0
) -> Outline:
    """`count` points of an ellipse from angle `start` to `end`; as a polygon, the piece cut off by the chord."""
    steps = (math.radians(start + (end - start) * i / (count - 1)) for i in range(count))
    points = tuple((cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in steps)
    return rotate(points, turn, (cx, cy)) if turn else points


def ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0, *, count: int = 28) -> Outline:
    """A whole ellipse, turned by `turn` degrees."""
    return arc(cx, cy, rx, ry, 0, 360 - 360 / count, count=count, turn=turn)


def circle(cx: float, cy: float, radius: float, *, count: int = 24) -> Outline:
    """A circle."""
    return ellipse(cx, cy, radius, radius, count=count)


def ring(
    cx: float, cy: float, outer: float, inner: float, start: float = 0.0, end: float = 360.0, *, stretch: float = 1.0
) -> Outline:
    """A ring or a segment of one, around the outside and back along the inside; `stretch` scales its height."""
    out = arc(cx, cy, outer, outer * stretch, start, end, count=29)
    return out + arc(cx, cy, inner, inner * stretch, end, start, count=29)


def blob(*points: Point) -> Outline:
    """A smooth closed curve through the points (Catmull-Rom)."""
    n = len(points)
    return _spline([points[i % n] for i in range(-1, n + 2)], max(1, min(8, 56 // n)))


def curve(*points: Point) -> Outline:
    """A smooth open path through the points (Catmull-Rom), at most 28 points, to be thickened by `band`."""
    per_piece = max(1, min(8, 27 // (len(points) - 1)))
    return (*_spline([points[0], *points, points[-1]], per_piece), points[-1])


def _spline(points: Sequence[Point], per_piece: int) -> Outline:
    """Catmull-Rom samples between points[1] and points[-2], the end left out."""

    def between(a: float, b: float, c: float, d: float, t: float) -> float:
        return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))

    return tuple(
        (between(a[0], b[0], c[0], d[0], i / per_piece), between(a[1], b[1], c[1], d[1], i / per_piece))
        for a, b, c, d in zip(points, points[1:], points[2:], points[3:], strict=False)
        for i in range(per_piece)
    )


def spiral(cx: float, cy: float, start_radius: float, end_radius: float, start: float, end: float) -> Outline:
    """A path winding from angle `start` to `end` while its radius changes evenly; to be thickened by `band`."""
    steps = [i / 29 for i in range(30)]
    angles = [math.radians(start + (end - start) * t) for t in steps]
    radii = [start_radius + (end_radius - start_radius) * t for t in steps]
    return tuple((cx + r * math.cos(a), cy + r * math.sin(a)) for r, a in zip(radii, angles, strict=True))


def band(path: Sequence[Point], width: float, end_width: float | None = None) -> Outline:
    """A thick line along an open path, tapering from `width` to `end_width`."""
    last = len(path) - 1
    left: list[Point] = []
    right: list[Point] = []
    for i, (x, y) in enumerate(path):
        (ax, ay), (bx, by) = path[max(i - 1, 0)], path[min(i + 1, last)]
        length = math.hypot(bx - ax, by - ay)
        half = (width + ((end_width if end_width is not None else width) - width) * i / last) / 2
        nx, ny = -(by - ay) / length * half, (bx - ax) / length * half
        left.append((x + nx, y + ny))
        right.append((x - nx, y - ny))
    return (*left, *reversed(right))


def line(x0: float, y0: float, x1: float, y1: float, width: float) -> Outline:
    """A straight thick line."""
    return band(((x0, y0), (x1, y1)), width)


def mirror(outline: Outline, x: float = 0.0) -> Outline:
    """The outline reflected about the vertical line at `x`."""
    return tuple((2 * x - px, py) for px, py in reversed(outline))


def symmetric(*right_half: Point) -> Outline:
    """A polygon from its right half, top to bottom, and the reflection of it about x = 0."""
    return right_half + mirror(right_half)


def rotate(outline: Outline, degrees: float, centre: Point = (0.0, 0.0)) -> Outline:
    """The outline turned about `centre`, clockwise on screen."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    cx, cy = centre
    return tuple((cx + c * (x - cx) - s * (y - cy), cy + s * (x - cx) + c * (y - cy)) for x, y in outline)


def shift(outline: Outline, dx: float, dy: float) -> Outline:
    """The outline moved by (dx, dy)."""
    return tuple((x + dx, y + dy) for x, y in outline)
