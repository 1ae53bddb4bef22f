"""`ovbridge world`: write the built-in world to disk."""

from __future__ import annotations

import dataclasses
import json as json_format
import os
from collections.abc import Sequence
from pathlib import Path

from ovbridge.cli.arguments import call

EXAMPLES = """\
ovbridge world --out data/world --train 1200 --val 300 --seed 0
ovbridge world --out /tmp/small --train 24 --val 8 --image-labels 2 --json"""


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    call(world, argv, verb="world", examples=EXAMPLES)


def world(
    *, out: Path, train: int = 1200, val: int = 300, seed: int = 0, image_labels: int = 20, json: bool = False
) -> None:
    """Write the built-in world: pictures, COCO annotations, captions and image-label folders.

    The same seed gives the same bytes. An interrupted command goes on where it stopped when it is given again.

    Args:
        out: Folder to write to; new, empty, or the same world unfinished.
        train: Pictures in train2017.
        val: Pictures in val2017.
        seed: Number of the world.
        image_labels: Pictures for each class in image_labels/NAME.
        json: Print the result as JSON.
    """
    from ovbridge.console import Ticker, stdout
    from ovbridge.world.nouns import NOUNS
    from ovbridge.world.write import write_world

    labelled = sum(noun.role != "unused" for noun in NOUNS) * image_labels
    with Ticker("painting", train + val + labelled) as tick:
        summary = write_world(
            out,
            train=train,
            val=val,
            seed=seed,
            image_labels_per_class=image_labels,
            on_image=tick,
            workers=min(os.cpu_count() or 1, 8),
        )
    if json:
        print(json_format.dumps({"out": str(out), **dataclasses.asdict(summary)}))
        return
    for split, images, boxes in (
        ("train2017", summary.train_images, summary.train_boxes),
        ("val2017", summary.val_images, summary.val_boxes),
    ):
        roles = ", ".join(f"{count} {role}" for role, count in boxes.items())
        stdout.print(f"{split}: {images} images, {sum(boxes.values())} boxes ({roles})")
    stdout.print(f"image_labels: {summary.label_images} images")
    stdout.print(f"written to {out}", soft_wrap=True)
