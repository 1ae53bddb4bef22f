"""The two objectives on a small detector: which losses there are, what they weigh, what they train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ovbridge.detector import TwoStageDetector, build_detector, losses, to_weight_transfer, world_r18_fpn
from ovbridge.detector.config import MaskConfig
from ovbridge.errors import ConfigError
from ovbridge.structures import BoxLabels, ImageLabels, RegionTargets, TrainingImage
from ovbridge.training.loss_weights import FederatedLoss, LossWeights
from ovbridge.training.named_regions import NamedRegions
from ovbridge.training.objectives import detection_losses, image_label_losses
from ovbridge.training.ranks import Peers
from ovbridge.training.share import BatchShare, shares_of_step

CLASSES = 5
DETECTION = {"rpn_objectness", "rpn_box", "classification", "box"}
DISTILLATION = {"rkd_l1", "rkd_relation"}
BOXES = torch.tensor([[5.0, 5, 40, 50], [30, 20, 90, 60]])


@pytest.fixture
def model() -> TwoStageDetector:
    bank = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(7))
    return build_detector(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), bank).train()


def image(
    number: int = 0, *, boxes: bool = False, labels: bool = False, regions: bool = False, masks: bool = False
) -> TrainingImage:
    generator = torch.Generator().manual_seed(number)
    shapes = torch.zeros(2, 64, 96, dtype=torch.bool)
    shapes[:, 20:40, 30:60] = True
    return TrainingImage(
        image_id=number,
        pixels=torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=generator),
        boxes=BoxLabels(boxes_xyxy=BOXES, class_ids=torch.tensor([0, 2]), masks=shapes if masks else None)
        if boxes
        else None,
        labels=ImageLabels(boxes_xyxy=BOXES[:1], class_ids=torch.tensor([4]), scores=torch.ones(1)) if labels else None,
        regions=RegionTargets(
            boxes_xyxy=BOXES, embeddings=torch.randn(2, 8, generator=generator) * 10, scores=torch.ones(2)
        )
        if regions
        else None,
    )


def total(found: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(found.values())).sum()


def test_what_an_image_does_not_carry_is_absent(model: TwoStageDetector, generator: torch.Generator) -> None:
    weights = LossWeights()
    assert set(detection_losses(model, [image(boxes=True)], weights=weights, generator=generator)) == DETECTION
    both = detection_losses(model, [image(boxes=True, regions=True)], weights=weights, generator=generator)
    assert set(both) == DETECTION | DISTILLATION
    assert set(image_label_losses(model, [image(labels=True)], weights=weights)) == {"image_label"}
    assert set(image_label_losses(model, [image(regions=True)], weights=weights)) == DISTILLATION
    assert image_label_losses(model, [image()], weights=weights) == {}
    no_distillation = replace(weights, rkd_l1=0.0, rkd_relation=0.0)
    found = detection_losses(model, [image(boxes=True, regions=True)], weights=no_distillation, generator=generator)
    assert set(found) == DETECTION


def test_weights_scale_their_loss_alone(model: TwoStageDetector) -> None:
    model.eval()
    batch = [image(boxes=True, regions=True), image(1, boxes=True, regions=True)]

    def losses(weights: LossWeights) -> dict[str, Tensor]:
        return detection_losses(model, batch, weights=weights, generator=torch.Generator().manual_seed(1))

    once = losses(LossWeights())
    twice = losses(LossWeights(rkd_l1=30.0, classification=2.0))
    for name in once:
        factor = 2.0 if name in ("rkd_l1", "classification") else 1.0
        assert twice[name].item() == pytest.approx(factor * once[name].item(), rel=1e-5)
    paper = losses(LossWeights(relation_row_norm="l2", relation_reduction="mean_square"))
    assert paper["rkd_relation"].item() != pytest.approx(once["rkd_relation"].item(), rel=1e-2)


def test_columns_without_training_boxes_get_no_gradient(model: TwoStageDetector, generator: torch.Generator) -> None:
    model.roi_head.classifier.text_KD.requires_grad_()
    trained = torch.tensor([True, False, True, True, False])
    found = detection_losses(
        model, [image(boxes=True)], weights=LossWeights(), trained_columns_K=trained, generator=generator
    )
    found["classification"].backward()
    gradient = model.roi_head.classifier.text_KD.grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=1) > 0).tolist() == trained.tolist()


def test_federated_loss_counts_only_drawn_columns(model: TwoStageDetector, generator: torch.Generator) -> None:
    model.roi_head.classifier.text_KD.requires_grad_()
    # Classes 0, 2 and background are there; one more is drawn, and only class 3 can be.
    federated = FederatedLoss(frequency_weight_K=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), classes=4)
    found = detection_losses(
        model, [image(boxes=True)], weights=LossWeights(), federated=federated, generator=generator
    )
    found["classification"].backward()
    gradient = model.roi_head.classifier.text_KD.grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=1) > 0).tolist() == [True, False, True, True, False]


def test_every_trainable_parameter_learns(model: TwoStageDetector, generator: torch.Generator) -> None:
    found = detection_losses(model, [image(boxes=True, regions=True)], weights=LossWeights(), generator=generator)
    total(found).backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


def test_distillation_leaves_the_transferred_layer_alone(model: TwoStageDetector) -> None:
    transferred = to_weight_transfer(model)
    total(image_label_losses(transferred, [image(regions=True)], weights=LossWeights())).backward()
    projection = transferred.roi_head.projection
    assert all(p.grad is None for p in projection.parameters())
    assert transferred.roi_head.trunk.layers[0].weight.grad is not None  # type: ignore[union-attr]
    transferred.zero_grad()
    through = LossWeights(rkd_through="classification")
    total(image_label_losses(transferred, [image(regions=True)], weights=through)).backward()
    assert projection.linear.weight.grad is None
    assert all(p.grad is not None for p in projection.parameters() if p.requires_grad)


def test_image_label_step_does_not_touch_box_and_proposal_heads(model: TwoStageDetector) -> None:
    total(image_label_losses(model, [image(labels=True, regions=True)], weights=LossWeights())).backward()
    untouched = [*model.rpn.parameters(), *model.roi_head.box_regressor.parameters()]
    assert all(p.grad is None for p in untouched)


def test_an_image_without_objects_trains_as_background(model: TwoStageDetector, generator: torch.Generator) -> None:
    found = detection_losses(model, [image()], weights=LossWeights(), generator=generator)
    assert found["box"].item() == found["rpn_box"].item() == 0.0
    assert found["classification"].item() > 0
    total(found).backward()


def test_masks_train_where_there_are_some(generator: torch.Generator) -> None:
    config = replace(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), mask=MaskConfig(channels=8, convolutions=1))
    model = build_detector(config, torch.eye(CLASSES, 8)).train()
    found = detection_losses(model, [image(boxes=True, masks=True)], weights=LossWeights(), generator=generator)
    # A new mask head says 0.5 everywhere.
    assert found["mask"].item() == pytest.approx(0.6931, abs=0.01)
    found["mask"].backward()
    assert model.mask_head is not None
    assert model.mask_head.predictor.weight.grad is not None
    assert "mask" not in detection_losses(model, [image(boxes=True)], weights=LossWeights(), generator=generator)
    (raw,) = model.eval().detect([image().pixels])
    assert raw.mask_probabilities is not None
    assert raw.mask_probabilities.shape[1:] == (28, 28)


def test_bf16_autocast_keeps_losses_in_float32(model: TwoStageDetector, generator: torch.Generator) -> None:
    batch = [image(boxes=True, regions=True)]
    plain = detection_losses(model, batch, weights=LossWeights(), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = detection_losses(model, batch, weights=LossWeights(), generator=torch.Generator().manual_seed(1))
    assert all(value.dtype == torch.float32 for value in half.values())
    total(half).backward()
    assert half["rkd_l1"].item() == pytest.approx(plain["rkd_l1"].item(), rel=0.05)


def test_training_lowers_the_loss(model: TwoStageDetector) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = [image(boxes=True, regions=True)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.003, momentum=0.9)
    history = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = total(detection_losses(model, batch, weights=LossWeights(rkd_relation=1.0), generator=generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append(loss.item())
    assert min(history[-3:]) < 0.8 * history[0]


def test_parts_of_a_pseudo_box_are_taught_as_no_class(model: TwoStageDetector) -> None:
    model.roi_head.classifier.text_KD.requires_grad_()
    only_parts = LossWeights(image_label=0.0, image_label_parts=1.0)
    found = image_label_losses(
        model, [image(labels=True), image(1)], weights=only_parts, generator=torch.Generator().manual_seed(0)
    )
    assert set(found) == {"image_label_parts"}
    found["image_label_parts"].backward()
    text_KD = model.roi_head.classifier.text_KD
    assert text_KD.grad is not None
    # A step against the gradient lowers every class's score on them, that of the label too.
    with torch.no_grad():
        text_KD -= 0.1 * text_KD.grad
    after = image_label_losses(
        model, [image(labels=True)], weights=only_parts, generator=torch.Generator().manual_seed(0)
    )
    assert after["image_label_parts"].item() < found["image_label_parts"].item()


def test_refinement_moves_loose_pseudo_boxes_back(model: TwoStageDetector) -> None:
    weights = LossWeights(image_label_jitter=0.2, image_label_refine=2.0)

    def losses(weights: LossWeights) -> dict[str, Tensor]:
        return image_label_losses(
            model, [image(labels=True)], weights=weights, generator=torch.Generator().manual_seed(0)
        )

    found = losses(weights)
    assert set(found) == {"image_label", "image_label_refine"}
    # The regressor starts near zero, so the loss is about the sum of the targets, and none without a move.
    assert found["image_label_refine"].item() > 0.5
    still = losses(replace(weights, image_label_jitter=0.0))
    assert still["image_label_refine"].item() < 0.1
    found["image_label_refine"].backward()
    assert model.roi_head.box_regressor.fc2.weight.grad is not None


@pytest.mark.parametrize("reach", [-0.1, 0.5, float("nan")])
def test_a_reach_that_could_turn_a_box_over_is_refused(reach: float) -> None:
    with pytest.raises(ConfigError, match=r"losses\.image_label_jitter is"):
        LossWeights(image_label_jitter=reach)


def test_named_regions_teach_a_class_without_boxes(model: TwoStageDetector) -> None:
    model.roi_head.classifier.text_KD.requires_grad_()
    trained = torch.tensor([True, False, True, True, False])
    picture = image(boxes=True)
    text_KD = model.roi_head.classifier.text_KD.detach()
    regions = RegionTargets(
        boxes_xyxy=torch.tensor([[60.0, 5, 94, 30]]), embeddings=text_KD[4:5] * 3, scores=torch.ones(1)
    )
    naming = NamedRegions(candidates_K=torch.tensor([False, True, False, False, True]), probability=0.5)
    weights = LossWeights(rkd_l1=0.0, rkd_relation=0.0)

    def columns_with_gradient(naming: NamedRegions | None) -> list[bool]:
        found = detection_losses(
            model,
            [replace(picture, regions=regions)],
            weights=weights,
            trained_columns_K=trained,
            naming=naming,
            generator=torch.Generator().manual_seed(0),
        )
        (gradient,) = torch.autograd.grad(found["classification"], model.roi_head.classifier.text_KD)
        return (gradient.abs().sum(dim=1) > 0).tolist()

    assert columns_with_gradient(None) == [True, False, True, True, False]
    # Class 4 is named by CLIP; class 1 could be but is not.
    assert columns_with_gradient(naming) == [True, False, True, True, True]


def test_named_regions_do_not_count_as_masked_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), mask=MaskConfig(channels=8, convolutions=1))
    bank = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(7))
    model = build_detector(config, bank).train()
    named = RegionTargets(
        boxes_xyxy=torch.tensor([[60.0, 5, 94, 30]]),
        embeddings=model.roi_head.classifier.text_KD[4:5] * 3,
        scores=torch.ones(1),
    )
    picture = replace(image(boxes=True, masks=True), regions=named)
    naming = NamedRegions(candidates_K=torch.tensor([False, False, False, False, True]), probability=0.5)
    told, sampled, learning = list[int](), list[int](), list[int]()
    weigh, mask_loss = BatchShare.region_weights, losses.mask_loss

    def count(share: BatchShare, weights: LossWeights, images: object, found: Any, masked: int) -> LossWeights:
        told.append(masked)
        sampled.append(sum(int((regions.class_ids < CLASSES).sum()) for regions in found))
        return weigh(share, weights, images, found, masked)  # type: ignore[arg-type]

    def learn(logits: Tensor, targets: Tensor) -> Tensor:
        learning.append(len(targets))
        return mask_loss(logits, targets)

    monkeypatch.setattr(BatchShare, "region_weights", count)
    monkeypatch.setattr(losses, "mask_loss", learn)
    ((part, share),) = shares_of_step([picture], passes=1, peers=Peers(), seed=0, step=0)
    detection_losses(model, part, weights=LossWeights(), naming=naming, share=share)
    assert told == learning
    assert told[0] < sampled[0]
