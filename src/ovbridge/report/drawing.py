"""Boxes and names drawn on pictures, with Pillow."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovbridge.structures import Detections

Array = np.ndarray[Any, Any]
Colour = tuple[int, int, int]

ROLE_COLOURS: Mapping[str, Colour] = {
    "base": (139, 92, 246),
    "novel": (16, 185, 129),
    "unused": (148, 163, 184),
}
"""Purple for base and green for novel, as in the paper's figures."""

_LABEL_SHARE = 0.036
"""Height of the lettering as a share of the picture's longer side."""


def draw_detections(
    pixels: Array, detections: Detections, *, roles: Mapping[str, str] | None = None, magnify: float = 1.0
) -> Image.Image:
    """A copy of the picture with a box, a name and a score for each detection, the best on top.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        detections: boxes in pixels of that picture.
        roles: class name → "base" or "novel" decides the colour; None gives every class its own.
        magnify: enlarge the picture first, so that lettering is crisp on small ones.
    """
    names = detections.class_names
    if roles is None:
        colours = [class_colour(int(i), len(detections.names)) for i in detections.class_ids.tolist()]
    else:
        colours = [ROLE_COLOURS.get(roles.get(name, "unused"), ROLE_COLOURS["unused"]) for name in names]
    labels = [f"{name} {score:.2f}" for name, score in zip(names, detections.scores.tolist(), strict=True)]
    return draw_boxes(pixels, detections.boxes_xyxy.numpy(), colours, labels, magnify=magnify)


def draw_boxes(
    pixels: Array,
    boxes_xyxy: Array,
    colours: Sequence[Colour],
    labels: Sequence[str] | None = None,
    *,
    magnify: float = 1.0,
) -> Image.Image:
    """A copy of the picture with boxes [N, 4] in its pixels, first box on top; an empty label draws none."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if magnify != 1.0:
        width, height = round(image.width * magnify), round(image.height * magnify)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(image)
    line = max(2, round(max(image.size) / 240))
    font = ImageFont.load_default(size=max(11, round(max(image.size) * _LABEL_SHARE)))
    order = range(len(boxes_xyxy) - 1, -1, -1)
    boxes = [tuple(float(v) * magnify for v in box) for box in boxes_xyxy]
    for i in order:
        x1, y1, x2, y2 = boxes[i]
        canvas.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colours[i], width=line)
    if labels is not None:
        placed = _places(canvas, image.size, boxes, labels, font)
        for i in order:
            if labels[i]:
                _draw_label(canvas, placed[i], labels[i], colours[i], font)
    return image


def class_colour(index: int, count: int) -> Colour:
    """One of `count` well-separated colours; neighbours in the vocabulary are far apart on the wheel."""
    hue = (index * 0.618033988749895) % 1.0
    lightness = 0.52 if count < 24 or index % 2 else 0.62
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def data_uri(image: Image.Image, *, quality: int = 88) -> str:
    """The picture as a JPEG `data:` address for an HTML page."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


Tag = tuple[float, float, float, float]
"""Left, top, right and bottom of a label in pixels of the picture."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _places(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    boxes: Sequence[tuple[float, ...]],
    labels: Sequence[str],
    font: Font,
) -> list[Tag]:
    """Where each tag goes: on the upper edge of its box, or where that would hide a better one's, inside or below.

    Always inside the picture; with nowhere free it stays on the upper edge, under the better one.
    """
    placed: list[Tag] = []
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        width, height = _tag_size(canvas, label, font)
        top, bottom = min(y1, y2), max(y1, y2)
        choices = [
            _inside((x, y, x + width, y + height), size)
            for y in (top - height if top >= height else max(top, 0.0), top, bottom - height, bottom)
            for x in (min(x1, x2), max(x1, x2) - width)
        ]
        free = (tag for tag in choices if not any(_overlap(tag, other) for other in placed))
        placed.append(next(free, choices[0]))
    return placed


def _tag_size(canvas: ImageDraw.ImageDraw, label: str, font: Font) -> tuple[float, float]:
    left, top, right, bottom = canvas.textbbox((0, 0), label, font=font)
    pad = _padding(bottom - top)
    return right - left + 2 * pad, bottom - top + 2 * pad


def _padding(text_height: float) -> int:
    return max(2, round(text_height * 0.25))


def _inside(tag: Tag, size: tuple[int, int]) -> Tag:
    width, height = tag[2] - tag[0], tag[3] - tag[1]
    x, y = (min(max(tag[k], 0.0), max(size[k] - length, 0.0)) for k, length in enumerate((width, height)))
    return x, y, x + width, y + height


def _overlap(one: Tag, other: Tag) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_label(canvas: ImageDraw.ImageDraw, tag: Tag, label: str, colour: Colour, font: Font) -> None:
    """A filled tag with the text in whichever of white and black reads better on it."""
    left, top, _, bottom = canvas.textbbox((0, 0), label, font=font)
    pad = _padding(bottom - top)
    canvas.rectangle(tag, fill=colour)
    ink = (255, 255, 255) if _luminance(colour) < 0.45 else (15, 23, 42)
    canvas.text((tag[0] + pad - left, tag[1] + pad - top), label, fill=ink, font=font)


def _luminance(colour: Colour) -> float:
    """Relative luminance in [0, 1] (WCAG 2)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
