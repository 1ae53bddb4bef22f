"""A picture of search results: each region in its surroundings, with its rank and similarity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ovbridge.errors import DataError
from ovbridge.label_store.search import RegionHit

TILE = 200
CAPTION = 18
GAP = 8
CONTEXT = 1.6
"""A tile shows this much more than the box, so that one sees what it is part of."""
BOX_COLOUR = (255, 92, 53)
INK, PAPER, MISSING = (34, 34, 34), (255, 255, 255), (225, 225, 225)


def contact_sheet(
    hits: Sequence[RegionHit],
    find_image: Callable[[str], Path | None],
    read_image: Callable[[Path], np.ndarray],
    *,
    columns: int = 5,
) -> Image.Image:
    """Tiles of `hits`, best first, row by row; an image that is gone leaves a grey tile."""
    columns = max(1, min(columns, len(hits)))
    rows = max(1, math.ceil(len(hits) / columns))
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * (TILE + CAPTION + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, hit in enumerate(hits):
        x = GAP + (i % columns) * (TILE + GAP)
        y = GAP + (i // columns) * (TILE + CAPTION + GAP)
        sheet.paste(_tile(hit, find_image(hit.image_key), read_image), (x, y))
        text = f"{i + 1}  {hit.similarity:.3f}  {Path(hit.image_key).name}"
        draw.text((x, y + TILE + 3), text[:32], fill=INK)
    return sheet


def _tile(hit: RegionHit, path: Path | None, read_image: Callable[[Path], np.ndarray]) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE), MISSING)
    try:
        pixels = read_image(path) if path is not None else None
    except DataError:
        pixels = None
    if pixels is None:
        return tile
    x1, y1, x2, y2 = hit.box_xyxy
    side = max(max(x2 - x1, y2 - y1) * CONTEXT, 1.0)
    left, top, scale = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2, TILE / side
    window = (round(left), round(top), round(left + side), round(top + side))
    tile = Image.fromarray(pixels).crop(window).resize((TILE, TILE), Image.Resampling.BILINEAR)
    corners = [(x1 - left) * scale, (y1 - top) * scale, (x2 - left) * scale - 1, (y2 - top) * scale - 1]
    ImageDraw.Draw(tile).rectangle(corners, outline=BOX_COLOUR, width=2)
    return tile
