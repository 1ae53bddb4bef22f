"""OV-LVIS as the released configurations train it (866 base and 337 rare classes, Mask R-CNN R50-FPN, CLIP ViT-B/32).

Image labels come from the 997 ImageNet-21K classes that LVIS shares, one label an image, its best box kept whatever
its score. Against OV-COCO: masks, federated loss, repeat-factor sampling, 640 to 800 pixels, other RKD weights.
"""

from __future__ import annotations

from dataclasses import replace

from ovbridge.data.transforms import TrainTransform
from ovbridge.detector import lvis_r50_fpn
from ovbridge.recipes.coco import EIGHT_TIMES_SHORT_SIDES
from ovbridge.run_config import RunConfig
from ovbridge.training.batches import BatchConfig
from ovbridge.training.inputs import DataConfig
from ovbridge.training.loop import LoopConfig
from ovbridge.training.loss_weights import LossWeights
from ovbridge.training.optim import OptimConfig
from ovbridge.training.stages import STAGES, Stage

TRANSFER_SEED = 9112072
"""Seed of the released weight-transfer run."""


def lvis_base() -> RunConfig:
    """Supervised on frequent and common classes; `init` is an ImageNet ResNet-50 (the released runs: MSRA's R-50)."""
    return RunConfig(
        recipe="lvis_base",
        stage=STAGES["base"],
        detector=lvis_r50_fpn(),
        loop=LoopConfig(steps=90_000, save_every=5_000),
        data=DataConfig(
            # LVIS names its pictures train2017/... and val2017/...: its training split has some of either.
            images=".",
            annotations="annotations/lvis_v1_train_norare.json",
            label_images="imagenet",
            label_annotations="annotations/imagenet_lvis.json",
            store="labels",
            min_tag_score=0.0,
            max_tags=1,
        ),
        batches=BatchConfig(
            det=16,
            cls=64,
            ratio=(1.0, 4.0),
            det_transform=TrainTransform(short_sides=(640, 672, 704, 736, 768, 800), max_long_side=1333),
            cls_transform=TrainTransform(short_sides=(400,), max_long_side=667),
            repeat_threshold=0.001,
            workers=4,
        ),
        optim=OptimConfig(learning_rate=0.02, warmup_steps=1_000, warmup_factor=0.001),
        losses=LossWeights(rkd_l1=25.0, rkd_relation=13.0),
        federated_classes=50,
    )


def lvis_rkd() -> RunConfig:
    """Base + region-based knowledge distillation."""
    return _at(STAGES["rkd"])


def lvis_pis() -> RunConfig:
    """Base + pseudo boxes for ImageNet labels."""
    return _at(STAGES["pis"])


def lvis_rkd_pis() -> RunConfig:
    """Both at once through one shared projection (the naive combination)."""
    return _at(STAGES["rkd_pis"])


def lvis_rkd_pis_wt() -> RunConfig:
    """Both, with the classification weights transferred from the frozen RKD projection."""
    return replace(_at(STAGES["rkd_pis_wt"]), seed=TRANSFER_SEED)


def lvis_rkd_pis_wt_8x() -> RunConfig:
    """`lvis_rkd_pis_wt` for eight times as long with multi-scale training."""
    config = lvis_rkd_pis_wt()
    return replace(
        config,
        recipe="lvis_rkd_pis_wt_8x",
        loop=replace(config.loop, steps=720_000),
        batches=replace(
            config.batches,
            det_transform=replace(config.batches.det_transform, short_sides=EIGHT_TIMES_SHORT_SIDES),
        ),
    )


def _at(stage: Stage) -> RunConfig:
    detector = lvis_r50_fpn(transfer=stage.projection == "transfer")
    return replace(lvis_base(), recipe=f"lvis_{stage.name}", stage=stage, detector=detector)
