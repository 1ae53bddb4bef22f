"""From a RunConfig to a trained detector: opens the inputs, composes the parts, runs the loop, writes the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovbridge import __version__
from ovbridge.config_tree import to_json
from ovbridge.console import stderr
from ovbridge.detector import DetectorMetadata, TwoStageDetector, save_detector
from ovbridge.device import default_device
from ovbridge.run_config import FREE_FIELDS, RunConfig
from ovbridge.training.batches import build_batches
from ovbridge.training.inputs import TrainingInputs, fingerprint, open_inputs
from ovbridge.training.loop import LossFunction, TrainingParts, train
from ovbridge.training.objectives import FederatedLoss, detection_losses, image_label_losses
from ovbridge.training.optim import build_optimizer
from ovbridge.training.prefetch import Batch
from ovbridge.training.run_folder import RESULT_FILE, check_run_folder, claimed_run
from ovbridge.training.start import starting_detector

FORMAT = "ovbridge-run-1"


def train_run(config: RunConfig, out: Path, *, device: torch.device | None = None) -> Path:
    """Train what `config` describes into `out` and return `out/detector.safetensors`.

    Called again after a kill it goes on from the newest checkpoint, called on a finished run it returns at once.
    Raises ConfigError where `out` holds another run, TrainingInterrupted after Ctrl-C (state saved), and the
    OVBridgeError of whatever input is missing or does not fit.
    """
    inputs = open_inputs(config.data, config.stage, with_masks=config.detector.mask is not None)
    with claimed_run(out, run_record(config, inputs), may_differ=FREE_FIELDS):
        result = out / RESULT_FILE
        if result.exists():
            stderr.print(f"{result} is there already: this run is finished", markup=False)
            return result
        device = device or default_device()
        batches = build_batches(inputs, config.data, config.stage, config.batches, seed=config.seed)
        init = Path(config.init) if config.init else None
        model = starting_detector(config.detector, config.stage, inputs.bank, init, seed=config.seed).to(device)
        if config.loop.channels_last:
            model = model.to(memory_format=torch.channels_last)
        parts = TrainingParts(
            model=model,
            optimizer=build_optimizer(model, config.optim),
            batches=batches,
            losses=loss_function(config, inputs),
        )
        train(
            parts,
            out,
            config=config.loop,
            optim=config.optim,
            seed=config.seed,
            stage=config.stage.name,
            resume_hint="repeat the same command to go on",
        )
        save_detector(result, model, _metadata(config, inputs))
    return result


def run_record(config: RunConfig, inputs: TrainingInputs) -> dict[str, Any]:
    """What makes a run this run and no other, for `config.json`: settings, and the contents of what it reads."""
    data, stage = config.data, config.stage
    return {
        "format": FORMAT,
        "version": __version__,
        "config": to_json(config),
        "inputs": {
            "vocabulary": inputs.vocabulary.to_json(),
            "text_bank": inputs.bank.digest(),
            "annotations": fingerprint(data.at(data.annotations)),
            "label_annotations": fingerprint(data.at(data.label_annotations)) if stage.image_labels else None,
            "init": fingerprint(Path(config.init)) if config.init else None,
            "teachers": inputs.origins(),
        },
    }


def loss_function(config: RunConfig, inputs: TrainingInputs) -> LossFunction:
    """The losses of the stage as a function of (model, batch, generator)."""
    weights = config.losses
    if not config.stage.region_distillation:
        weights = replace(weights, rkd_l1=0.0, rkd_relation=0.0)
    image_counts_K = torch.from_numpy(inputs.coco.image_counts())
    trained_columns_K = image_counts_K > 0
    federated = None
    if config.federated_classes is not None:
        federated = FederatedLoss(frequency_weight_K=image_counts_K.float().sqrt(), classes=config.federated_classes)

    def losses(model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(model, TwoStageDetector)
        if batch.kind == "cls":
            return image_label_losses(model, batch.images, weights=weights)
        return detection_losses(
            model,
            batch.images,
            weights=weights,
            trained_columns_K=trained_columns_K,
            federated=federated,
            generator=generator,
        )

    return losses


def _metadata(config: RunConfig, inputs: TrainingInputs) -> DetectorMetadata:
    return DetectorMetadata(
        stage=config.stage.name,
        vocabulary=tuple(inputs.vocabulary.to_json()),
        text_encoder=inputs.bank.encoder,
        templates=inputs.bank.templates,
        bank_digest=inputs.bank.digest(),
        recipe=config.recipe,
        versions={"ovbridge": __version__},
        extra={
            "test_size": list(config.test_size),
            "seed": config.seed,
            "steps": config.loop.steps,
            "teachers": inputs.origins(),
        },
    )


def plan_run(config: RunConfig, out: Path) -> dict[str, Any]:
    """What `train_run` would do, with every input opened and checked but nothing written; JSON-ready.

    Raises as `train_run` does.
    """
    inputs = open_inputs(config.data, config.stage, with_masks=config.detector.mask is not None)
    check_run_folder(out, run_record(config, inputs), may_differ=FREE_FIELDS)
    batches = build_batches(inputs, config.data, config.stage, config.batches, seed=config.seed)
    init = Path(config.init) if config.init else None
    model = starting_detector(config.detector, config.stage, inputs.bank, init, seed=config.seed)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "out": str(out),
        "finished": (out / RESULT_FILE).exists(),
        "images": dict(zip(("det", "cls"), batches.state_dict()["images"], strict=False)),
        "classes": {role: len(inputs.vocabulary.columns(role)) for role in ("base", "novel", "unused")},
        "text_encoder": inputs.bank.encoder,
        "teachers": inputs.origins(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning_parameters": learning,
    }
