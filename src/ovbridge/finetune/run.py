"""Fine-tuning from a checkpoint and a COCO file: label, tune, compare before and after."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovbridge import __version__
from ovbridge.console import stderr
from ovbridge.data.annotation_check import image_file_name
from ovbridge.data.transforms import PhotometricJitter, TrainTransform
from ovbridge.detector import DetectorMetadata, TwoStageDetector, load_detector, save_detector
from ovbridge.device import default_device
from ovbridge.errors import ConfigError, OVBridgeError
from ovbridge.finetune.anchored import FROZEN, AnchoredLosses, FineTunedDetector, HeadAnchor, interpolate
from ovbridge.finetune.classes import UserClasses, merge_classes, metadata_of, write_annotations
from ovbridge.images import resized_size
from ovbridge.inference import PAPER_SIZE, Detector, TextEncoder
from ovbridge.training.batches import BatchConfig, build_batches
from ovbridge.training.inputs import DataConfig, TrainingInputs, fingerprint, open_inputs
from ovbridge.training.loop import LoopConfig, LossFunction, TrainingParts, train
from ovbridge.training.loss_weights import LossWeights
from ovbridge.training.objectives import detection_losses
from ovbridge.training.optim import OptimConfig, build_optimizer
from ovbridge.training.prefetch import Batch
from ovbridge.training.run_folder import RESULT_FILE, claimed_run
from ovbridge.training.stages import Stage, freeze, set_training_mode
from ovbridge.validation import evaluate_model

RECORD_FILE = "finetune.json"
REJECTED_FILE = "rejected.safetensors"
FORMAT = "ovbridge-finetune-1"
SCALES = (0.6, 0.75, 0.87, 1.0, 1.15, 1.3, 1.6)
"""Sizes of an image's versions, against the one that the detector is used at."""
JITTER = PhotometricJitter(brightness=0.4, contrast=0.4, saturation=0.4)
"""Colours of an image's versions."""


class ForgettingError(OVBridgeError):
    """A fine-tuned detector lost more on the held-out vocabulary than was allowed."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a detector learns new classes."""

    steps: int = 400
    """Optimiser steps."""
    versions: int = 50
    """Versions of every image that it learns from, each resized, flipped and recoloured at random; what is frozen is
    computed once a version. Naive tuning makes a new one every time."""
    batch: int = 8
    """Images a step."""
    learning_rate: float = 2e-3
    """Of the text rows of the user's classes and of the projection: peak of the cosine schedule of AdamW."""
    trunk_learning_rate: float = 1.2e-3
    """Of the region trunk. Without the anchors, anything above a few hundredths of this forgets the other names."""
    anchor: float = 1.5
    """Factor on the distance between the head and itself before the tuning, on all regions of your images that are none
    of your objects: embeddings and box deltas stay, whatever trunk and projection learn. 0 leaves it out."""
    name_anchor: float = 12.0
    """Factor on the divergence of all other names' scores from those before the tuning, on the same regions. It holds
    less of the embeddings than `anchor`, which leaves more of them to the new classes."""
    anchor_regions: int = 32
    """Proposals an image that the anchors compare, and half as many boxes anywhere."""
    naive_learning_rate: float = 5e-4
    """Of everything, where `naive`: that of the later training stages."""
    wise: float = 1.0
    """Share of the tuned weights in the result, against those of the checkpoint (WiSE-FT); 1 keeps them as tuned."""
    naive: bool = False
    """No anchor at all, for comparison: everything learns, and whatever the user did not box is background to every
    class."""
    distillation: float = 1.0
    """Factor on the distillation losses from the image encoder."""
    proposer: str = "builtin"
    """Teacher whose regions are distilled on the user's images."""
    clip: str = ""
    """Image encoder of the distillation; empty takes the one of the checkpoint's text encoder."""
    seed: int = 0
    """Fixes the order of the data, augmentation and sampling."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}: give a whole number from 0 to 2^63 - 1")
        if not 0 <= self.wise <= 1:
            raise ConfigError(f"--wise is {self.wise}: give a share between 0 (the checkpoint) and 1 (as tuned)")
        if not (0 < self.learning_rate < math.inf and 0 <= self.trunk_learning_rate < math.inf):
            raise ConfigError("--learning-rate must be positive, --trunk-learning-rate at least 0, both finite")
        if self.steps < 1 or self.batch < 1 or self.versions < 1:
            raise ConfigError("--steps, --batch and --versions must be at least 1")
        factors = (self.anchor, self.name_anchor, self.distillation)
        if not all(0 <= factor < math.inf for factor in factors) or self.anchor_regions < 1:
            raise ConfigError(
                "--anchor, --name-anchor and --distillation must be at least 0 and finite, anchor_regions at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """What must not be forgotten."""

    annotations: Path
    """COCO-format JSON; classes with role novel are the held-out vocabulary, else all that are not the user's."""
    images: Path
    max_drop: float | None = None
    """Points of AP50 that the held-out vocabulary may lose."""

    def __post_init__(self) -> None:
        if self.max_drop is not None and math.isnan(self.max_drop):
            raise ConfigError("--max-drop is not a number: give the points of AP50 that may be lost, such as 2")


def finetune(
    checkpoint: Path, annotations: Path, images: Path, out: Path, *, config: FinetuneConfig, holdout: Holdout | None
) -> dict[str, Any]:
    """Teach the detector of `checkpoint` the classes boxed in `annotations`; returns what `out/finetune.json` holds.

    Leaves `out/detector.safetensors`. The same call goes on where it was stopped. Raises ForgettingError where the
    held-out vocabulary lost more than `holdout.max_drop` (the detector is then `out/rejected.safetensors`), ConfigError
    where `out` holds something else, and the OVBridgeErrors of unusable inputs.
    """
    record = {
        "format": FORMAT,
        "version": __version__,
        "config": asdict(config),
        "inputs": {"checkpoint": fingerprint(checkpoint), "annotations": fingerprint(annotations)},
    }
    with claimed_run(out, record, may_differ=frozenset({"version"})):
        classes = merge_classes(Detector.load(checkpoint, "cpu", text_encoder=_text_encoder(config)), annotations)
        inputs, data = _open(classes, annotations, images, out, config, checkpoint)
        model, before = load_detector(checkpoint)
        model = model.to(default_device())
        model.set_text_bank(classes.bank.embeddings_KD)
        old = metadata_of(before, classes, extra={})
        figures: dict[str, Any] = {"new_classes": list(classes.added), "classes": list(classes.given)}
        if holdout is not None:
            figures["before"] = _figures(model, old, holdout, classes, config.batch)
        metadata = _tune(model, old, classes, inputs, data, out, config)
        if holdout is not None:
            figures["after"] = _figures(model, metadata, holdout, classes, config.batch)
            figures["drop"] = figures["before"]["held_out"] - figures["after"]["held_out"]
        figures |= {"config": asdict(config), "checkpoint": str(checkpoint), "images": len(inputs.coco)}
        allowed = None if holdout is None else holdout.max_drop
        forgot = allowed is not None and figures["drop"] > allowed
        figures["detector"] = str(out / (REJECTED_FILE if forgot else RESULT_FILE))
        save_detector(Path(figures["detector"]), model, metadata)
        (out / RECORD_FILE).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if forgot:
        raise ForgettingError(
            f"held-out AP50 fell by {figures['drop']:.1f} points ({figures['before']['held_out']:.1f} to "
            f"{figures['after']['held_out']:.1f}), allowed are {allowed:g}: the detector is {figures['detector']}; "
            "try --wise 0.5, fewer --steps, or a larger --anchor and --name-anchor, in another --out"
        )
    return figures


def _open(
    classes: UserClasses, annotations: Path, images: Path, out: Path, config: FinetuneConfig, checkpoint: Path
) -> tuple[TrainingInputs, DataConfig]:
    """The user's images as training inputs, labelled with distillation targets unless the tuning is naive."""
    merged, bank, store = out / "annotations.json", out / "text.safetensors", out / "labels"
    write_annotations(merged, classes.payload)
    classes.bank.save(bank)
    if not config.naive:
        _label(classes, images, store, config)
    data = DataConfig(
        images=str(images.absolute()), annotations=str(merged.absolute()), text_bank=str(bank.absolute()),
        store=str(store.absolute()), root="", novel_boxes=True,
    )  # fmt: skip
    return open_inputs(data, _stage(config), with_masks=False), data


def _text_encoder(config: FinetuneConfig) -> TextEncoder | None:
    """The one given, for names that the checkpoint does not store; None leaves it to the checkpoint to name it."""
    if not config.clip:
        return None
    from ovbridge.teachers.clip import load_clip

    return load_clip(config.clip, default_device())


def _stage(config: FinetuneConfig) -> Stage:
    return Stage(name="finetune", init_from="any", region_distillation=not config.naive)


def _label(classes: UserClasses, images: Path, store: Path, config: FinetuneConfig) -> None:
    # Here: teachers and Lance are heavy, and a naive run needs neither.
    from ovbridge.images import read_image
    from ovbridge.labeling.labellers import RegionLabeller
    from ovbridge.labeling.run import label_images
    from ovbridge.teachers.clip import load_clip
    from ovbridge.teachers.mavl.proposer import load_mavl

    boxed = {a["image_id"] for a in classes.payload["annotations"]}
    keys = [str(image_file_name(image)) for image in classes.payload["images"] if image["id"] in boxed]
    if not (images / keys[0]).is_file():
        raise ConfigError(f"{images} does not hold {keys[0]} of the annotations: check --images")
    encoder = load_clip(config.clip or classes.bank.encoder.removeprefix("open_clip:"), default_device())
    labeller = RegionLabeller(proposer=load_mavl(config.proposer), encoder=encoder)
    label_images(store, images, keys, labeller, read_image=read_image)


def _tune(
    model: TwoStageDetector,
    before: DetectorMetadata,
    classes: UserClasses,
    inputs: TrainingInputs,
    data: DataConfig,
    out: Path,
    config: FinetuneConfig,
) -> DetectorMetadata:
    """Train `model` in place; returns what the result says of itself."""
    short, long = before.test_size or PAPER_SIZE
    short_sides, longest = tuple(round(short * s) for s in SCALES), round(long * max(SCALES))
    transform = TrainTransform(
        short_sides=short_sides, max_long_side=longest, jitter=JITTER, versions=0 if config.naive else config.versions
    )
    count = min(config.batch, len(inputs.coco))
    batches = build_batches(
        inputs,
        data,
        _stage(config),
        BatchConfig(det=count, det_transform=transform, group_by_shape=False),
        seed=config.seed,
    )
    columns = [classes.vocabulary.index(name) for name in classes.given]
    set_training_mode(model, "frozen")
    if config.naive:
        tuned: nn.Module = model
        losses: LossFunction = _naive_losses
    else:
        freeze(model, FROZEN)
        sizes = [
            resized_size(i.height, i.width, short_side=max(short_sides), long_side=longest) for i in inputs.coco.images
        ]
        trained_K = torch.zeros(len(classes.vocabulary), dtype=torch.bool)
        trained_K[columns] = True
        losses = AnchoredLosses(
            weights=_anchored_weights(classes.bank.dim, config),
            trained_columns_K=trained_K,
            padded_hw=(max(h for h, _ in sizes), max(w for _, w in sizes)),
            anchor=HeadAnchor(model, kept_columns_K=~trained_K, regions=config.anchor_regions),
            anchor_weight=config.anchor,
            name_anchor_weight=config.name_anchor,
        )
        tuned = FineTunedDetector(model, columns)
    optim = OptimConfig(
        optimizer="adamw", weight_decay=0.0, schedule="cosine",
        learning_rate=config.naive_learning_rate if config.naive else config.learning_rate,
        trunk_factor=1.0 if config.naive else config.trunk_learning_rate / config.learning_rate,
        warmup_steps=min(20, config.steps // 10), warmup_factor=0.1, clip_norm=5.0, keep_zero_gradients=False,
    )  # fmt: skip
    start = {name: value.detach().clone() for name, value in tuned.state_dict().items()}
    loop = LoopConfig(steps=config.steps, save_every=100, log_every=10)
    parts = TrainingParts(model=tuned, optimizer=build_optimizer(tuned, optim), batches=batches, losses=losses)
    train(
        parts, out, config=loop, optim=optim, seed=config.seed, stage="finetune",
        resume_hint="repeat the same command to go on",
    )  # fmt: skip
    interpolate(tuned, start, config.wise)
    if isinstance(tuned, FineTunedDetector):
        tuned.apply_rows(learning=False)
    model.requires_grad_(False).eval()
    extra = {"finetuned": {"classes": list(classes.given), "naive": config.naive, "wise": config.wise}}
    return metadata_of(before, classes, extra=extra)


def _naive_losses(model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    assert isinstance(model, TwoStageDetector)
    weights = LossWeights(rkd_l1=0.0, rkd_relation=0.0)
    return detection_losses(model, batch.images, weights=weights, generator=generator)


def _anchored_weights(dim: int, config: FinetuneConfig) -> LossWeights:
    # The mean over D elements of unit rows shrinks with 1/sqrt(D): the official 15 is for D = 512.
    return LossWeights(
        rpn_objectness=0.0,
        rpn_box=0.0,
        box=0.0,
        rkd_l1=15.0 * (512 / dim) ** 0.5 * config.distillation,
        rkd_relation=1.0 * config.distillation,
    )


def _figures(
    model: TwoStageDetector, metadata: DetectorMetadata, holdout: Holdout, classes: UserClasses, batch: int
) -> dict[str, Any]:
    """AP50 on the held-out data: over its vocabulary and over the user's classes."""
    record = evaluate_model(
        model, metadata, images=holdout.images, annotations=holdout.annotations, protocol="coco", batch=batch
    )
    found = {name: row for name, row in record["per_class"].items() if row["ap50"] is not None}
    others = {name: row for name, row in found.items() if name not in classes.given}
    novel = {name: row for name, row in others.items() if row["role"] == "novel"}
    kept = novel or others
    if not kept:
        raise ConfigError(
            f"{holdout.annotations} has no class besides yours: give held-out data with the old vocabulary"
        )
    mine = {name: row["ap50"] for name, row in found.items() if name in classes.given}
    base = [row["ap50"] for row in others.values() if row["role"] == "base"]
    return {
        "held_out": _mean([row["ap50"] for row in kept.values()]),
        "held_out_classes": len(kept),
        "base": _mean(base) if novel and base else None,
        "mine": _mean(list(mine.values())) if mine else None,
        "per_class": mine,
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def print_figures(figures: dict[str, Any]) -> None:
    """Before and after, for people."""
    if "before" not in figures:
        stderr.print("no --holdout given: what was forgotten is not known")
        return
    for row, title in (("held_out", "held-out vocabulary"), ("base", "base classes"), ("mine", "your classes")):
        left, right = figures["before"][row], figures["after"][row]
        if left is not None and right is not None:
            stderr.print(f"{title}: AP50 {left:.1f} before, {right:.1f} after ({right - left:+.1f})")
