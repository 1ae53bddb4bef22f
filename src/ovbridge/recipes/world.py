"""The built-in world: the paper's stages at a size that two CPU cores train in minutes.

Paths are those that `ovbridge world --out DIR`, `ovbridge prepare coco-ovd` (into DIR/annotations) and
`ovbridge label --store DIR/labels` write, relative to `data.root`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ovbridge.data.transforms import TrainTransform
from ovbridge.detector import DetectorConfig, world_r18_fpn
from ovbridge.run_config import RunConfig
from ovbridge.training.batches import BatchConfig
from ovbridge.training.inputs import DataConfig
from ovbridge.training.loop import LoopConfig
from ovbridge.training.loss_weights import LossWeights
from ovbridge.training.optim import OptimConfig
from ovbridge.training.stages import STAGES, Stage

EMBEDDING_DIM = 64
"""Width of the built-in CLIP; the text bank has the last word."""

BUILTIN_BACKBONE = Path(__file__).parent / "weights" / "world_backbone.safetensors"
"""What ImageNet weights are to the full size: names and boxes of base and unused nouns of another world, and single
pictures of novel ones with their label, as ImageNet shows most of COCO's novel classes. It says so in its metadata."""


BEYOND = ("losses.image_label_jitter=0.2", "losses.image_label_refine=0.5", "losses.named_regions=0.9")
"""What the demo adds to the last stage as published: pseudo boxes teach their offsets too, and stored regions that CLIP
names surely count as boxes. On a tuning world each is worth 4 to 10 points of novel AP50 (docs/lab-notes.md)."""

TAG_SIZE_WEIGHT = 0.3
"""In pictures with one label, the whole thing is preferred to its parts: the leak-free proposer cannot tell by name.
On a tuning world: novel things boxed right 54 → 73 %, base ones 76 → 77 %."""


def world_base() -> RunConfig:
    """Supervised on the 48 base nouns, on the pretrained backbone with its first two stages frozen.

    As in the paper, images with labels only are half the size of those with boxes and four times as many a batch.
    """
    boxed = TrainTransform(short_sides=(128,), max_long_side=214)
    labelled = TrainTransform(short_sides=(64,), max_long_side=107)
    return RunConfig(
        recipe="world_base",
        stage=STAGES["base"],
        detector=_detector(transfer=False),
        loop=LoopConfig(steps=300, save_every=100, log_every=10),
        data=DataConfig(
            annotations="annotations/instances_train2017_base.json",
            label_images="image_labels",
            label_annotations="annotations/image_labels.json",
            store="labels",
            cache_in_memory=True,
        ),
        batches=BatchConfig(det=16, cls=64, ratio=(1.0, 4.0), det_transform=boxed, cls_transform=labelled),
        optim=_optim(1e-3, trunk_factor=0.4),
        # The mean over D elements shrinks with 1/sqrt(D) for unit rows: 15 at 512 is about 40 at 64. So short a run
        # hardly learns to refine boxes at the official weight, nor pseudo boxes at the paper's alpha of 0.1.
        losses=LossWeights(rkd_l1=40.0, rkd_relation=1.0, box=2.0, image_label=0.2),
        test_size=(128, 214),
        init=str(BUILTIN_BACKBONE),
    )


def world_rkd() -> RunConfig:
    """Base + region-based knowledge distillation."""
    return _at(STAGES["rkd"])


def world_pis() -> RunConfig:
    """Base + pseudo boxes for image labels."""
    return _at(STAGES["pis"])


def world_rkd_pis() -> RunConfig:
    """Both at once through one shared projection (the naive combination)."""
    return _at(STAGES["rkd_pis"])


def world_rkd_pis_wt() -> RunConfig:
    """Both, with the classification weights transferred from the frozen RKD projection."""
    return _at(STAGES["rkd_pis_wt"])


def _at(stage: Stage) -> RunConfig:
    base = world_base()
    return replace(
        base,
        recipe=f"world_{stage.name}",
        stage=stage,
        detector=_detector(transfer=stage.projection == "transfer"),
        loop=replace(base.loop, steps=1000 if stage.image_labels else 300),
        # The heads have few steps to turn towards CLIP and the pseudo boxes; the trunk's rate is 6e-4 in both.
        optim=_optim(1.5e-3, trunk_factor=0.4) if stage.image_labels else _optim(2e-3, trunk_factor=0.3),
        init="",
    )


def _optim(learning_rate: float, *, trunk_factor: float) -> OptimConfig:
    return OptimConfig(
        optimizer="adamw",
        learning_rate=learning_rate,
        trunk_factor=trunk_factor,
        weight_decay=0.02,
        schedule="cosine",
        warmup_steps=20,
        warmup_factor=0.01,
        clip_norm=5.0,
        decay_norms_and_biases=False,
        keep_zero_gradients=False,
    )


def _detector(*, transfer: bool) -> DetectorConfig:
    config = world_r18_fpn(embedding_dim=EMBEDDING_DIM, transfer=transfer)
    return replace(
        config,
        backbone=replace(config.backbone, freeze_at=2),
        roi=replace(config.roi, foreground_fraction=0.4),
        # Things of one kind seldom overlap here, and a student of so few steps boxes parts of them too.
        postprocess=replace(config.postprocess, nms_iou=0.4),
    )
