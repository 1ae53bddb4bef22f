"""The built-in world as a data set to train on: painted, and split as `ovbridge prepare coco-ovd` splits COCO."""

from __future__ import annotations

import os
from pathlib import Path

from ovbridge.console import Ticker
from ovbridge.data.ovd_files import write_coco_ovd
from ovbridge.world.nouns import NOUNS
from ovbridge.world.write import write_world


def paint_ovd_world(out: Path, *, train: int, val: int, image_labels_per_class: int, seed: int) -> None:
    """Paint a world into `out`, or finish it, and write its open-vocabulary files beside its annotations."""
    labelled = sum(noun.role != "unused" for noun in NOUNS) * image_labels_per_class
    with Ticker("paint", train + val + labelled) as tick:
        write_world(
            out,
            train=train,
            val=val,
            seed=seed,
            image_labels_per_class=image_labels_per_class,
            on_image=tick,
            workers=min(os.cpu_count() or 1, 8),
        )
    write_coco_ovd(out / "annotations", out / "annotations")
