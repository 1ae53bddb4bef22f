"""What stands where in a picture: a scene drawn from one source of randomness, with its truth.

The annotation of a scene follows from the scene alone, so pictures that are already on disk need not be read or
drawn again to write the truth about them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np

from ovbridge.world.nouns import COLOURS, NOUNS, Noun
from ovbridge.world.silhouette import InstanceCanvas, Pose, Silhouette, coco_geometry, outlines, silhouette

Texture = Literal["plain", "striped", "dotted", "checked", "speckled", "two-tone"]
BackgroundKind = Literal[
    "meadow", "wallpaper", "planks", "tablecloth", "tiles", "lawn", "water", "beach", "paper", "evening", "snow"
]
BACKGROUND_KINDS: tuple[BackgroundKind, ...] = (
    "meadow",
    "wallpaper",
    "planks",
    "tablecloth",
    "tiles",
    "lawn",
    "water",
    "beach",
    "paper",
    "evening",
    "snow",
)

SIZES = ((320, 240), (240, 320), (272, 272))
SIZE_ODDS = (0.7, 0.2, 0.1)
COUNT_ODDS = (0.12, 0.18, 0.22, 0.20, 0.14, 0.09, 0.05)
"""How often a picture holds 1, 2, ... 7 objects."""
EMPTY_ODDS = 0.02
CROWD_ODDS = 0.03
TINY_ODDS = 0.05
SAME_NOUN_ODDS = 0.15
"""How often an object repeats the noun of an earlier one."""
UNUSED_WEIGHT = 0.5
"""How often an unused noun is drawn, relative to the others."""

TEXTURES: tuple[Texture, ...] = ("plain", "striped", "dotted", "checked", "speckled", "two-tone")
TEXTURE_ODDS = (0.5, 0.14, 0.11, 0.08, 0.08, 0.09)
SMALLEST_TEXTURED_SIDE = 32.0
"""Picture pixels; on smaller objects a pattern could not be made out."""

MIN_VISIBLE = 0.35
"""The least part of an object that must stay in sight; hidden further, it would be a false truth."""
MIN_INSIDE = 0.7
"""The least part of an object that must lie inside the picture."""
MIN_AREA = 24.0
"""The least visible area in picture pixels."""
PLACING_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colours and pattern of one object."""

    colour: str
    """The main colour's word, a key of COLOURS."""
    main_rgb: tuple[int, int, int]
    """The main colour as painted: the word's colour, varied a little."""
    accent_rgb: tuple[int, int, int]
    """The second colour, of details and of the pattern."""
    texture: Texture
    """Pattern on the main colour."""
    period: float
    """Distance from one stripe, dot or square to the next, in picture pixels."""


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One drawn thing."""

    noun_index: int
    """Position in NOUNS."""
    pose: Pose
    """Where it stands."""
    look: Look
    """How it is painted."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One annotation: a thing, or a crowd of things of one noun."""

    members: tuple[SceneObject, ...]
    """One thing, or the crowd's."""
    is_crowd: bool
    """COCO's `iscrowd`."""
    geometry: dict[str, Any]
    """`bbox`, `area` and `segmentation` of the visible part in picture pixels, as COCO writes them."""

    @property
    def noun_index(self) -> int:
        """Position in NOUNS, which is the category id - 1."""
        return self.members[0].noun_index


@dataclass(frozen=True, kw_only=True)
class Finish:
    """What the camera adds."""

    gain: tuple[float, float, float]
    """Factor on each of red, green and blue."""
    noise: float
    """Standard deviation of the grain in grey levels of 255."""
    blur: float
    """Radius of the blur in picture pixels."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture before it is painted."""

    width: int
    """Picture pixels."""
    height: int
    """Picture pixels."""
    background: BackgroundKind
    """What is behind the objects."""
    instances: tuple[Instance, ...]
    """Back to front, visible ones only."""
    finish: Finish
    """What the camera adds."""
    paint_seed: int
    """Decides the details of the background, the clutter and the grain."""


def compose_scene(rng: np.random.Generator) -> Scene:
    """A picture with several objects, none, or a crowd."""
    width, height = SIZES[rng.choice(len(SIZES), p=SIZE_ODDS)]
    kind = rng.random()
    drafts: list[tuple[SceneObject, ...]] = []
    if kind < CROWD_ODDS:
        drafts.append(_crowd(rng, width, height))
        drafts += [(draft,) for draft in _objects(rng, int(rng.integers(0, 3)))]
    elif kind < 1 - EMPTY_ODDS:
        drafts += [(draft,) for draft in _objects(rng, 1 + int(rng.choice(len(COUNT_ODDS), p=COUNT_ODDS)))]
    return _assemble(rng, width, height, drafts)


def compose_label_scene(rng: np.random.Generator, noun_index: int) -> Scene:
    """A picture of one thing of the given noun, large, perhaps with unused things partly behind it."""
    width, height = ((224, 192), (208, 208), (192, 240), (256, 192))[rng.integers(4)]
    clutter = _objects(rng, int(rng.choice(3, p=(0.8, 0.15, 0.05))), nouns=_indices("unused"), sides=(40.0, 80.0))
    side = min(width, height) * float(rng.uniform(0.4, 0.75))
    spread = 0.3 * (min(width, height) - side)
    centre = (width / 2 + float(rng.uniform(-spread, spread)), height / 2 + float(rng.uniform(-spread, spread)))
    main = SceneObject(
        noun_index=noun_index,
        pose=_pose(rng, noun_index, side, centre),
        look=_look(rng, NOUNS[noun_index], side),
    )
    return _assemble(rng, width, height, [(draft,) for draft in clutter], front=main)


def _assemble(
    rng: np.random.Generator,
    width: int,
    height: int,
    drafts: list[tuple[SceneObject, ...]],
    front: SceneObject | None = None,
) -> Scene:
    """Place the drafts one before the other; a draft that finds no place where enough stays in sight is left out."""
    canvas, placed = InstanceCanvas(width, height), []
    for draft in drafts:
        for _ in range(PLACING_TRIES):
            candidate = draft if len(draft) > 1 else (_moved(rng, draft[0], width, height),)
            if canvas.add(
                [_shape(thing) for thing in candidate],
                min_visible=MIN_VISIBLE,
                min_inside=MIN_INSIDE,
                min_area=MIN_AREA,
            ):
                placed.append(candidate)
                break
    if front is not None:
        canvas.add([_shape(front)], min_visible=0.0, min_inside=0.0, min_area=0.0)
        placed.append((front,))
    instances = []
    for index, members in enumerate(placed):
        mask = canvas.visible(index)
        if mask.any():
            geometry = coco_geometry(mask, is_crowd=len(members) > 1)
            instances.append(Instance(members=members, is_crowd=len(members) > 1, geometry=geometry))
    return Scene(
        width=width,
        height=height,
        background=BACKGROUND_KINDS[rng.integers(len(BACKGROUND_KINDS))],
        instances=tuple(instances),
        finish=_finish(rng),
        paint_seed=int(rng.integers(2**31)),
    )


def _shape(thing: SceneObject) -> Silhouette:
    return silhouette(outlines(thing.noun_index, thing.pose))


@cache
def _indices(role: str) -> tuple[int, ...]:
    """Positions in NOUNS of the nouns of a role."""
    return tuple(index for index, noun in enumerate(NOUNS) if noun.role == role)


@cache
def noun_odds() -> np.ndarray:
    """How often each noun is drawn, [80], summing to 1: within each role mildly long-tailed, at most 3 : 1."""
    weights = np.zeros(len(NOUNS))
    golden_ratio = (math.sqrt(5) - 1) / 2
    for role, factor in (("base", 1.0), ("novel", 1.0), ("unused", UNUSED_WEIGHT)):
        for rank, index in enumerate(_indices(role)):
            # Multiples of the golden ratio fill [0, 1) evenly in a scattered order: no run of rare nouns.
            weights[index] = factor * 3.0 ** ((rank * golden_ratio) % 1.0)
    return np.asarray(weights / weights.sum())


def _objects(
    rng: np.random.Generator,
    count: int,
    *,
    nouns: tuple[int, ...] | None = None,
    sides: tuple[float, float] = (40.0, 150.0),
) -> list[SceneObject]:
    """Things without a place yet, the larger ones mostly first so that they end up behind."""
    drafts: list[SceneObject] = []
    for _ in range(count):
        if drafts and rng.random() < SAME_NOUN_ODDS:
            noun_index = drafts[int(rng.integers(len(drafts)))].noun_index
        elif nouns is not None:
            noun_index = nouns[int(rng.integers(len(nouns)))]
        else:
            noun_index = int(rng.choice(len(NOUNS), p=noun_odds()))
        low, high = (10.0, 24.0) if nouns is None and rng.random() < TINY_ODDS else sides
        side = math.exp(rng.uniform(math.log(low), math.log(high)))
        pose = _pose(rng, noun_index, side, (0.0, 0.0))
        drafts.append(SceneObject(noun_index=noun_index, pose=pose, look=_look(rng, NOUNS[noun_index], side)))
    order = np.argsort([-draft.pose.side * rng.uniform(0.7, 1.3) for draft in drafts])
    return [drafts[int(index)] for index in order]


def _moved(rng: np.random.Generator, thing: SceneObject, width: int, height: int) -> SceneObject:
    """The thing at a random place; now and then the edge of the picture cuts it."""
    margin = thing.pose.side * float(rng.choice((0.5, 0.25), p=(0.85, 0.15)))
    margin_x, margin_y = min(margin, width / 2), min(margin, height / 2)
    centre = (float(rng.uniform(margin_x, width - margin_x)), float(rng.uniform(margin_y, height - margin_y)))
    return replace(thing, pose=replace(thing.pose, centre_xy=centre))


def _crowd(rng: np.random.Generator, width: int, height: int) -> tuple[SceneObject, ...]:
    """8 to 20 small things of one noun close to one another."""
    noun_index = int(rng.choice(len(NOUNS), p=noun_odds()))
    count, side = int(rng.integers(8, 21)), float(rng.uniform(22, 38))
    spread = side * math.sqrt(count) * 0.34
    centre_x = float(rng.uniform(0.35, 0.65)) * width
    centre_y = float(rng.uniform(0.35, 0.65)) * height
    members = []
    for _ in range(count):
        x = min(max(centre_x + float(rng.normal(0, 1.1 * spread)), side / 2), width - side / 2)
        y = min(max(centre_y + float(rng.normal(0, 0.6 * spread)), side / 2), height - side / 2)
        pose = _pose(rng, noun_index, side * float(rng.uniform(0.85, 1.15)), (x, y))
        members.append(SceneObject(noun_index=noun_index, pose=pose, look=_look(rng, NOUNS[noun_index], side)))
    return tuple(sorted(members, key=lambda member: member.pose.centre_xy[1]))


def _pose(rng: np.random.Generator, noun_index: int, side: float, centre_xy: tuple[float, float]) -> Pose:
    upright = rng.random() > (0.3 if NOUNS[noun_index].aspect < 0.5 or NOUNS[noun_index].aspect > 2.0 else 0.05)
    degrees = float(np.clip(rng.normal(0, 9), -20, 20)) if upright else float(rng.uniform(-180, 180))
    return Pose(
        centre_xy=centre_xy,
        side=side,
        angle=math.radians(degrees),
        shear=float(rng.uniform(-0.08, 0.08)),
        stretch=float(rng.uniform(0.92, 1.09)),
        mirrored=bool(rng.random() < 0.5),
    )


def _look(rng: np.random.Generator, noun: Noun, side: float) -> Look:
    colour = noun.palette[int(rng.integers(len(noun.palette)))]
    others = [word for word in COLOURS if word != colour]
    accent = others[int(rng.integers(len(others)))]
    texture = TEXTURES[int(rng.choice(len(TEXTURES), p=TEXTURE_ODDS))]
    return Look(
        colour=colour,
        main_rgb=_varied(rng, COLOURS[colour]),
        accent_rgb=_varied(rng, COLOURS[accent]),
        texture=texture if side >= SMALLEST_TEXTURED_SIDE else "plain",
        period=max(6.0, side * float(rng.uniform(0.11, 0.2))),
    )


def _varied(rng: np.random.Generator, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour a little lighter or darker and a little off: no two reds are the same."""
    values = np.clip(np.asarray(rgb) * rng.uniform(0.92, 1.06) + rng.uniform(-8, 8, size=3), 0, 255)
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def _finish(rng: np.random.Generator) -> Finish:
    light, warmth = float(rng.uniform(0.94, 1.1)), float(rng.uniform(-0.04, 0.04))
    return Finish(
        gain=(light * (1 + warmth), light, light * (1 - warmth)),
        noise=float(rng.uniform(2, 7)) if rng.random() < 0.35 else 0.0,
        blur=float(rng.uniform(0.4, 0.9)) if rng.random() < 0.15 else 0.0,
    )
