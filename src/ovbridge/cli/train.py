"""`ovbridge train RECIPE`: one stage of training; the same command resumes."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from ovbridge.cli.arguments import call
from ovbridge.errors import ConfigError

EXAMPLES = """
ovbridge train world_base --data runs/world --store runs/labels --out runs/base
ovbridge train world_rkd --data runs/world --store runs/labels --init runs/base/detector.safetensors --out runs/rkd
ovbridge train coco --stage rkd_pis_wt --data coco --init rkd.safetensors --out runs/wt --set loop.steps=1000
ovbridge train world_base --data runs/world --store runs/labels --out runs/base --dry-run
torchrun --nproc-per-node 8 -m ovbridge.cli.main train coco_base --data coco --init r50.safetensors --out runs/base
ovbridge train finetune --data mine.json --images photos --checkpoint detector.safetensors --out runs/mine
ovbridge train clip --help
ovbridge train mavl --help
"""

STARTING_POINTS = {
    "clip": ("ovbridge.teachers.train_clip", "--data worlds/teachers --out clip.safetensors --train.steps 1000"),
    "mavl": ("ovbridge.teachers.mavl.train", "--data worlds/teachers --minutes 45 --out mavl.safetensors"),
    "backbone": ("ovbridge.training.pretrain", "--data worlds/teachers --steps 5000 --out backbone.safetensors"),
}
"""What the built-in world starts from: modules whose function of that name trains it, and an example of its options."""


def run(argv: Sequence[str]) -> None:
    """Parse the words after `ovbridge train` and train."""
    what = argv[0] if argv else ""
    if what == "finetune":
        importlib.import_module("ovbridge.cli.finetune").run(list(argv[1:]))
        return
    if what in STARTING_POINTS:
        module, example = STARTING_POINTS[what]
        function = getattr(importlib.import_module(module), what)
        call(function, argv[1:], verb=f"train {what}", examples=f"ovbridge train {what} {example}")
        return
    call(train, argv, verb="train", examples=EXAMPLES)


def train(
    recipe: Annotated[str, tyro.conf.Positional],
    /,
    *,
    out: Path | None = None,
    stage: str | None = None,
    data: Path | None = None,
    store: Path | None = None,
    init: Path | None = None,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="A.B=C ...")] = (),
    seed: int | None = None,
    profile: int = 0,
    dry_run: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Train one stage of a recipe; repeat the same command to resume.

    Args:
        recipe: world_base, world_rkd, ..., coco_..., lvis_..., or one of world, coco, lvis with --stage; clip, mavl,
            backbone, finetune.
        out: Folder of the run: config.json, log.jsonl, tensorboard/, checkpoints/, detector.safetensors. Only --dry-run
            may do without.
        stage: base, rkd, pis, rkd_pis or rkd_pis_wt, where the recipe does not say it.
        data: Folder that the recipe's data paths are relative to.
        store: Label store.
        init: Checkpoint to start from.
        set: Overrides of single settings, such as loop.steps=1000 optim.learning_rate=0.01 data.images=photos.
        seed: Seed of everything random.
        profile: Write a profile of so many steps into the run's folder.
        dry_run: Print the whole run and which of its inputs exist, check them, but train nothing.
        as_json: Print the result as JSON.
    """
    from ovbridge.config_tree import apply_overrides, to_json
    from ovbridge.recipes import recipe_named

    config = recipe_named(recipe, stage)
    paths = config.data
    if data is not None:
        paths = replace(paths, root=str(data.absolute()))
    if store is not None:
        paths = replace(paths, store=str(store.absolute()))
    config = replace(config, data=paths, init=str(init.absolute()) if init else config.init)
    config = apply_overrides(config if seed is None else replace(config, seed=seed), set)
    if profile:
        config = replace(config, loop=replace(config.loop, profile_steps=profile))
    from ovbridge.train_run import inputs_there, plan_run, train_run
    from ovbridge.training.ranks import ranks_of

    if dry_run:
        resolved = {"config": to_json(config), "inputs": inputs_there(config)}
        try:
            resolved |= plan_run(config, out)
        finally:  # What is missing is said below what was asked for.
            print(json.dumps(resolved, indent=2), flush=True)
        return
    if out is None:
        raise ConfigError("--out is required: the folder of the run, such as --out runs/base")
    checkpoint = train_run(config, out)
    if not ranks_of(os.environ)[0].is_first:
        return
    if as_json:
        print(json.dumps({"checkpoint": str(checkpoint), "stage": config.stage.name, "steps": config.loop.steps}))
    else:
        print(f"{checkpoint}", file=sys.stdout)
