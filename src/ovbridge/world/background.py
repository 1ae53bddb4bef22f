"""What is behind the objects: places painted from gradients and simple shapes, and clutter that is nothing at all."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from ovbridge.world.scene import BackgroundKind

RGB = tuple[int, int, int]
Painter = Callable[[tuple[int, int], np.random.Generator], Image.Image]


def paint_background(kind: BackgroundKind, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """The place and its clutter on a canvas of the given width and height in canvas pixels."""
    canvas = _PAINTERS[kind](size, rng)
    _scatter_clutter(canvas, rng)
    return canvas


def _gradient(size: tuple[int, int], top: RGB, bottom: RGB) -> Image.Image:
    """A vertical run from one colour to another."""
    share = np.linspace(0, 1, size[1])[:, None]
    column = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
    return Image.fromarray(column.astype(np.uint8)[:, None, :]).resize(size, Image.Resampling.NEAREST)


def _pick(rng: np.random.Generator, colours: tuple[RGB, ...]) -> RGB:
    """One of the colours, a little lighter or darker."""
    return _shade(colours[int(rng.integers(len(colours)))], float(rng.uniform(0.93, 1.05)))


def _shade(rgb: RGB, factor: float) -> RGB:
    red, green, blue = (min(255, max(0, int(value * factor))) for value in rgb)
    return red, green, blue


def _hill(draw: ImageDraw.ImageDraw, size: tuple[int, int], height: float, fill: RGB, rng: np.random.Generator) -> None:
    """A rolling line and everything below it."""
    width = size[0]
    x = np.linspace(0, width, 24)
    wave = np.sin(x / width * rng.uniform(3, 8) + rng.uniform(0, 6)) * rng.uniform(0.02, 0.06) * size[1]
    points = np.stack([x, height + wave], axis=1).ravel().tolist()
    draw.polygon([*points, width, size[1], 0, size[1]], fill=fill)


def _cloud(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: RGB) -> None:
    for shift_x, shift_y, factor in ((-1.1, 0.25, 0.7), (0.0, -0.1, 1.0), (1.1, 0.2, 0.75), (0.5, 0.35, 0.7)):
        r = radius * factor
        draw.ellipse(
            (
                x + shift_x * radius - r,
                y + shift_y * radius - 0.7 * r,
                x + shift_x * radius + r,
                y + shift_y * radius + 0.7 * r,
            ),
            fill=fill,
        )


def _tufts(draw: ImageDraw.ImageDraw, size: tuple[int, int], top: float, fill: RGB, rng: np.random.Generator) -> None:
    """Blades of grass below `top`."""
    for x, y, lean in zip(
        rng.uniform(0, size[0], 60), rng.uniform(top, size[1], 60), rng.uniform(-6, 6, 60), strict=True
    ):
        draw.line((x, y, x + lean, y - 13), fill=fill, width=3)
        draw.line((x + 4, y, x + 4 - lean, y - 10), fill=fill, width=2)


def _meadow(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    sky = _pick(rng, ((150, 206, 238), (176, 222, 240), (190, 214, 244)))
    canvas = _gradient(size, sky, (250, 240, 218))
    draw = ImageDraw.Draw(canvas)
    horizon = size[1] * float(rng.uniform(0.35, 0.6))
    for _ in range(int(rng.integers(1, 4))):
        _cloud(draw, rng.uniform(0, size[0]), rng.uniform(0.05, 0.8) * horizon, rng.uniform(18, 42), (254, 252, 246))
    green = _pick(rng, ((150, 190, 104), (168, 196, 96), (128, 182, 116)))
    _hill(draw, size, horizon - 0.06 * size[1], _shade(green, 1.12), rng)
    _hill(draw, size, horizon + 0.02 * size[1], green, rng)
    _tufts(draw, size, horizon + 0.12 * size[1], _shade(green, 0.86), rng)
    return canvas


def _evening(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    top = _pick(rng, ((92, 88, 148), (118, 92, 150), (74, 96, 150)))
    canvas = _gradient(size, top, (250, 188, 138))
    draw = ImageDraw.Draw(canvas)
    for x, y in zip(rng.uniform(0, size[0], 22), rng.uniform(0, 0.4 * size[1], 22), strict=True):
        draw.ellipse((x, y, x + 4, y + 4), fill=(250, 240, 214))
    ground = _pick(rng, ((96, 96, 118), (112, 88, 112), (84, 108, 110)))
    horizon = size[1] * float(rng.uniform(0.5, 0.7))
    _hill(draw, size, horizon - 0.07 * size[1], _shade(ground, 1.25), rng)
    _hill(draw, size, horizon, ground, rng)
    return canvas


def _snow(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    canvas = _gradient(size, _pick(rng, ((176, 200, 222), (196, 206, 226))), (236, 238, 240))
    draw = ImageDraw.Draw(canvas)
    horizon = size[1] * float(rng.uniform(0.35, 0.55))
    _hill(draw, size, horizon - 0.06 * size[1], (222, 230, 240), rng)
    _hill(draw, size, horizon + 0.05 * size[1], (242, 244, 246), rng)
    for x, y, r in zip(rng.uniform(0, size[0], 50), rng.uniform(0, size[1], 50), rng.uniform(1.5, 4, 50), strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(254, 254, 254))
    return canvas


def _wallpaper(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    paper = _pick(
        rng, ((238, 220, 190), (214, 226, 214), (236, 208, 204), (206, 216, 232), (244, 230, 176), (222, 208, 226))
    )
    canvas = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(canvas)
    ink, step = _shade(paper, float(rng.choice((0.92, 1.06)))), int(rng.integers(34, 70))
    pattern = int(rng.integers(4))
    for row in range(0, size[1] + step, step):
        for column in range(0, size[0] + step, step):
            if pattern == 0 and row == 0:
                draw.rectangle((column, 0, column + step // 2, size[1]), fill=ink)
            x, y = column + (row // step % 2) * step // 2, row
            if pattern == 1:
                draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=ink)
            if pattern == 2:
                draw.polygon((x, y - 13, x + 9, y, x, y + 13, x - 9, y), fill=ink)
            if pattern == 3:
                draw.arc((x - step // 2, y - step // 2, x + step // 2, y + step // 2), 0, 180, fill=ink, width=4)
    floor = size[1] * float(rng.uniform(0.68, 0.85))
    wood = _pick(rng, ((178, 128, 84), (150, 108, 78), (196, 156, 112)))
    draw.rectangle((0, floor, size[0], size[1]), fill=wood)
    draw.rectangle((0, floor - 14, size[0], floor), fill=(248, 242, 230))
    draw.line((0, floor, size[0], floor), fill=_shade(wood, 0.7), width=3)
    return canvas


def _planks(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    wood = _pick(rng, ((196, 150, 104), (166, 118, 80), (214, 178, 134), (148, 116, 92)))
    canvas = Image.new("RGB", size, wood)
    draw = ImageDraw.Draw(canvas)
    plank, y = int(rng.integers(50, 90)), -int(rng.integers(0, 40))
    while y < size[1]:
        tint = _shade(wood, float(rng.uniform(0.93, 1.07)))
        draw.rectangle((0, y, size[0], y + plank), fill=tint)
        for _ in range(5):
            x0, grain_y = rng.uniform(-60, size[0]), y + rng.uniform(0.1, 0.9) * plank
            draw.line((x0, grain_y, x0 + rng.uniform(60, 260), grain_y + 2), fill=_shade(tint, 0.92), width=2)
        seam = rng.uniform(0, size[0])
        draw.line((seam, y, seam, y + plank), fill=_shade(wood, 0.74), width=3)
        draw.line((0, y, size[0], y), fill=_shade(wood, 0.7), width=3)
        y += plank
    return canvas


def _tablecloth(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    ink = _pick(rng, ((206, 104, 96), (112, 152, 190), (128, 168, 120), (224, 176, 92), (176, 132, 176)))
    cloth, step = (250, 244, 232), int(rng.integers(44, 84))
    light = _mix(ink, cloth, 0.62)
    dark = _mix(ink, cloth, 0.36)
    canvas = Image.new("RGB", size, cloth)
    draw = ImageDraw.Draw(canvas)
    for x in range(0, size[0], step):
        draw.rectangle((x, 0, x + step // 2, size[1]), fill=light)
    for y in range(0, size[1], step):
        draw.rectangle((0, y, size[0], y + step // 2), fill=light)
        for x in range(0, size[0], step):
            draw.rectangle((x, y, x + step // 2, y + step // 2), fill=dark)
    return canvas


def _mix(rgb: RGB, other: RGB, share: float) -> RGB:
    red, green, blue = (int(one * (1 - share) + two * share) for one, two in zip(rgb, other, strict=True))
    return red, green, blue


def _tiles(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    tile = _pick(rng, ((206, 222, 224), (228, 214, 196), (190, 208, 200), (216, 202, 214)))
    canvas = Image.new("RGB", size, _shade(tile, 0.84))
    draw = ImageDraw.Draw(canvas)
    step = int(rng.integers(64, 110))
    for y in range(-step // 3, size[1], step):
        for x in range(-step // 4, size[0], step):
            tint = _shade(tile, float(rng.uniform(0.96, 1.05)))
            draw.rounded_rectangle((x + 3, y + 3, x + step - 3, y + step - 3), 6, fill=tint)
    return canvas


def _lawn(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    green = _pick(rng, ((142, 184, 98), (122, 172, 104), (160, 188, 92)))
    canvas = _gradient(size, _shade(green, 1.08), _shade(green, 0.94))
    draw = ImageDraw.Draw(canvas)
    _tufts(draw, size, 0, _shade(green, 0.88), rng)
    _tufts(draw, size, 0, _shade(green, 1.14), rng)
    petal = _pick(rng, ((252, 250, 240), (250, 222, 110), (244, 190, 206)))
    for x, y in zip(rng.uniform(0, size[0], 14), rng.uniform(0, size[1], 14), strict=True):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=petal)
    return canvas


def _waves(draw: ImageDraw.ImageDraw, size: tuple[int, int], top: float, fill: RGB, rng: np.random.Generator) -> None:
    for x, y in zip(rng.uniform(-20, size[0], 46), rng.uniform(top, size[1], 46), strict=True):
        width = float(rng.uniform(26, 56))
        draw.arc((x, y, x + width, y + 16), 200, 340, fill=fill, width=3)


def _water(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    blue = _pick(rng, ((126, 182, 206), (108, 164, 196), (138, 196, 200)))
    canvas = _gradient(size, _shade(blue, 1.14), _shade(blue, 0.9))
    _waves(ImageDraw.Draw(canvas), size, 0, _shade(blue, 1.24), rng)
    return canvas


def _beach(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    canvas = _gradient(size, (178, 220, 240), (240, 244, 240))
    draw = ImageDraw.Draw(canvas)
    sea = size[1] * float(rng.uniform(0.2, 0.4))
    shore = sea + size[1] * float(rng.uniform(0.12, 0.2))
    blue = _pick(rng, ((96, 160, 190), (112, 178, 190)))
    draw.rectangle((0, sea, size[0], size[1]), fill=blue)
    _hill(draw, size, shore - 8, (246, 246, 238), rng)
    sand = _pick(rng, ((236, 214, 166), (228, 202, 150)))
    _hill(draw, size, shore + 4, sand, rng)
    for x, y in zip(rng.uniform(0, size[0], 80), rng.uniform(shore + 20, size[1], 80), strict=True):
        draw.ellipse((x, y, x + 4, y + 3), fill=_shade(sand, 0.88))
    return canvas


def _paper(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    pale = _pick(rng, ((246, 234, 212), (230, 236, 226), (244, 222, 214), (224, 230, 240), (250, 240, 200)))
    canvas = _gradient(size, _shade(pale, 1.03), _shade(pale, 0.94))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(2, 6))):
        x, y, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(50, 170)
        draw.polygon(_blob(x, y, r, rng), fill=_shade(pale, float(rng.uniform(0.93, 1.04))))
    return canvas


def _blob(x: float, y: float, radius: float, rng: np.random.Generator) -> list[float]:
    angle = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    phase, lobes = rng.uniform(0, 6), int(rng.integers(2, 5))
    r = radius * (1 + 0.16 * np.sin(lobes * angle + phase))
    return list(np.stack([x + r * np.cos(angle), y + 0.8 * r * np.sin(angle)], axis=1).ravel().tolist())


CLUTTER_COLOURS: tuple[RGB, ...] = (
    (170, 160, 148),
    (138, 128, 120),
    (196, 172, 132),
    (150, 166, 120),
    (190, 130, 96),
    (146, 160, 176),
    (214, 190, 160),
    (176, 140, 156),
)


def _scatter_clutter(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Pebbles, leaf-like blobs, triangles, sticks and rings: things with an edge but without a name."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 9))):
        x, y = float(rng.uniform(0, canvas.width)), float(rng.uniform(0.25, 1.0) * canvas.height)
        r, fill = float(rng.uniform(8, 34)), _pick(rng, CLUTTER_COLOURS)
        edge, turn = _shade(fill, 0.78), float(rng.uniform(0, 6.3))
        shape = int(rng.integers(5))
        if shape == 0:
            draw.ellipse((x - r, y - 0.65 * r, x + r, y + 0.65 * r), fill=fill, outline=edge, width=2)
        elif shape == 1:
            draw.polygon(_blob(x, y, r, rng), fill=fill, outline=edge)
        elif shape == 2:
            corners = [value for k in range(3) for value in _on_circle(x, y, r, turn + 2.1 * k)]
            draw.polygon(corners, fill=fill, outline=edge)
        elif shape == 3:
            draw.line((*_on_circle(x, y, r, turn), *_on_circle(x, y, r, turn + math.pi)), fill=edge, width=5)
        else:
            draw.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), outline=edge, width=4)


def _on_circle(x: float, y: float, radius: float, angle: float) -> tuple[float, float]:
    return x + radius * math.cos(angle), y + radius * math.sin(angle)


_PAINTERS: dict[BackgroundKind, Painter] = {
    "meadow": _meadow,
    "wallpaper": _wallpaper,
    "planks": _planks,
    "tablecloth": _tablecloth,
    "tiles": _tiles,
    "lawn": _lawn,
    "water": _water,
    "beach": _beach,
    "paper": _paper,
    "evening": _evening,
    "snow": _snow,
}
