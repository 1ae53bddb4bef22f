"""Painting a scene: background, clutter, then the objects back to front, then what the camera adds.

Everything is painted on a canvas of `SUPERSAMPLING` canvas pixels a picture pixel and reduced at the end, which
smooths the edges. Per-object work stays on a patch around the object; nothing but the background touches the whole
canvas.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ovbridge.world.background import paint_background
from ovbridge.world.nouns import NOUNS, Tone
from ovbridge.world.scene import Finish, Look, Scene, SceneObject
from ovbridge.world.silhouette import SUPERSAMPLING, Silhouette, outlines, silhouette

RGB = tuple[int, int, int]

FIXED_TONES: dict[Tone, RGB] = {
    "white": (250, 248, 242),
    "black": (46, 44, 52),
    "glass": (198, 226, 238),
    "wood": (176, 124, 76),
    "metal": (172, 180, 190),
    "skin": (238, 196, 160),
    "green": (98, 158, 82),
}
"""Tones that do not depend on the object's colours."""

SHADOW_RGB = (38, 30, 48)
SHADOW_OPACITY = 0.36
VIGNETTE_RGB = (70, 40, 24)


def render_scene(scene: Scene) -> np.ndarray:
    """The picture, [H, W, 3] uint8 RGB."""
    rng = np.random.default_rng(scene.paint_seed)
    size = (scene.width * SUPERSAMPLING, scene.height * SUPERSAMPLING)
    canvas = paint_background(scene.background, size, rng)
    for instance in scene.instances:
        for thing in instance.members:
            _paint_object(canvas, thing)
    return _finished(canvas.reduce(SUPERSAMPLING), scene.finish, rng)


def _paint_object(canvas: Image.Image, thing: SceneObject) -> None:
    polygons = outlines(thing.noun_index, thing.pose)
    shape = silhouette(polygons)
    side = thing.pose.side * SUPERSAMPLING
    _paint_shadow(canvas, shape, side)
    patch = Image.new("RGB", shape.mask.size)
    draw = ImageDraw.Draw(patch)
    pattern = None if thing.look.texture == "plain" else _pattern(thing, shape)
    corner = np.array([shape.left, shape.top])
    contour_width = 3 if side > 90 else 2
    for part, polygon in zip(NOUNS[thing.noun_index].parts, polygons, strict=True):
        points = (polygon - corner).ravel().tolist()
        rgb = _tone_rgb(part.tone, thing.look)
        if pattern is not None and part.tone == "main":
            stencil = silhouette([polygon])
            left, top = stencil.left - shape.left, stencil.top - shape.top
            cloth = pattern.crop((left, top, left + stencil.mask.width, top + stencil.mask.height))
            patch.paste(cloth, (left, top), stencil.mask)
        else:
            draw.polygon(points, fill=rgb)
        draw.line(points + points[:2], fill=_scaled(rgb, 0.62), width=contour_width)
    patch = ImageChops.multiply(patch, _light().resize(patch.size, Image.Resampling.NEAREST))
    canvas.paste(patch, (shape.left, shape.top), shape.mask)


def _paint_shadow(canvas: Image.Image, shape: Silhouette, side: float) -> None:
    """A soft shadow, down and to the right; painted at a quarter of the canvas' scale, as it is blurred anyway."""
    coarse, margin = 4, 4
    small = shape.mask.reduce(coarse)
    shadow = Image.new("L", (small.width + 2 * margin, small.height + 2 * margin))
    shadow.paste(small, (margin, margin))
    shadow = shadow.filter(ImageFilter.GaussianBlur(min(2.2, 0.8 + side / 120)))
    shadow = shadow.point(_shadow_opacity()).resize(
        (shadow.width * coarse, shadow.height * coarse), Image.Resampling.BILINEAR
    )
    drop = round(2 + side * 0.03)
    place = (shape.left - margin * coarse + drop // 2, shape.top - margin * coarse + drop)
    canvas.paste(SHADOW_RGB, (*place, place[0] + shadow.width, place[1] + shadow.height), shadow)


@lru_cache(maxsize=1)
def _shadow_opacity() -> list[int]:
    return [int(value * SHADOW_OPACITY) for value in range(256)]


@lru_cache(maxsize=1)
def _light() -> Image.Image:
    """A brightness factor that falls from the top left to the bottom right, so that objects look a little round."""
    x, y = np.meshgrid(np.linspace(0, 1, 48), np.linspace(0, 1, 48))
    grey = np.clip(268 - 44 * (0.35 * x + 0.65 * y) ** 1.3, 0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


def _tone_rgb(tone: Tone, look: Look) -> RGB:
    if tone == "main":
        return look.main_rgb
    if tone == "accent":
        return look.accent_rgb
    if tone == "dark":
        return _scaled(look.main_rgb, 0.62)
    if tone == "light":
        return _mixed(look.main_rgb, (255, 255, 255), 0.5)
    return FIXED_TONES[tone]


def _scaled(rgb: RGB, factor: float) -> RGB:
    return int(rgb[0] * factor), int(rgb[1] * factor), int(rgb[2] * factor)


def _mixed(rgb: RGB, other: RGB, share: float) -> RGB:
    red, green, blue = (int(one * (1 - share) + two * share) for one, two in zip(rgb, other, strict=True))
    return red, green, blue


def _pattern(thing: SceneObject, shape: Silhouette) -> Image.Image:
    """The main colour with the object's pattern, the size of the patch; the pattern turns with the object."""
    width, height = shape.mask.size
    look, period = thing.look, thing.look.period * SUPERSAMPLING
    ink = _mixed(look.main_rgb, look.accent_rgb, 0.72)
    if look.texture == "two-tone":
        ramp = Image.linear_gradient("L").resize((width, height))
        return Image.composite(
            Image.new("RGB", (width, height), ink), Image.new("RGB", (width, height), look.main_rgb), ramp
        )
    image = Image.new("RGB", (width, height), look.main_rgb)
    draw = ImageDraw.Draw(image)
    reach = math.hypot(width, height) / 2
    axis = np.array([math.cos(thing.pose.angle), math.sin(thing.pose.angle)])
    normal = np.array([-axis[1], axis[0]])
    middle = np.array([width / 2, height / 2])
    steps = np.arange(-int(reach / period) - 1, int(reach / period) + 2)
    if look.texture in ("striped", "checked"):
        band = max(2, round(period * 0.45))
        directions = ((normal, axis),) if look.texture == "striped" else ((normal, axis), (axis, normal))
        for along, across in directions:
            for step in steps:
                start = middle + across * step * period
                ends = np.concatenate([start - along * reach, start + along * reach])
                draw.line(ends.tolist(), fill=ink, width=band if look.texture == "striped" else max(2, band // 2))
        return image
    speckled = look.texture == "speckled"
    radius = period * (0.12 if speckled else 0.25)
    column, row = (grid.ravel().astype(np.float64) for grid in np.meshgrid(steps, steps))
    if speckled:
        # Moved about by a fixed hash of their place, so that speckles cost no randomness.
        column, row = (
            column + ((row * 37 + column * 91) % 17) / 19 - 0.45,
            row + ((row * 53 + column * 29) % 13) / 14 - 0.45,
        )
    else:
        column = column + 0.5 * (row % 2)
    centres = middle + period * (column[:, None] * axis + row[:, None] * normal)
    for x, y in centres.tolist():
        if -radius < x < width + radius and -radius < y < height + radius:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return image


def _finished(picture: Image.Image, finish: Finish, rng: np.random.Generator) -> np.ndarray:
    """Colour balance, blur and grain."""
    table = np.clip(np.outer(finish.gain, np.arange(256)) + 0.5, 0, 255).astype(int).ravel().tolist()
    picture.paste(VIGNETTE_RGB, (0, 0, *picture.size), _vignette(picture.size))
    picture = picture.point(table)
    if finish.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(finish.blur))
    pixels = np.asarray(picture)
    if not finish.noise:
        return pixels
    return _grainy(pixels, finish.noise, rng)


@lru_cache(maxsize=8)
def _vignette(size: tuple[int, int]) -> Image.Image:
    """Opacity of the darkening towards the corners."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    opacity = np.clip((x**2 + y**2) - 0.8, 0, None) * 34
    return Image.fromarray(opacity.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def _grainy(pixels: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """The same grain on all three channels: the sum of two uniform bytes, near enough to a normal."""
    height, width = pixels.shape[:2]
    raw = np.frombuffer(rng.bytes(2 * height * width), dtype=np.uint8).reshape(2, height, width)
    centred = raw[0].astype(np.int16) + raw[1] - 255
    # The sum of two uniform bytes has a standard deviation of 104.5.
    grain = (centred * np.float32(deviation / 104.5)).astype(np.int16)
    grainy: np.ndarray = np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8)
    return grainy
