"""Every recipe by the name that the command line knows it by: the name of its function."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from ovbridge.errors import ConfigError
from ovbridge.recipes import coco, lvis, world
from ovbridge.run_config import RunConfig
from ovbridge.training.stages import stage_named

_FAMILIES = ("world", "coco", "lvis")

RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        world.world_base,
        world.world_rkd,
        world.world_pis,
        world.world_rkd_pis,
        world.world_rkd_pis_wt,
        coco.coco_base,
        coco.coco_rkd,
        coco.coco_pis,
        coco.coco_rkd_pis,
        coco.coco_rkd_pis_wt,
        coco.coco_rkd_pis_wt_8x,
        lvis.lvis_base,
        lvis.lvis_rkd,
        lvis.lvis_pis,
        lvis.lvis_rkd_pis,
        lvis.lvis_rkd_pis_wt,
        lvis.lvis_rkd_pis_wt_8x,
    )
}


def recipe_named(name: str, stage: str | None = None) -> RunConfig:
    """The recipe `name` ("coco_rkd"), or of the family `name` that of `stage` ("coco", "rkd").

    Raises ConfigError listing the known ones.
    """
    wanted = name.replace("-", "_")
    if stage is not None:
        if wanted not in _FAMILIES:
            raise ConfigError(f"--stage goes with one of {', '.join(_FAMILIES)}, not with {name!r}")
        if f"{wanted}_{stage}" not in RECIPES:
            stage_named(stage)
        wanted = f"{wanted}_{stage}"
    if wanted in RECIPES:
        return RECIPES[wanted]()
    if wanted in _FAMILIES:
        raise ConfigError(f"{name!r} has several stages: add --stage base, or another")
    for family in _FAMILIES:
        if wanted.startswith(family + "_"):
            stage_named(wanted.removeprefix(family + "_"))
    near = difflib.get_close_matches(wanted, RECIPES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"there is no recipe {name!r}: {hint}Known recipes: {', '.join(RECIPES)}, clip, mavl")
