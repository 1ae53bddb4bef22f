"""OV-COCO as the released configurations train it (48 base and 17 novel classes, Faster R-CNN R50-C4, CLIP ViT-B/32).

Eight GPUs with 2 boxed or 8 captioned images each make the batches of 16 and 64. Section 1.3 and 1.2 of the facts
drawn from the released code: SGD 0.02, weight decay 1e-4 on everything, 90k steps decaying at 60k and 80k.
"""

from __future__ import annotations

from dataclasses import replace

from ovbridge.data.transforms import TrainTransform
from ovbridge.detector import coco_r50_c4
from ovbridge.run_config import RunConfig
from ovbridge.training.batches import BatchConfig
from ovbridge.training.inputs import DataConfig
from ovbridge.training.loop import LoopConfig
from ovbridge.training.optim import OptimConfig
from ovbridge.training.stages import STAGES, Stage

EIGHT_TIMES_SHORT_SIDES = tuple(range(128, 1281, 32))
"""Multi-scale training of the 8x schedule: 128, 160, ..., 1280."""


def coco_base() -> RunConfig:
    """Supervised on the 48 base classes; `init` is an ImageNet ResNet-50 (the released runs: MSRA's R-50)."""
    return RunConfig(
        recipe="coco_base",
        stage=STAGES["base"],
        detector=coco_r50_c4(),
        loop=LoopConfig(steps=90_000, save_every=5_000),
        data=DataConfig(
            annotations="annotations/instances_train2017_base.json",
            label_images="train2017",
            label_annotations="annotations/captions_train2017.json",
            store="labels",
            min_tag_score=0.95,
            max_tags=32,
        ),
        batches=BatchConfig(
            det=16,
            cls=64,
            ratio=(1.0, 4.0),
            det_transform=TrainTransform(short_sides=(800,), max_long_side=1333),
            cls_transform=TrainTransform(short_sides=(400,), max_long_side=667),
            workers=4,
        ),
        optim=OptimConfig(learning_rate=0.02, warmup_steps=1_000, warmup_factor=0.001),
    )


def coco_rkd() -> RunConfig:
    """Base + region-based knowledge distillation."""
    return _at(STAGES["rkd"])


def coco_pis() -> RunConfig:
    """Base + pseudo boxes for caption tags."""
    return _at(STAGES["pis"])


def coco_rkd_pis() -> RunConfig:
    """Both at once through one shared projection (the naive combination)."""
    return _at(STAGES["rkd_pis"])


def coco_rkd_pis_wt() -> RunConfig:
    """Both, with the classification weights transferred from the frozen RKD projection."""
    return _at(STAGES["rkd_pis_wt"])


def coco_rkd_pis_wt_8x() -> RunConfig:
    """`coco_rkd_pis_wt` for eight times as long with multi-scale training."""
    config = coco_rkd_pis_wt()
    return replace(
        config,
        recipe="coco_rkd_pis_wt_8x",
        loop=replace(config.loop, steps=720_000),
        batches=replace(
            config.batches,
            det_transform=replace(config.batches.det_transform, short_sides=EIGHT_TIMES_SHORT_SIDES),
        ),
    )


def _at(stage: Stage) -> RunConfig:
    detector = coco_r50_c4(transfer=stage.projection == "transfer")
    return replace(coco_base(), recipe=f"coco_{stage.name}", stage=stage, detector=detector)
