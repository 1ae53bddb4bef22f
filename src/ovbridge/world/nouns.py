"""The 80 everyday nouns of the built-in world: names, roles, colours and drawings.

The split mirrors OV-COCO: 48 base classes, 17 novel ones and 15 that are never labelled. The order is the
order of category ids, so roles and supercategories are interleaved as they are in COCO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ovbridge.world.outlines.animals import ANIMALS
from ovbridge.world.outlines.home import CLOTHING, ELECTRONICS, FURNITURE
from ovbridge.world.outlines.kitchen import FOOD, KITCHEN
from ovbridge.world.outlines.outdoors import OUTDOOR, PLANTS, TOYS
from ovbridge.world.outlines.shapes import Drawing, Part, Tone, bounds
from ovbridge.world.outlines.tools import INSTRUMENTS, TOOLS
from ovbridge.world.outlines.vehicles import VEHICLES

__all__ = ["COLOURS", "NOUNS", "Noun", "NounRole", "Part", "Tone"]

NounRole = Literal["base", "novel", "unused"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 44, 46),
    "orange": (240, 132, 36),
    "yellow": (246, 208, 58),
    "green": (74, 160, 66),
    "teal": (28, 166, 158),
    "blue": (48, 120, 214),
    "navy": (32, 48, 110),
    "purple": (132, 66, 170),
    "pink": (244, 140, 178),
    "brown": (132, 82, 46),
    "grey": (136, 140, 146),
    "white": (244, 244, 240),
    "black": (38, 38, 44),
    "beige": (222, 198, 158),
}
"""Colour words and their RGB, each the centre of what an instance may show."""


@dataclass(frozen=True, kw_only=True)
class Noun:
    """One class of the built-in world."""

    name: str
    """Singular, lower case; the category name in the files."""
    synonyms: tuple[str, ...]
    """Other words that captions use; none belongs to, or stands as a word inside, another noun."""
    role: NounRole
    """Whether the class is labelled for training (base), for evaluation only (novel) or never (unused)."""
    supercategory: str
    """The family of the noun; each family has members of every role."""
    parts: tuple[Part, ...]
    """Polygons back to front; the whole drawing is centred and its longer side spans [-1, 1], y down."""
    palette: tuple[str, ...]
    """Colour words that "main" may take."""
    aspect: float
    """Width over height of the box around all parts."""


_DRAWINGS: dict[str, Drawing] = {
    **ANIMALS,
    **VEHICLES,
    **TOOLS,
    **INSTRUMENTS,
    **KITCHEN,
    **FOOD,
    **FURNITURE,
    **CLOTHING,
    **ELECTRONICS,
    **PLANTS,
    **TOYS,
    **OUTDOOR,
}

_TABLE: tuple[tuple[str, NounRole, str, str, tuple[str, ...]], ...] = (
    # name, role, supercategory, palette, synonyms
    ("cat", "base", "animal", "orange grey black brown beige", ("kitten",)),
    ("giraffe", "novel", "animal", "yellow orange beige", ()),
    ("car", "base", "vehicle", "red blue green grey yellow", ("automobile", "sedan")),
    ("octopus", "unused", "animal", "purple pink red orange teal", ("squid",)),
    ("hammer", "base", "tool", "red blue orange yellow black", ("mallet",)),
    ("banana", "base", "food", "yellow green", ()),
    ("airplane", "novel", "vehicle", "grey blue red navy orange", ("plane", "jet")),
    ("mug", "base", "kitchen", "red blue teal yellow white", ("cup",)),
    ("knife", "unused", "kitchen", "black brown red blue", ()),
    ("hat", "base", "clothing", "brown black grey beige red", ("fedora",)),
    ("chair", "base", "furniture", "brown red blue white green", ("seat",)),
    ("scissors", "novel", "tool", "red blue orange green purple", ("shears",)),
    ("guitar", "base", "instrument", "brown orange red blue beige", ("ukulele",)),
    ("sock", "unused", "clothing", "red blue green grey pink", ("stocking",)),
    ("kite", "base", "toy", "red blue yellow purple green", ()),
    ("cactus", "base", "plant", "green teal", ()),
    ("pizza", "novel", "food", "yellow orange beige", ("pizza slice",)),
    ("camera", "base", "electronics", "black grey red blue beige", ()),
    ("hot air balloon", "unused", "vehicle", "red blue yellow purple orange", ("balloon",)),
    ("umbrella", "base", "outdoor", "red blue yellow purple green", ("parasol",)),
    ("fish", "base", "animal", "orange blue yellow teal purple", ()),
    ("duck", "novel", "animal", "yellow white brown green", ("mallard",)),
    ("bicycle", "base", "vehicle", "red blue green purple orange", ("bike",)),
    ("magnet", "unused", "tool", "red blue green purple", ()),
    ("saw", "base", "tool", "orange red blue green brown", ("handsaw",)),
    ("pineapple", "base", "food", "yellow orange beige", ()),
    ("teapot", "novel", "kitchen", "white blue red teal pink", ("kettle",)),
    ("elephant", "base", "animal", "grey beige pink blue", ()),
    ("bottle", "base", "kitchen", "green brown blue teal red", ("flask",)),
    ("grapes", "unused", "food", "purple green navy pink", ()),
    ("bed", "novel", "furniture", "blue red teal pink purple", ()),
    ("shirt", "base", "clothing", "red blue green yellow purple", ("tee",)),
    ("snail", "base", "animal", "orange brown purple teal yellow", ()),
    ("sailboat", "base", "vehicle", "blue red navy brown green", ("yacht",)),
    ("bathtub", "unused", "furniture", "white teal pink blue", ("tub",)),
    ("glove", "novel", "clothing", "red blue brown green purple", ("mitten",)),
    ("wrench", "base", "tool", "red blue yellow green orange", ("spanner",)),
    ("carrot", "base", "food", "orange purple yellow", ()),
    ("lamp", "base", "furniture", "yellow beige pink teal orange", ()),
    ("trumpet", "novel", "instrument", "yellow orange brown", ("bugle",)),
    ("xylophone", "unused", "instrument", "red blue orange purple", ("marimba",)),
    ("drum", "base", "instrument", "red blue green purple", ()),
    ("dice", "base", "toy", "red blue green black purple", ()),
    ("tree", "base", "plant", "green teal orange yellow red", ()),
    ("teddy bear", "novel", "toy", "brown beige pink grey orange", ("stuffed bear",)),
    ("skateboard", "unused", "toy", "red blue purple orange green", ("longboard",)),
    ("clock", "base", "electronics", "red blue green yellow teal", ()),
    ("windmill", "base", "outdoor", "white beige brown red grey", ()),
    ("fork", "base", "kitchen", "blue red green purple pink", ()),
    ("mushroom", "novel", "plant", "red brown orange purple", ("toadstool",)),
    ("leaf", "unused", "plant", "red orange green yellow brown", ()),
    ("butterfly", "base", "animal", "orange blue yellow purple pink", ("moth",)),
    ("jeans", "base", "clothing", "blue navy grey black", ("trousers", "pants")),
    ("laptop", "novel", "electronics", "grey black blue pink", ("notebook",)),
    ("rocket", "base", "vehicle", "white red grey blue orange", ("spaceship",)),
    ("ladder", "base", "tool", "orange yellow brown grey red", ("stepladder",)),
    ("telephone", "unused", "electronics", "red black green beige blue", ("phone",)),
    ("ice cream", "base", "food", "pink beige white brown teal", ("gelato",)),
    ("lighthouse", "novel", "outdoor", "red blue navy black", ()),
    ("penguin", "base", "animal", "navy grey black blue", ()),
    ("bookcase", "base", "furniture", "brown white beige grey navy", ("bookshelf",)),
    ("tent", "unused", "outdoor", "orange green blue red yellow", ()),
    ("bell", "base", "instrument", "yellow orange grey brown", ()),
    ("bus", "novel", "vehicle", "yellow red blue green", ("coach",)),
    ("snowman", "base", "toy", "red blue green orange purple", ()),
    ("tulip", "base", "plant", "red pink yellow purple orange", ("flower",)),
    ("spider", "unused", "animal", "black brown grey purple", ("tarantula",)),
    ("television", "base", "electronics", "brown red orange grey teal", ("tv",)),
    ("axe", "novel", "tool", "red navy grey orange black", ("hatchet",)),
    ("traffic light", "base", "outdoor", "black yellow grey navy", ("stoplight",)),
    ("frying pan", "base", "kitchen", "black grey red blue", ("skillet",)),
    ("wine glass", "unused", "kitchen", "red pink yellow purple", ("goblet",)),
    ("sunglasses", "base", "clothing", "red blue white orange pink", ("shades",)),
    ("apple", "novel", "food", "red green yellow", ()),
    ("tractor", "base", "vehicle", "green red yellow blue", ()),
    ("key", "base", "tool", "yellow brown grey orange", ()),
    ("crown", "unused", "clothing", "yellow grey orange", ("tiara",)),
    ("hamburger", "base", "food", "beige brown orange", ("burger", "cheeseburger")),
    ("turtle", "novel", "animal", "brown teal orange navy", ("tortoise",)),
    ("crab", "base", "animal", "red orange purple blue", ()),
)


def _noun(name: str, role: NounRole, supercategory: str, palette: str, synonyms: tuple[str, ...]) -> Noun:
    parts = _DRAWINGS[name]
    x0, y0, x1, y1 = bounds(parts)
    return Noun(
        name=name,
        synonyms=synonyms,
        role=role,
        supercategory=supercategory,
        parts=parts,
        palette=tuple(palette.split()),
        aspect=round((x1 - x0) / (y1 - y0), 3),
    )


NOUNS: tuple[Noun, ...] = tuple(_noun(*row) for row in _TABLE)
"""All nouns in the order of their category ids (the first has id 1)."""
