"""The detectors that recipes name: the two of the paper and the small student of the built-in world."""

from __future__ import annotations

from ovbridge.detector.config import (
    BackboneConfig,
    ClassifierConfig,
    DetectorConfig,
    FullyConnectedTrunkConfig,
    MaskConfig,
    PixelConfig,
    PostprocessConfig,
    ProjectionConfig,
    PyramidConfig,
    RoiConfig,
    RpnConfig,
    Stage5TrunkConfig,
    TransferConfig,
)

CLIP_VIT_B32_DIM = 512


def _caffe_pixels(size_divisibility: int) -> PixelConfig:
    return PixelConfig(
        mean=(103.530, 116.280, 123.675), std=(1.0, 1.0, 1.0), order="bgr", size_divisibility=size_divisibility
    )


def coco_r50_c4(*, transfer: bool = False) -> DetectorConfig:
    """Faster R-CNN R50-C4 of the paper's OV-COCO results, with Detectron2's defaults."""
    return DetectorConfig(
        name="coco_r50_c4",
        pixels=_caffe_pixels(0),
        backbone=BackboneConfig(depths=(3, 4, 6), channels=(256, 512, 1024), out_stages=(4,)),
        rpn=RpnConfig(
            anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
            pre_nms_train=12000,
            post_nms_train=2000,
            pre_nms_test=6000,
            post_nms_test=1000,
        ),
        roi=RoiConfig(stage5=Stage5TrunkConfig()),
        projection=ProjectionConfig(embedding_dim=CLIP_VIT_B32_DIM, transfer=TransferConfig() if transfer else None),
    )


def lvis_r50_fpn(*, transfer: bool = False) -> DetectorConfig:
    """Mask R-CNN R50-FPN of the paper's OV-LVIS results."""
    return DetectorConfig(
        name="lvis_r50_fpn",
        pixels=_caffe_pixels(32),
        backbone=BackboneConfig(pyramid=PyramidConfig()),
        rpn=RpnConfig(anchor_sizes=((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))),
        roi=RoiConfig(fully_connected=FullyConnectedTrunkConfig()),
        projection=ProjectionConfig(embedding_dim=CLIP_VIT_B32_DIM, transfer=TransferConfig() if transfer else None),
        classifier=ClassifierConfig(bias=-4.6),
        mask=MaskConfig(),
        postprocess=PostprocessConfig(score_threshold=1e-4, max_detections=300),
    )


def world_r18_fpn(
    *,
    embedding_dim: int,
    transfer: bool = False,
    channels: tuple[int, ...] = (32, 64, 128, 256),
    out_stages: tuple[int, ...] = (3, 4, 5),
) -> DetectorConfig:
    """A ResNet-18 of half the usual width with a narrow pyramid (strides 8, 16, 32 by default): trains on a CPU
    in minutes. Trainable batch norm, nothing frozen, no pretrained weights."""
    sizes = tuple((2.5 * 2**stage,) for stage in out_stages)
    return DetectorConfig(
        name="world_r18_fpn",
        pixels=PixelConfig(mean=(123.675, 116.280, 103.530), std=(58.395, 57.12, 57.375), size_divisibility=32),
        backbone=BackboneConfig(
            block="basic",
            stem_channels=channels[0],
            depths=(2, 2, 2, 2),
            channels=channels,
            out_stages=out_stages,
            norm="batch",
            stride_in_1x1=False,
            freeze_at=0,
            pyramid=PyramidConfig(channels=64, extra_level=False),
        ),
        rpn=RpnConfig(
            anchor_sizes=sizes,
            pre_nms_train=300,
            post_nms_train=200,
            pre_nms_test=600,
            post_nms_test=200,
            sampled_anchors=128,
        ),
        roi=RoiConfig(
            fully_connected=FullyConnectedTrunkConfig(widths=(256, 256)),
            canonical_size=112.0,
            sampled_regions=32,
        ),
        projection=ProjectionConfig(
            embedding_dim=embedding_dim,
            transfer=TransferConfig(hidden=512, residual_hidden=256, start="identity") if transfer else None,
        ),
    )
