"""`train_mavl`: a proposer from any grounded COCO file, with names left out on demand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from safetensors.torch import load_file

from ovbridge.console import stderr, stdout
from ovbridge.device import default_device
from ovbridge.errors import ConfigError
from ovbridge.teachers.mavl.loop import MavlTrainConfig, TrainingRun
from ovbridge.teachers.mavl.model import Mavl
from ovbridge.teachers.mavl.proposer import load_mavl
from ovbridge.teachers.mavl.quality import proposer_quality
from ovbridge.teachers.mavl.samples import load_grounded, vocabulary_texts
from ovbridge.teachers.mavl.text import add_words, train_tokenizer
from ovbridge.teachers.mavl.weights import read_mavl, save_mavl

DEFAULT_TRAINING = MavlTrainConfig()


def train_mavl(
    annotations: Path,
    images: Path,
    out: Path,
    config: MavlTrainConfig,
    *,
    exclude_roles: Sequence[str] = (),
    init: Path | None = None,
    backbone_init: Path | None = None,
) -> Path:
    """Train a proposer and write it to `out` (safetensors); the same call resumes a run that was cut short.

    `annotations` is a COCO instances file whose categories may carry "role" and "synonyms" and whose annotations may
    carry "phrase"; `images` is its image folder. Images that show an object of an excluded role are not used and its
    names are in no text. `init` starts from another proposer's weights, `backbone_init` from a ResNet's state dict.
    Beside `out`: `<name>.jsonl` with the losses and, while running, `<name>.resume`.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    data = load_grounded(annotations, exclude_roles=exclude_roles)
    stderr.print(f"{len(data.images)} images ({data.dropped} left out), {len(data.nouns)} nouns")
    start = read_mavl(init) if init is not None else None
    architecture = start.config if start else config.model
    size, texts = architecture.text.vocabulary_size, vocabulary_texts(data)
    # The start may have been trained without some of these names: they must not stay <unk>.
    tokenizer = (
        add_words(start.tokenizer, texts, vocabulary_size=size)
        if start
        else train_tokenizer(texts, vocabulary_size=size)
    )
    model = Mavl(architecture)
    if start:
        model.load_state_dict(start.state)
    if backbone_init is not None:
        model.backbone.load_state_dict(load_file(backbone_init))
    fresh = init is None and backbone_init is None
    run = TrainingRun(config, model, data, tokenizer, images, out, pretrain=fresh)
    run.loop()
    trained_on = f"{len(data.images)} grounded images of {annotations.name}, roles {sorted(set(data.roles))}"
    if exclude_roles:
        trained_on += f"; images showing {'/'.join(exclude_roles)} objects left out, their names never shown"
    save_mavl(
        out,
        config=model.config,
        state=model.state_dict(),
        tokenizer=tokenizer,
        trained_on=trained_on,
        half=config.half,
    )
    run.resume_file.unlink(missing_ok=True)
    return out


def mavl(
    data: Path,
    out: Path,
    split: str = "train2017",
    holdout: str | None = "val2017",
    exclude_roles: tuple[str, ...] = (),
    minutes: float | None = None,
    init: Path | None = None,
    train: MavlTrainConfig = DEFAULT_TRAINING,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Train a small text-driven proposer on a COCO-format folder; the same command resumes.

    Args:
        data: folder with annotations/instances_SPLIT.json and the folder SPLIT of images.
        out: the safetensors file to write.
        split: which images to train on.
        holdout: which images to measure recall on; none to skip.
        exclude_roles: leave out every image that shows an object of these roles; its names are in no text.
        minutes: fit the schedule to this much time, instead of to train.steps alone.
        init: start from another proposer's weights.
        train: how to train.
        json_output: print the measures as JSON.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already: give another --out or delete it")
    if minutes is not None:
        train = replace(train, max_seconds=60.0 * minutes)
    folder = data / "annotations"
    train_mavl(folder / f"instances_{split}.json", data / split, out, train, exclude_roles=exclude_roles, init=init)
    if holdout is None:
        return
    proposer = load_mavl(out, default_device())
    quality = proposer_quality(proposer, folder / f"instances_{holdout}.json", data / holdout)
    if json_output:
        stdout.print_json(json.dumps({"out": str(out), "trained_on": proposer.trained_on, "quality": quality}))
        return
    for measure, roles in quality.items():
        stdout.print(f"{measure} (%): {roles}")
