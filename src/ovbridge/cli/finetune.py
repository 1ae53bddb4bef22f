"""`ovbridge train finetune`: new classes from a few boxes, without forgetting the old ones."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path

from ovbridge.cli.arguments import call
from ovbridge.errors import ConfigError

EXAMPLES = """\
ovbridge train finetune --data mine.json --images photos --checkpoint detector.safetensors --out runs/mine
ovbridge train finetune --data mine.json --images photos --checkpoint detector.safetensors --out runs/mine --holdout annotations/instances_val2017.json --holdout-images val2017 --max-drop 2 --wise 0.5"""  # noqa: E501 - commands to copy


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    call(finetune, argv, verb="train finetune", examples=EXAMPLES)


def finetune(
    *,
    data: Path,
    images: Path,
    checkpoint: str = "builtin",
    out: Path,
    holdout: Path | None = None,
    holdout_images: Path | None = None,
    max_drop: float | None = None,
    wise: float = 1.0,
    naive: bool = False,
    steps: int = 400,
    versions: int = 50,
    batch: int = 8,
    learning_rate: float = 2e-3,
    trunk_learning_rate: float = 1.2e-3,
    anchor: float = 1.5,
    name_anchor: float = 12.0,
    distillation: float = 1.0,
    proposer: str = "builtin",
    clip: str = "",
    seed: int = 0,
    json: bool = False,
) -> None:
    """Teach a trained detector the classes of a COCO-format file; repeat the same command to resume.

    Args:
        data: Your boxes: COCO-format JSON, any classes, a few images.
        images: Folder of your images.
        checkpoint: Detector to start from: a file, a run's folder, hf://owner/name, or builtin.
        out: Folder of the run; ends in detector.safetensors and finetune.json.
        holdout: COCO-format JSON with boxes of the old vocabulary, to see what is forgotten.
        holdout_images: Folder of its images.
        max_drop: Points of AP50 that the held-out vocabulary may lose; more fails the run.
        wise: Share of the tuned weights in the result, the rest being the checkpoint's (WiSE-FT).
        naive: Without any anchor, for comparison.
        steps: Optimiser steps.
        versions: Versions of each of your images to learn from, resized, flipped and recoloured; more take longer.
        batch: Images a step.
        learning_rate: Peak learning rate of your classes' text rows and of the projection.
        trunk_learning_rate: Peak learning rate of the region trunk; 0 leaves it as it is.
        anchor: Factor on what holds embeddings and boxes as they were, on all regions but your objects.
        name_anchor: Factor on what holds the scores of all other names there.
        distillation: Factor on the distillation from the image encoder, on regions of your images.
        proposer: Teacher that finds regions in your images: builtin, builtin-full, or a weights file.
        clip: Teacher that embeds them; by default the one that the checkpoint names.
        seed: Seed of everything random.
        json: Print the figures as JSON.
    """
    from ovbridge.finetune.run import FinetuneConfig, Holdout, print_figures
    from ovbridge.finetune.run import finetune as tune
    from ovbridge.inference.sources import checkpoint_path

    if (holdout is None) != (holdout_images is None):
        raise ConfigError("--holdout and --holdout-images go together: the JSON and the folder of its images")
    if max_drop is not None and holdout is None:
        raise ConfigError("--max-drop needs --holdout JSON and --holdout-images DIR to measure on")
    for option, path in (("--data", data), ("--images", images)):
        if not path.exists():
            raise ConfigError(f"{option} {path} does not exist")
    held = None
    if holdout is not None and holdout_images is not None:
        held = Holdout(annotations=holdout, images=holdout_images, max_drop=max_drop)
    config = FinetuneConfig(
        steps=steps, versions=versions, batch=batch, learning_rate=learning_rate,
        trunk_learning_rate=trunk_learning_rate, wise=wise, naive=naive, anchor=anchor, name_anchor=name_anchor,
        distillation=distillation, proposer=proposer, clip=clip, seed=seed,
    )  # fmt: skip
    figures = tune(checkpoint_path(checkpoint), data, images, out, config=config, holdout=held)
    print_figures(figures)
    print(json_format.dumps(figures) if json else figures["detector"])
