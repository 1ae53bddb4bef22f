"""Where an object lies: its outline in the picture, what of it can be seen, and both in COCO's forms.

Everything is measured on the supersampled canvas (`SUPERSAMPLING` canvas pixels a picture pixel), so boxes are
exact to half a pixel. Picture coordinates have x to the right, y downwards and (0, 0) at the top left corner of
the top left pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ovbridge.world.nouns import NOUNS

SUPERSAMPLING = 2
"""Canvas pixels a picture pixel, along each axis."""

CONTOUR_TOLERANCE = 0.6
"""Largest distance, in picture pixels, between the traced edge of a mask and the polygon written for it."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where and how an object stands."""

    centre_xy: tuple[float, float]
    """Centre in picture pixels."""
    side: float
    """The longer side before rotation, in picture pixels."""
    angle: float
    """Clockwise turn in radians."""
    shear: float
    """Horizontal shift a unit of height."""
    stretch: float
    """Width factor; the height is divided by it."""
    mirrored: bool
    """Left and right swapped."""


@dataclass(frozen=True)
class Silhouette:
    """The set pixels of one object on a patch of the canvas; the patch may stick out of the canvas."""

    mask: Image.Image
    left: int
    top: int

    @property
    def pixels(self) -> np.ndarray:
        """[h, w] bool."""
        return np.asarray(self.mask) > 0


@cache
def _unit_points(noun_index: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """All outline points of a noun, [P, 2], and where each part ends."""
    noun = NOUNS[noun_index]
    points = np.array([point for part in noun.parts for point in part.outline], dtype=np.float64)
    return points, tuple(np.cumsum([len(part.outline) for part in noun.parts]).tolist())


def outlines(noun_index: int, pose: Pose) -> list[np.ndarray]:
    """The parts' polygons on the canvas, each [P, 2] xy in canvas pixels, back to front."""
    points, ends = _unit_points(noun_index)
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    mirror = -1.0 if pose.mirrored else 1.0
    stretch = np.array([[pose.stretch * mirror, pose.shear], [0.0, 1.0 / pose.stretch]])
    matrix = np.array([[cos, -sin], [sin, cos]]) @ stretch * (pose.side / 2 * SUPERSAMPLING)
    placed = points @ matrix.T + np.asarray(pose.centre_xy) * SUPERSAMPLING
    return np.split(placed, ends[:-1])


def silhouette(polygons: Sequence[np.ndarray]) -> Silhouette:
    """The union of the polygons."""
    everything = np.concatenate(polygons)
    left, top = (int(value) for value in np.floor(everything.min(axis=0)))
    right, bottom = (int(value) + 1 for value in np.ceil(everything.max(axis=0)))
    mask = Image.new("L", (right - left, bottom - top))
    draw = ImageDraw.Draw(mask)
    for polygon in polygons:
        draw.polygon((polygon - (left, top)).ravel().tolist(), fill=255)
    return Silhouette(mask, left, top)


class InstanceCanvas:
    """Which instance is in front at each canvas pixel: 0 is nothing, instance i is i + 1."""

    def __init__(self, width: int, height: int) -> None:
        self.ids = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), dtype=np.uint8)
        self._whole: list[int] = []
        self._seen = np.zeros(1, dtype=np.int64)

    def add(self, shapes: Sequence[Silhouette], *, min_visible: float, min_inside: float, min_area: float) -> bool:
        """Put a new instance in front, unless that hides too much; says whether it was put.

        `min_visible`: the fraction of every instance that must stay in sight. `min_inside`: the fraction of the new
        one that must lie inside the picture. `min_area`: picture pixels that every instance must keep in sight.
        """
        before, own_id = self.ids.copy(), len(self._whole) + 1
        seen = np.append(self._seen, 0)
        for shape in shapes:
            overwritten = self._paint(shape, own_id)
            seen[own_id] += overwritten.sum()
            seen -= overwritten[: own_id + 1]
        # Members of a group hide one another, so a group is measured as a whole.
        whole = int(shapes[0].pixels.sum()) if len(shapes) == 1 else int(seen[own_id])
        wholes = np.array([*self._whole, whole])
        limits = np.maximum(min_visible * wholes, min_area * SUPERSAMPLING**2)
        if bool((seen[1:] < limits).any()) or seen[own_id] < min_inside * whole:
            self.ids = before
            return False
        self._whole.append(whole)
        self._seen = seen
        return True

    def _paint(self, shape: Silhouette, value: int) -> np.ndarray:
        """Set the shape's pixels that lie on the canvas; returns how many of each id they held before, [256]."""
        bottom, right = max(shape.top + shape.mask.height, 0), max(shape.left + shape.mask.width, 0)
        window = self.ids[max(shape.top, 0) : bottom, max(shape.left, 0) : right]
        top, left = max(-shape.top, 0), max(-shape.left, 0)
        inside = shape.pixels[top : top + window.shape[0], left : left + window.shape[1]]
        overwritten = np.bincount(window[inside], minlength=256)
        window[inside] = value
        return overwritten

    def visible(self, instance: int) -> np.ndarray:
        """[H * SUPERSAMPLING, W * SUPERSAMPLING] bool: where the instance is in front."""
        return np.equal(self.ids, instance + 1)


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (the last two exclusive) of the set pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def coco_geometry(mask: np.ndarray, *, is_crowd: bool) -> dict[str, Any]:
    """`bbox` (xywh), `area` and `segmentation` of a canvas mask, in picture pixels as COCO writes them.

    Polygons for an instance (its visible part only, holes filled), uncompressed RLE for a crowd.
    """
    left, top, right, bottom = (edge / SUPERSAMPLING for edge in tight_box(mask))
    geometry: dict[str, Any] = {
        "bbox": [left, top, right - left, bottom - top],
        "area": float(mask.sum()) / SUPERSAMPLING**2,
    }
    picture_mask = mask[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING]
    if is_crowd:
        return geometry | {"segmentation": run_lengths(picture_mask)}
    window = picture_mask[int(top) : math.ceil(bottom), int(left) : math.ceil(right)]
    polygons = []
    for contour in trace_contours(window):
        polygon = simplify(contour, CONTOUR_TOLERANCE) + np.array([int(left), int(top)])
        polygons.append(np.clip(polygon, (left, top), (right, bottom)).ravel().tolist())
    return geometry | {"segmentation": polygons}


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed RLE of a [H, W] mask: lengths of alternating runs of 0 and 1, column by column."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


# Steps along the edges between pixels, the set pixel to the right of the step: east, south, west, north.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def trace_contours(mask: np.ndarray) -> list[np.ndarray]:
    """The outer edges of a [h, w] mask as closed polygons through pixel corners, each [P, 2] xy.

    Pixels that touch only at a corner belong to different polygons. Edges of holes are left out.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    # A pixel whose upper neighbour is unset has an edge that starts at its top left corner and goes east; and so on.
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    starts, directions = [], []
    for direction, (neighbour, (corner_x, corner_y)) in enumerate(zip(neighbours, corners, strict=True)):
        rows, columns = np.nonzero(inside & ~neighbour)
        starts.append(np.stack([columns + corner_x, rows + corner_y], axis=1))
        directions.append(np.full(len(rows), direction))
    start_E2, direction_E = np.concatenate(starts), np.concatenate(directions)
    edge_at = np.full((4, mask.shape[0] + 1, mask.shape[1] + 1), -1, dtype=np.int32)
    edge_at[direction_E, start_E2[:, 1], start_E2[:, 0]] = np.arange(len(start_E2))
    end_E2 = start_E2 + np.array(_STEPS)[direction_E]
    # Turn right where possible: it keeps pixels that touch at a corner apart.
    following = np.full(len(start_E2), -1)
    for turn in (3, 0, 1):
        candidate = edge_at[(direction_E + turn) % 4, end_E2[:, 1], end_E2[:, 0]]
        following = np.where(candidate >= 0, candidate, following)
    return [
        contour
        for contour in (start_E2[cycle].astype(np.float64) for cycle in _cycles(following.tolist()))
        if _signed_area(contour) > 0
    ]


def _cycles(following: list[int]) -> list[list[int]]:
    """The cycles of a permutation."""
    seen, cycles = [False] * len(following), []
    for first in range(len(following)):
        cycle, at = [], first
        while not seen[at]:
            seen[at] = True
            cycle.append(at)
            at = following[at]
        if cycle:
            cycles.append(cycle)
    return cycles


def _signed_area(polygon: np.ndarray) -> float:
    """Positive where the polygon runs clockwise on the screen (y downwards): outer edges do, holes do not."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1]) / 2


def simplify(polygon: np.ndarray, tolerance: float) -> np.ndarray:
    """Fewer corners: each corner left out is within `tolerance` of the line that replaces it.

    The sleeve algorithm (Zhao and Saalfeld 1997): from an anchor, go on while one direction passes within the
    tolerance of every corner since, and the corners do not turn back.
    """
    steps_in, steps_out = polygon - np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0) - polygon
    turns = steps_in[:, 0] * steps_out[:, 1] != steps_in[:, 1] * steps_out[:, 0]
    corners = [(float(x), float(y)) for x, y in polygon[turns].tolist()]
    kept = [anchor := corners[0]]
    previous, reference, low, high, reach = anchor, 0.0, -math.pi, math.pi, 0.0
    for corner in [*corners[1:], corners[0]]:
        distance = math.dist(anchor, corner)
        turn = (math.atan2(corner[1] - anchor[1], corner[0] - anchor[0]) - reference + math.pi) % (
            2 * math.pi
        ) - math.pi
        if previous != anchor and (distance < reach - tolerance or not low <= turn <= high):
            kept.append(anchor := previous)
            low, high, reach = -math.pi, math.pi, 0.0
            distance = math.dist(anchor, corner)
        if low == -math.pi:
            reference, turn = math.atan2(corner[1] - anchor[1], corner[0] - anchor[0]), 0.0
        if distance > tolerance:
            width = math.asin(tolerance / distance)
            low, high = max(low, turn - width), min(high, turn + width)
        previous, reach = corner, max(reach, distance)
    return np.array(kept if len(kept) >= 3 else corners)
