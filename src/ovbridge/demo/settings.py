"""What a demo run is, and the folder that belongs to it alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ovbridge.config_tree import first_difference
from ovbridge.errors import ConfigError
from ovbridge.training.stages import STAGES, stage_named

SETTINGS_FILE = "demo.json"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Everything that changes what a demo run computes."""

    seed: int = 0
    """Fixes the world, the new weights and the order of the data."""
    stages: tuple[str, ...] = ("base", "rkd", "rkd_pis_wt")
    """Stages to train and evaluate, in order; each needs the one that it starts from among those before it."""
    train_images: int = 1200
    """Scenes to train on."""
    val_images: int = 300
    """Scenes to evaluate on."""
    image_labels_per_class: int = 40
    """Pictures with one label each, for each base and novel class."""
    proposer: str = "builtin"
    """"builtin" never saw a novel name in training, "builtin-full" saw all; or a weights file."""
    clip: str = "builtin"
    """Teacher of the regions and encoder of the names."""
    beyond: bool = True
    """Whether the last stage has what `recipes.world.BEYOND` adds to the paper; if not, it is as published."""
    effort: float = 1.0
    """Share of the recipes' steps that each stage trains."""
    overrides: tuple[str, ...] = ()
    """Settings of every stage's recipe to change, e.g. "loop.steps=100"."""

    def __post_init__(self) -> None:
        if not 0.0 < self.effort <= 100.0:
            raise ConfigError(f"effort {self.effort:g} is outside 0 to 100: 1 trains the recipes' steps")
        for option, value, least in (
            ("--seed", self.seed, 0),
            ("--train-images", self.train_images, 1),
            ("--val-images", self.val_images, 1),
            ("--image-labels", self.image_labels_per_class, 0),
        ):
            if value < least:
                raise ConfigError(f"{option} is {value}: give at least {least}")
        labelled = [name for name in with_prerequisites(self.stages) if STAGES[name].image_labels]
        if labelled and not self.image_labels_per_class:
            raise ConfigError(f"--image-labels is 0, but stage {labelled[0]} learns from them: give at least 1")


def with_prerequisites(stages: Sequence[str]) -> tuple[str, ...]:
    """The stages asked for and those that they start from, in the order of `STAGES`, the fullest last.

    Raises ConfigError for a name that is no stage.
    """
    wanted: set[str] = set()
    for name in stages:
        stage = stage_named(name)
        while stage.name not in wanted:
            wanted.add(stage.name)
            stage = STAGES.get(stage.init_from, stage)
    if not wanted:
        raise ConfigError(f"no stage given: choose among {', '.join(STAGES)}")
    return tuple(name for name in STAGES if name in wanted)


def claim_folder(out: Path, settings: DemoSettings) -> None:
    """Make `out` the folder of this demo run, or find that it is.

    Raises ConfigError, with nothing written, if it holds another run or foreign files.
    """
    mark = out / SETTINGS_FILE
    wanted = json.loads(json.dumps(asdict(settings)))
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: choose a folder for --out")
    if out.is_dir() and not mark.exists():
        foreign = sorted(path.name for path in out.iterdir() if path.name != mark.name + ".part")
        if foreign:
            raise ConfigError(f"{out} holds files that are no demo run ({foreign[0]}): choose an empty --out")
    if mark.exists():
        difference = first_difference(wanted, _read(mark))
        if difference:
            raise ConfigError(
                f"{out} holds another demo run; asked for and found there: {difference}. Choose another --out"
            )
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside = mark.with_name(mark.name + ".part")
        aside.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        aside.replace(mark)
    except OSError as error:
        raise ConfigError(f"cannot write to {out} ({error.strerror}): choose another --out") from None


def _read(mark: Path) -> Any:
    try:
        return json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{mark} is not the record of a demo run: choose another --out") from None
