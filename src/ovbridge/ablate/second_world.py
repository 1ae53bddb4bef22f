"""A second built-in world to transfer to: other scenes, drawn otherwise, under other names.

The pictures are scenes of another seed with their hues turned by half a circle and their outlines drawn in ink; a class
goes by its first synonym where it has one that no other class uses.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from PIL import Image, ImageChops, ImageFilter, ImageOps

from ovbridge.ablate.settings import WorldSettings
from ovbridge.console import track
from ovbridge.data.ovd_files import write_once
from ovbridge.world.write import JPEG_QUALITY, write_world

SEED_STEP = 5_000
"""Added to the world's seed, so that no scene of the first world is in the second."""
HUE_TURN = 128
"""Of 256."""


def write_second_world(out: Path, world: WorldSettings) -> tuple[Path, Path]:
    """Write it under `out` unless it is there; returns its annotation file and its folder of images."""
    annotations, images = out / "second_val.json", out / "images"
    if annotations.exists():
        return annotations, images
    plain = out / "plain"
    write_world(plain, train=0, val=world.val_images, seed=world.seed + SEED_STEP, image_labels_per_class=0)
    images.mkdir(exist_ok=True)
    paths = sorted((plain / "val2017").glob("*.jpg"))
    for path in track(paths, "redraw", len(paths)):
        if not (images / path.name).exists():
            aside = images / f"{path.stem}.part"
            with Image.open(path) as picture:
                redrawn(picture.convert("RGB")).save(aside, format="JPEG", quality=JPEG_QUALITY)
            aside.replace(images / path.name)
    content = json.loads((plain / "annotations" / "instances_val2017.json").read_text())
    names = other_names([(c["name"], c.get("synonyms", ())) for c in content["categories"]])
    for category in content["categories"]:
        category["name"] = names[category["name"]]
        category.pop("synonyms", None)
    write_once(annotations, content)
    return annotations, images


def redrawn(picture: Image.Image) -> Image.Image:
    """The picture with turned hues and inked outlines."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = Image.merge("HSV", (hue.point([(h + HUE_TURN) % 256 for h in range(256)]), saturation, value))
    ink = ImageOps.invert(picture.convert("L").filter(ImageFilter.FIND_EDGES)).convert("RGB")
    return ImageChops.multiply(turned.convert("RGB"), ink)


def other_names(classes: list[tuple[str, tuple[str, ...] | list[str]]]) -> dict[str, str]:
    """Class name → its first synonym that is neither its name nor anybody else's; else its name."""
    used = Counter(word for name, synonyms in classes for word in {name, *synonyms})
    return {name: next((s for s in synonyms if s != name and used[s] == 1), name) for name, synonyms in classes}
