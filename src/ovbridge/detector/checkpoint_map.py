"""Official checkpoints (Detectron2 names) ↔ ours: which model it is, and where each tensor goes.

Legend: K classes, D embedding. Every tensor of an official file ends as a parameter here or in the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ovbridge.detector.architectures import coco_r50_c4, lvis_r50_fpn
from ovbridge.detector.build import empty_detector, load_values
from ovbridge.detector.config import DetectorConfig, TransferConfig
from ovbridge.detector.detector import TwoStageDetector
from ovbridge.errors import CheckpointError

_PREDICTOR = "roi_heads.box_predictor."
TEXT = _PREDICTOR + "cls_score.zs_weight"
"""[D, K + 1] unit columns; the last is the zero vector of background."""
FREQUENCY = _PREDICTOR + "freq_weight"
"""[K] sqrt of the training images a class has; zero where it has no training boxes."""

_RULES: tuple[tuple[str, str], ...] = (
    (r"^rpn\.conv\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.objectness\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.deltas\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^roi_head\.trunk\.stage5\.", "roi_heads.res5."),
    (r"^roi_head\.projection\.linear\.", _PREDICTOR + "cls_score.linear."),
    (r"^roi_head\.projection\.transfer([12])\.", _PREDICTOR + r"cls_score.fc\1."),
    (r"^roi_head\.projection\.residual1\.", _PREDICTOR + "cls_score.fc3."),
    (r"^roi_head\.projection\.residual2\.", _PREDICTOR + "cls_score.fc4."),
    (r"^roi_head\.classifier\.bias$", _PREDICTOR + "cls_score.cls_bias"),
    (r"^roi_head\.classifier\.text_KD$", TEXT),
    (r"^roi_head\.box_regressor\.fc1\.", _PREDICTOR + "bbox_pred.0."),
    (r"^roi_head\.box_regressor\.fc2\.", _PREDICTOR + "bbox_pred.2."),
    (r"^mask_head\.upsample\.", "roi_heads.mask_head.deconv."),
    (r"^mask_head\.predictor\.", "roi_heads.mask_head.predictor."),
    (r"^backbone\.(?:body\.)?stem\.", "{body}stem.conv1."),
    (r"^backbone\.(?:body\.)?stages\.(\d)\.", r"{body}res\1."),
)
"""(pattern of our name, official name)"""

_NUMBERED: tuple[tuple[str, str, int], ...] = (
    (r"^backbone\.lateral\.(\d)\.", "backbone.fpn_lateral{}.", 2),
    (r"^backbone\.output\.(\d)\.", "backbone.fpn_output{}.", 2),
    (r"^roi_head\.trunk\.layers\.(\d)\.", "roi_heads.box_head.fc{}.", 1),
    (r"^mask_head\.convs\.(\d)\.", "roi_heads.mask_head.mask_fcn{}.", 1),
)
"""(pattern of our name, official name, the number that official names start to count from)"""

_NOT_NEEDED: tuple[tuple[str, str], ...] = (
    (r"freq_weight$", "class frequencies of the training set: needed for training only, told in the roles"),
    (r"^pixel_(mean|std)$", "pixel normalisation: part of the architecture here"),
    (r"anchor_generator\.cell_anchors\.", "anchors: computed from the architecture here"),
    (r"num_batches_tracked$", "counter of a frozen norm: not used"),
)


def official_name(ours: str, config: DetectorConfig) -> str:
    """The official name of one of our tensors in a detector of this architecture; unchanged where there is none."""
    for pattern, official in _RULES:
        if re.match(pattern, ours):
            body = "backbone.bottom_up." if config.backbone.pyramid else "backbone."
            return re.sub(pattern, official.replace("{body}", body), ours, count=1)
    for pattern, official, first in _NUMBERED:
        found = re.match(pattern, ours)
        if found:
            return official.format(int(found[1]) + first) + ours[found.end() :]
    return ours


@dataclass(frozen=True, kw_only=True)
class MappedCheckpoint:
    """An official checkpoint as one of our detectors."""

    model: TwoStageDetector
    """With the file's weights and text bank, in evaluation mode."""
    has_training_boxes: tuple[bool, ...]
    """[K]: the class frequencies of the file, as far as they tell base from novel; empty if the file has none."""
    used: tuple[str, ...]
    """Official names that became a tensor of the model."""
    reported: dict[str, str]
    """Official name → why it is not part of the model."""

    @property
    def stage(self) -> str:
        """What the tensors tell of the stage: the linear stages (base, RKD, PIS) have the same ones."""
        return "rkd_pis_wt" if self.model.config.projection.transfer else "linear"


def map_official(tensors: Mapping[str, Tensor]) -> MappedCheckpoint:
    """Recognise a released detector by its tensors and build ours from them.

    Raises CheckpointError where the file is another model's, or a tensor is absent or of the wrong shape.
    """
    config = _recognise(tensors)
    model = empty_detector(config, _matrix(tensors, TEXT).shape[1] - 1)
    used: dict[str, str] = {name: official_name(name, config) for name in model.state_dict()}
    ours = {name: _fitting(tensors, used[name], value, config.name) for name, value in model.state_dict().items()}
    load_values(model, ours)
    frequency = tensors.get(FREQUENCY)
    return MappedCheckpoint(
        model=model.eval(),
        has_training_boxes=() if frequency is None else tuple((frequency > 0).flatten().tolist()),
        used=tuple(used.values()),
        reported={
            name: next((why for pattern, why in _NOT_NEEDED if re.search(pattern, name)), "unknown: not used")
            for name in tensors
            if name not in used.values()
        },
    )


def _fitting(tensors: Mapping[str, Tensor], name: str, expected: Tensor, architecture: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{architecture}: the file lacks {name}: it is truncated or of another model")
    value = tensors[name].detach().float()
    if name == TEXT:
        value = value[:, :-1].T.contiguous()
    if value.shape != expected.shape:
        raise CheckpointError(
            f"{architecture}: {name} is {tuple(value.shape)} instead of {tuple(expected.shape)}: "
            "the file is of another model"
        )
    return value


def _matrix(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"the file lacks {name}: it is truncated or of another model")
    value = tensors[name]
    if value.ndim != 2 or 0 in value.shape:
        raise CheckpointError(f"{name} is {tuple(value.shape)} instead of a matrix: the file is of another model")
    return value


def _recognise(tensors: Mapping[str, Tensor]) -> DetectorConfig:
    linear, transfer1, residual1 = (_PREDICTOR + f"cls_score.{layer}.weight" for layer in ("linear", "fc1", "fc3"))
    if linear not in tensors or TEXT not in tensors:
        raise CheckpointError(
            "not a detector of the paper (no text embeddings or projection in its box predictor): "
            "convert takes coco_ovd_*.pth, lvis_ovd_*.pth, MAVL, ImageNet ResNets, and others with --network"
        )
    pyramid = any(name.startswith("backbone.bottom_up.") for name in tensors)
    config = lvis_r50_fpn() if pyramid else coco_r50_c4()
    transfer = None
    if transfer1 in tensors:
        transfer = TransferConfig(
            hidden=len(_matrix(tensors, transfer1)), residual_hidden=len(_matrix(tensors, residual1))
        )
    bias = tensors.get(_PREDICTOR + "cls_score.cls_bias")
    has_masks = any(name.startswith("roi_heads.mask_head.") for name in tensors)
    return replace(
        config,
        projection=replace(config.projection, embedding_dim=len(_matrix(tensors, linear)), transfer=transfer),
        classifier=replace(config.classifier, bias=None if bias is None else -4.6),
        mask=config.mask if has_masks else None,
    )
