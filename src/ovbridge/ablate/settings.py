"""What an ablation folder is about: everything that its runs share. Suites and seeds may be added to it later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ovbridge.ablate.suite import Family
from ovbridge.config_tree import first_difference, to_json
from ovbridge.errors import ConfigError

SETTINGS_FILE = "ablate.json"


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """The built-in world that an ablation at small scale runs in."""

    train_images: int = 1200
    """Scenes to train on."""
    val_images: int = 300
    """Scenes to evaluate on."""
    image_labels_per_class: int = 40
    """Pictures with one label each, for each base and novel class."""
    seed: int = 0
    """Of the pictures; the seeds of the runs are those of training."""


@dataclass(frozen=True, kw_only=True)
class AblateSettings:
    """One ablation folder."""

    family: Family = "world"
    """Whose recipes."""
    world: WorldSettings = WorldSettings()
    """Only for the family "world"."""
    proposer: str = "builtin"
    """Who proposes, where labels have to be made: as `ovbridge label --proposer`."""
    clip: str = "builtin"
    """Who embeds crops and names, where that has to be done."""
    data: str = ""
    """Data folder of a full-scale family; its recipe's paths start there."""
    store: str = ""
    """Label store of a full-scale family."""
    val_annotations: str = ""
    """What to evaluate on; empty takes the family's own."""
    val_images: str = ""
    """Their images; empty takes the family's own."""
    second_annotations: str = ""
    """Another data set to evaluate on (suite cross), for a full-scale family."""
    second_images: str = ""
    """Its images."""
    strict_data: str = ""
    """Folder that `ovbridge prepare strict` wrote, for a full-scale family."""
    strict_store: str = ""
    """Label store of these images."""
    overrides: tuple[str, ...] = ()
    """Settings of every recipe to change, before those of the single runs."""


def claim(out: Path, settings: AblateSettings) -> None:
    """Make `out` the folder of this ablation, or find that it is; raises ConfigError if it is anything else."""
    mark, wanted = out / SETTINGS_FILE, json.loads(json.dumps(to_json(settings)))
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: choose a folder for --out")
    if mark.exists():
        try:
            here = json.loads(mark.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(f"{mark} is not the record of an ablation: choose another --out") from None
        difference = first_difference(wanted, here)
        if difference:
            raise ConfigError(f"{out} holds another ablation; asked for and found there: {difference}. Choose another")
        return
    foreign = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    if foreign:
        raise ConfigError(f"{out} holds files that are no ablation ({foreign[0]}): choose an empty --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside = mark.with_name(mark.name + ".part")
        aside.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        aside.replace(mark)
    except OSError as error:
        raise ConfigError(f"cannot write to {out} ({error.strerror}): choose another --out") from None
