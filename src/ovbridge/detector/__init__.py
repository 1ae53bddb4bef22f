"""The two-stage open-vocabulary detector, from boxes and anchors to checkpoints."""

from ovbridge.detector.architectures import coco_r50_c4, lvis_r50_fpn, world_r18_fpn
from ovbridge.detector.backbone import set_norm_eval
from ovbridge.detector.build import build_detector, to_weight_transfer
from ovbridge.detector.checkpoint_file import DetectorMetadata, load_detector, read_metadata, save_detector
from ovbridge.detector.config import DetectorConfig, PostprocessConfig
from ovbridge.detector.detector import Search, TwoStageDetector
from ovbridge.detector.postprocess import RawDetections, to_original_size
from ovbridge.detector.pretrained import with_network

__all__ = [
    "DetectorConfig",
    "DetectorMetadata",
    "PostprocessConfig",
    "RawDetections",
    "Search",
    "TwoStageDetector",
    "build_detector",
    "coco_r50_c4",
    "load_detector",
    "lvis_r50_fpn",
    "read_metadata",
    "save_detector",
    "set_norm_eval",
    "to_original_size",
    "to_weight_transfer",
    "with_network",
    "world_r18_fpn",
]
