"""Official checkpoints (Detectron2 names) ↔ ours: which model it is, and where each tensor goes.

Legend: K classes, D embedding. Every tensor of an official file ends as a parameter here or in the report.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovbridge.detector.architectures import coco_r50_c4, lvis_r50_fpn
from ovbridge.detector.build import empty_detector
from ovbridge.detector.config import DetectorConfig, TransferConfig
from ovbridge.detector.detector import TwoStageDetector
from ovbridge.errors import CheckpointError

_PREDICTOR = "roi_heads.box_predictor."
TEXT = _PREDICTOR + "cls_score.zs_weight"
"""[D, K + 1] unit columns; the last is the zero vector of background."""
FREQUENCY = _PREDICTOR + "freq_weight"
"""[K] sqrt of the training images a class has; zero where it has no training boxes."""

_RULES: tuple[tuple[str, str], ...] = (
    (r"backbone\.bottom_up\.stem\.conv1\.", "backbone.body.stem."),
    (r"backbone\.bottom_up\.res(\d)\.", r"backbone.body.stages.\1."),
    (r"backbone\.stem\.conv1\.", "backbone.stem."),
    (r"backbone\.res(\d)\.", r"backbone.stages.\1."),
    (r"proposal_generator\.rpn_head\.conv\.", "rpn.conv."),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn.objectness."),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.deltas."),
    (r"roi_heads\.res5\.", "roi_head.trunk.stage5."),
    (r"roi_heads\.box_predictor\.cls_score\.linear\.", "roi_head.projection.linear."),
    (r"roi_heads\.box_predictor\.cls_score\.fc1\.", "roi_head.projection.transfer1."),
    (r"roi_heads\.box_predictor\.cls_score\.fc2\.", "roi_head.projection.transfer2."),
    (r"roi_heads\.box_predictor\.cls_score\.fc3\.", "roi_head.projection.residual1."),
    (r"roi_heads\.box_predictor\.cls_score\.fc4\.", "roi_head.projection.residual2."),
    (r"roi_heads\.box_predictor\.cls_score\.cls_bias$", "roi_head.classifier.bias"),
    (r"roi_heads\.box_predictor\.bbox_pred\.0\.", "roi_head.box_regressor.fc1."),
    (r"roi_heads\.box_predictor\.bbox_pred\.2\.", "roi_head.box_regressor.fc2."),
    (r"roi_heads\.mask_head\.deconv\.", "mask_head.upsample."),
    (r"roi_heads\.mask_head\.predictor\.", "mask_head.predictor."),
)
_NUMBERED: tuple[tuple[str, str, int], ...] = (
    (r"backbone\.fpn_lateral(\d)\.", "backbone.lateral.{}.", 2),
    (r"backbone\.fpn_output(\d)\.", "backbone.output.{}.", 2),
    (r"roi_heads\.box_head\.fc(\d)\.", "roi_head.trunk.layers.{}.", 1),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.", "mask_head.convs.{}.", 1),
)
"""(pattern, ours, the number that official names start to count from)"""

_DERIVED: tuple[tuple[str, str], ...] = (
    (r"^pixel_(mean|std)$", "pixel normalisation: part of the architecture here"),
    (r"anchor_generator\.cell_anchors\.", "anchors: computed from the architecture here"),
    (r"num_batches_tracked$", "counter of a frozen norm: not used"),
)


def our_name(official: str) -> str | None:
    """Our name for an official tensor that is taken over as it is, else None."""
    for pattern, ours in _RULES:
        if re.match(pattern, official):
            return re.sub(pattern, ours, official, count=1)
    for pattern, ours, first in _NUMBERED:
        found = re.match(pattern, official)
        if found:
            return ours.format(int(found[1]) - first) + official[found.end() :]
    return None


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


def map_official(tensors: Mapping[str, Tensor]) -> MappedCheckpoint:
    """Recognise a released detector by its tensors and build ours from them.

    Raises CheckpointError where the file is another model's, or a tensor is absent or of the wrong shape.
    """
    config = _recognise(tensors)
    text_DC = tensors[TEXT].float()
    ours: dict[str, Tensor] = {"roi_head.classifier.text_KD": text_DC[:, :-1].T.contiguous()}
    used, reported = [TEXT], {}
    for name, value in tensors.items():
        target = our_name(name)
        if target is not None:
            ours[target] = value.detach().float()
            used.append(name)
        elif name == FREQUENCY:
            reported[name] = "class frequencies of the training set: used for training only, told in the roles"
        elif name != TEXT:
            reported[name] = next((why for pattern, why in _DERIVED if re.search(pattern, name)), "unknown: not used")
    model = _load(config, ours, reported, num_classes=text_DC.shape[1] - 1)
    frequency = tensors.get(FREQUENCY)
    return MappedCheckpoint(
        model=model,
        has_training_boxes=() if frequency is None else tuple((frequency > 0).tolist()),
        used=tuple(name for name in used if name not in reported),
        reported=reported,
    )


def _load(
    config: DetectorConfig, ours: dict[str, Tensor], reported: dict[str, str], *, num_classes: int
) -> TwoStageDetector:
    model = empty_detector(config, num_classes)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(set(ours) - set(expected)):
        reported[official_name(name, config)] = "no such part in this detector: not used"
        del ours[name]
    for name, shape in expected.items():
        if name not in ours:
            raise CheckpointError(
                f"{config.name}: the file lacks {official_name(name, config)}: it is truncated or of another model"
            )
        if tuple(ours[name].shape) != shape:
            raise CheckpointError(
                f"{config.name}: {official_name(name, config)} is {tuple(ours[name].shape)} instead of {shape}: "
                "the file is of another model"
            )
    model.load_state_dict(ours, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
    return model.eval()


def _recognise(tensors: Mapping[str, Tensor]) -> DetectorConfig:
    projection = tensors.get(_PREDICTOR + "cls_score.linear.weight")
    if projection is None or TEXT not in tensors:
        raise CheckpointError(
            "not a detector of the paper (no text embeddings or projection in its box predictor): "
            "convert takes coco_ovd_*.pth and lvis_ovd_*.pth"
        )
    pyramid = any(name.startswith("backbone.bottom_up.") for name in tensors)
    config = lvis_r50_fpn() if pyramid else coco_r50_c4()
    transfer = None
    if _PREDICTOR + "cls_score.fc1.weight" in tensors:
        transfer = TransferConfig(
            hidden=len(tensors[_PREDICTOR + "cls_score.fc1.weight"]),
            residual_hidden=len(tensors[_PREDICTOR + "cls_score.fc3.weight"]),
        )
    bias = tensors.get(_PREDICTOR + "cls_score.cls_bias")
    has_masks = any(name.startswith("roi_heads.mask_head.") for name in tensors)
    return replace(
        config,
        projection=replace(config.projection, embedding_dim=len(projection), transfer=transfer),
        classifier=replace(config.classifier, bias=None if bias is None else -4.6),
        mask=config.mask if has_masks else None,
    )


def official_name(ours: str, config: DetectorConfig) -> str:
    """The official name of one of our tensors; our own name where there is none."""
    body = "backbone.bottom_up." if config.backbone.pyramid else "backbone."
    back: tuple[tuple[str, str], ...] = (
        (r"^backbone\.(body\.)?stem\.", body + "stem.conv1."),
        (r"^backbone\.(body\.)?stages\.(\d)\.", body + r"res\2."),
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
    )
    for pattern, official in back:
        if re.match(pattern, ours):
            return re.sub(pattern, official, ours, count=1)
    numbered: tuple[tuple[str, str, int], ...] = (
        (r"^backbone\.lateral\.(\d)\.", "backbone.fpn_lateral{}.", 2),
        (r"^backbone\.output\.(\d)\.", "backbone.fpn_output{}.", 2),
        (r"^roi_head\.trunk\.layers\.(\d)\.", "roi_heads.box_head.fc{}.", 1),
        (r"^mask_head\.convs\.(\d)\.", "roi_heads.mask_head.mask_fcn{}.", 1),
    )
    for pattern, official, first in numbered:
        found = re.match(pattern, ours)
        if found:
            return official.format(int(found[1]) + first) + ours[found.end() :]
    return ours


def read_official(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`; objects other than tensors and plain containers are refused, never executed.

    Raises CheckpointError for a missing, truncated, foreign or malicious file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give an official .pth")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        reason = _refused_global(str(error))
        raise CheckpointError(f"{path} {reason}: nothing in it was executed; get the file from its authors") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is truncated or no PyTorch file ({line}): download it again") from None
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds no table of tensors: give an official .pth")
    return {str(name).removeprefix("module."): value for name, value in tensors.items()}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _refused_global(message: str) -> str:
    found = re.search(r"Unsupported (?:global|operand)[^\n]*?([\w.]+\.[\w.]+)", message)
    if found or "Unsupported" in message:
        what = f" ({found[1]})" if found else ""
        return f"asks for code{what} that a weights file has no need of"
    return "is truncated or no PyTorch file"
