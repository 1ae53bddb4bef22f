"""The detector a stage starts with: new, on a pretrained backbone, or from the checkpoint of an earlier stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ovbridge.console import stderr
from ovbridge.detector import DetectorConfig, TwoStageDetector, build_detector, load_detector, to_weight_transfer
from ovbridge.detector.pretrained import fitted_to, load_backbone, read_backbone_header
from ovbridge.errors import CheckpointError, ConfigError
from ovbridge.training.stages import Stage, check_initial_stage, freeze, set_training_mode
from ovbridge.vocabulary import TextBank

_TEXT = "roi_head.classifier.text_KD"
PRETRAINED = ("backbone.", "roi_head.trunk.", "roi_head.box_regressor.")
"""Parts of a detector that may start from a file of pretrained weights."""


def starting_detector(
    config: DetectorConfig, stage: Stage, bank: TextBank, init: Path | None, *, seed: int
) -> TwoStageDetector:
    """The detector before the first step, on the CPU, in training mode, with the frozen parts frozen.

    The text bank sets the width of the embeddings. Raises ConfigError where `init` is missing or is the checkpoint
    of another stage, text encoder or architecture.
    """
    config = fitted_to(config, init)
    width = replace(config.projection, embedding_dim=bank.dim)
    linear = replace(config, projection=replace(width, transfer=None))
    model = build_detector(linear, bank.embeddings_KD, seed=seed)
    if stage.init_from == "nothing":
        _load_pretrained(model, stage, init)
    else:
        _load_stage(model, stage, bank, init)
    if stage.projection == "transfer":
        model = to_weight_transfer(model, config.projection.transfer, seed=seed)
    freeze(model, stage.frozen)
    set_training_mode(model, stage.batch_norm)
    return model


def _load_stage(model: TwoStageDetector, stage: Stage, bank: TextBank, init: Path | None) -> None:
    if init is None:
        raise ConfigError(f"stage {stage.name} starts from a {stage.init_from!r} checkpoint: give it with --init")
    before, metadata = load_detector(init)
    check_initial_stage(stage, metadata.stage, str(init))
    if metadata.text_encoder != bank.encoder:
        raise ConfigError(
            f"{init} was trained on text of {metadata.text_encoder!r}, the text bank is of {bank.encoder!r}: "
            "use the same text encoder in every stage"
        )
    if before.config.projection.transfer is not None and stage.projection == "transfer":
        raise ConfigError(f"{init} has transferred weights already: start from a checkpoint with a linear projection")
    weights = {name: value for name, value in before.state_dict().items() if name != _TEXT}
    _copy_exactly(model, weights, str(init))


def _copy_exactly(model: TwoStageDetector, weights: dict[str, Tensor], source: str) -> None:
    expected = {name: value.shape for name, value in model.state_dict().items() if name != _TEXT}
    for name in expected | weights:
        if name not in expected or name not in weights or weights[name].shape != expected[name]:
            raise ConfigError(
                f"{source} is another architecture: {name} is {_shape(weights, name)} there, "
                f"{_shape(model.state_dict(), name)} here: use the recipe that made it, or the same overrides"
            )
    model.load_state_dict(weights, strict=False)


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "absent"


def _load_pretrained(model: TwoStageDetector, stage: Stage, init: Path | None) -> None:
    """Copy the backbone's tensors out of any safetensors file that names them as a detector of ours does."""
    if init is None:
        if model.config.backbone.freeze_at > 0:
            raise ConfigError(
                f"stage {stage.name} freezes the first layers of its backbone, so it needs pretrained ones: give a "
                "safetensors file with --init, or --set detector.backbone.freeze_at=0"
            )
        return
    if read_backbone_header(init) is not None:
        loaded = load_backbone(model, init)
        left = f", no place for {len(loaded.unused)} ({loaded.unused[0]}, ...)" if loaded.unused else ""
        stderr.print(f"{loaded.used} pretrained tensors from {init}{left}")
        return
    stderr.print(f"{copy_pretrained(model, init)} pretrained tensors from {init}")


def copy_pretrained(model: TwoStageDetector, source: Path) -> int:
    """Copy the backbone and the region trunk out of a safetensors file that names them as a detector of ours does.

    Returns how many tensors fitted; raises CheckpointError for another kind of file and where none fits.
    """
    try:
        tensors = load_file(source)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{source} is not a safetensors file ({error}): convert it with 'ovbridge convert'"
        ) from None
    here = model.state_dict()
    fitting = {
        name: value
        for name, value in tensors.items()
        if name.startswith(PRETRAINED) and name in here and here[name].shape == value.shape
    }
    if not fitting:
        raise CheckpointError(
            f"{source} holds no tensor of this backbone (such as {next(iter(here))}): convert it first"
        )
    with torch.no_grad():
        model.load_state_dict(fitting, strict=False)
    return len(fitting)
