"""What a run needs before its first step: its losses, a measure of its memory, the options of the loop applied."""

from __future__ import annotations

import types
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovbridge.console import stderr
from ovbridge.data.transforms import TrainTransform
from ovbridge.detector import TwoStageDetector
from ovbridge.detector.backbone import ResNet
from ovbridge.device import autocast, training_precision
from ovbridge.errors import ConfigError
from ovbridge.run_config import RunConfig
from ovbridge.structures import BoxLabels, ImageLabels, RegionTargets, TrainingImage
from ovbridge.training.inputs import TrainingInputs
from ovbridge.training.loop import LossFunction
from ovbridge.training.loss_weights import FederatedLoss
from ovbridge.training.memory import available_memory, is_out_of_memory, memory_line, memory_need
from ovbridge.training.named_regions import NamedRegions
from ovbridge.training.objectives import detection_losses, image_label_losses
from ovbridge.training.prefetch import Batch
from ovbridge.training.ranks import Peers

TYPICAL_REGIONS = 5
"""Regions a teacher keeps of an image."""
TYPICAL_ASPECT = 4 / 3


def loss_function(config: RunConfig, inputs: TrainingInputs) -> LossFunction:
    """The losses of the stage as a function of (model, batch, generator)."""
    weights = config.losses
    if not config.stage.region_distillation:
        weights = replace(weights, rkd_l1=0.0, rkd_relation=0.0, rkd_barlow=0.0, rkd_info_nce=0.0)
    image_counts_K = torch.from_numpy(inputs.coco.image_counts())
    trained_columns_K = image_counts_K > 0
    federated = None
    if config.federated_classes is not None:
        federated = FederatedLoss(frequency_weight_K=image_counts_K.float().sqrt(), classes=config.federated_classes)

    naming = _naming(config, inputs, trained_columns_K)

    def losses(model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(model, TwoStageDetector)
        if batch.kind == "cls":
            return image_label_losses(model, batch.images, weights=weights, generator=generator, share=batch.share)
        return detection_losses(
            model,
            batch.images,
            weights=weights,
            trained_columns_K=trained_columns_K,
            federated=federated,
            naming=naming,
            generator=generator,
            share=batch.share,
        )

    return losses


def _naming(config: RunConfig, inputs: TrainingInputs, trained_columns_K: Tensor) -> NamedRegions | None:
    if config.losses.named_regions is None or not config.stage.region_distillation:
        return None
    labelled_K = torch.zeros_like(trained_columns_K)
    labelled_K[sorted({k for image in inputs.tagged for k in image.class_ids})] = True
    return NamedRegions(candidates_K=labelled_K & ~trained_columns_K, probability=config.losses.named_regions)


def prepare_model(model: TwoStageDetector, config: RunConfig, peers: Peers) -> None:
    """Apply the options of the loop that change how a model computes, not what; in place.

    Raises ConfigError for options that exclude each other.
    """
    trains_norm = config.stage.batch_norm == "train" and config.detector.backbone.norm == "batch"
    if config.loop.checkpoint_activations:
        if trains_norm:
            raise ConfigError(
                "loop.checkpoint_activations computes the backbone twice, which would count batch statistics twice: "
                "set stage.batch_norm=frozen, or use loop.accumulate to save memory"
            )
        _checkpoint_stages(model)
    if not peers.alone and config.loop.sync_batch_norm and trains_norm:
        from ovbridge.training.peer_norm import share_batch_norm

        share_batch_norm(model)
    if config.loop.compile:
        # In place and part by part: the whole detector has data-dependent branches that break the graph.
        model.backbone.compile()
        model.roi_head.trunk.compile()


def print_memory_line(config: RunConfig, inputs: TrainingInputs, model: TwoStageDetector, *, world_size: int) -> None:
    """Measure the memory of a step with one image of each kind, and say what it comes to."""
    losses = loss_function(config, inputs)
    precision = training_precision(model.device, config.loop.precision)
    kinds = [("det", config.batches.det, config.batches.det_transform)]
    if config.stage.image_labels:
        kinds.append(("cls", config.batches.cls, config.batches.cls_transform))
    lines = []
    for kind, images, transform in kinds:
        batch = Batch(kind="det" if kind == "det" else "cls", images=[_typical_image(config, model, transform)])

        def forward(probe: nn.Module, batch: Batch = batch) -> dict[str, Tensor]:
            with autocast(model.device, precision):
                return losses(probe, batch, torch.Generator().manual_seed(0))

        try:
            need = memory_need(
                model,
                forward,
                images=1,
                optimizer=config.optim.optimizer,
                averaged=config.loop.ema_decay is not None,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return  # The first step will say what to do.
        in_a_pass = -(-images // (world_size * config.loop.accumulate))
        lines.append((need.of(in_a_pass), memory_line(need, in_a_pass, available_memory(model.device))))
    stderr.print(max(lines)[1], soft_wrap=True)


def _typical_image(config: RunConfig, model: TwoStageDetector, transform: TrainTransform) -> TrainingImage:
    short = max(transform.short_sides)
    long = min(round(short * TYPICAL_ASPECT), transform.max_long_side)
    box = torch.tensor([[0.25 * long, 0.25 * short, 0.75 * long, 0.75 * short]])
    classes = torch.zeros(1, dtype=torch.int64)
    masks = torch.ones(1, short, long, dtype=torch.bool) if config.detector.mask is not None else None
    regions = None
    if config.stage.region_distillation:
        width = model.roi_head.classifier.text_KD.shape[1]
        regions = RegionTargets(
            boxes_xyxy=box.repeat(TYPICAL_REGIONS, 1),
            embeddings=torch.ones(TYPICAL_REGIONS, width),
            scores=torch.ones(TYPICAL_REGIONS),
        )
    return TrainingImage(
        image_id=0,
        pixels=torch.full((3, short, long), 128, dtype=torch.uint8),
        boxes=BoxLabels(boxes_xyxy=box, class_ids=classes, masks=masks),
        labels=ImageLabels(boxes_xyxy=box, class_ids=classes, scores=torch.ones(1)),
        regions=regions,
    )


def _checkpoint_stages(model: TwoStageDetector) -> None:
    body = getattr(model.backbone, "body", model.backbone)
    assert isinstance(body, ResNet)
    for stage in body.stages.values():
        # On the instance, so that names of parameters and what is saved stay as they are.
        stage.forward = types.MethodType(_checkpointed, stage)


def _checkpointed(stage: nn.Sequential, x: Tensor) -> Tensor:
    computed: Tensor = checkpoint(nn.Sequential.forward, stage, x, use_reentrant=False)
    return computed
