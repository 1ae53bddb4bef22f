"""The two training objectives: L_RKD on images with boxes, alpha L_pms (+ distillation) on images with labels.

Legend: R regions, F region feature, D embedding, K classes. Eq. 3 and 5 of arXiv 2207.03482 as the released code
computes them. Each function returns named, already weighted losses; what does not apply is absent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.detector import losses
from ovbridge.detector.boxes import encode_boxes
from ovbridge.detector.detector import EncodedImages, TwoStageDetector
from ovbridge.detector.distillation_losses import barlow_twins_loss, info_nce_loss
from ovbridge.detector.mask_head import mask_targets
from ovbridge.detector.pooling import batch_rois
from ovbridge.detector.rpn import DELTA_WEIGHTS, AnchorPredictions, BoxProposals
from ovbridge.detector.sampling import (
    IGNORED,
    POSITIVE,
    Choose,
    SampledRegions,
    random_choice,
    sample_anchors,
    sample_regions,
)
from ovbridge.structures import BoxLabels, TrainingImage
from ovbridge.training.label_boxes import own_label_boxes
from ovbridge.training.loss_weights import FederatedLoss, LossWeights
from ovbridge.training.named_regions import NamedRegions, named_boxes, near_columns, with_named
from ovbridge.training.pseudo_regions import moved, parts_of
from ovbridge.training.share import BatchShare

Randomness = torch.Generator | Sequence[torch.Generator] | None
"""One source for all images in turn, or one an image, or the global one."""


def detection_losses(
    model: TwoStageDetector,
    images: Sequence[TrainingImage],
    *,
    weights: LossWeights,
    trained_columns_K: Tensor | None = None,
    federated: FederatedLoss | None = None,
    naming: NamedRegions | None = None,
    generator: torch.Generator | None = None,
    choose: Choose = random_choice,
    share: BatchShare | None = None,
) -> dict[str, Tensor]:
    """Losses of a batch of images with boxes: proposal network, region head, masks, distillation.

    `trained_columns_K` [K] bool: classes that have training boxes; the others are never negatives.
    `naming` says which stored regions count as boxes beside the true ones; None where none do.
    `share` says which part of a larger batch these images are; None where they are all of it.
    Keys: rpn_objectness, rpn_box, classification, box, mask, rkd_l1, rkd_relation.
    """
    labels = [_labels(image, model.device) for image in images]
    masks = [label.masks for label in labels]
    named: list[BoxLabels] = []
    if naming is not None:
        text_KD = model.roi_head.classifier.text_KD
        named = [
            named_boxes(image.regions, label, naming, text_KD) for image, label in zip(images, labels, strict=True)
        ]
        labels = [with_named(label, own) for label, own in zip(labels, named, strict=True)]
    encoded = model.encode([image.pixels for image in images], share.padded_hw if share else None)
    predictions = model.rpn(encoded.features)
    source: Randomness = generator
    if share is not None:
        source, weights = share.generators, share.proposal_weights(weights, images)
    result = proposal_losses(model, predictions, labels, weights=weights, generator=source, choose=choose)
    limits = model.config.rpn
    proposals = model.rpn.select(
        predictions, encoded.sizes, pre_nms=limits.pre_nms_train, post_nms=limits.post_nms_train
    )
    sampled = sample_batch(model, proposals, labels, generator=source, choose=choose)
    if share is not None:
        masked = sum(int(chosen.sum()) for chosen in _with_masks(sampled, masks, model.num_classes))
        weights = share.region_weights(weights, images, sampled, masked)
    columns = loss_columns(sampled, model.num_classes, trained_columns_K, federated, generator, share)
    if named and columns is not None:
        near = [near_columns(found, own, model.num_classes) for found, own in zip(sampled, named, strict=True)]
        columns = columns | torch.cat(near)
    result |= region_losses(model, encoded, sampled, images, masks, weights=weights, columns=columns, share=share)
    return result


def image_label_losses(
    model: TwoStageDetector,
    images: Sequence[TrainingImage],
    *,
    weights: LossWeights,
    generator: torch.Generator | None = None,
    share: BatchShare | None = None,
) -> dict[str, Tensor]:
    """Losses of a batch of images with pseudo-boxed labels: one box a label, and distillation.

    The proposal network does not run: the official code multiplies its loss by zero here.
    Keys: image_label, image_label_parts, image_label_refine, rkd_l1, rkd_relation.
    """
    source: Randomness = generator
    if share is not None:
        source, weights = share.generators, share.label_weights(weights, images)
    encoded = model.encode([image.pixels for image in images], share.padded_hw if share else None)
    if weights.image_label_box == "stored":
        boxes = [_boxes_or_none(image.labels.boxes_xyxy if image.labels else None, model.device) for image in images]
    else:
        boxes = own_label_boxes(model, encoded, images, weights.image_label_box)
    regions = [
        _taught_regions(own, hw, weights, _of_image(source, i))
        for i, (own, hw) in enumerate(zip(boxes, encoded.sizes, strict=True))
    ]
    region_RF, distilled_RF = _region_features(model, encoded, [torch.cat(r) for r in regions], images, weights)
    result: dict[str, Tensor] = {}
    if any(len(own) for own in boxes):
        is_part_R = torch.cat([_is_part(taught, parts) for taught, parts in regions])
        label_RF, part_RF = region_RF[~is_part_R], region_RF[is_part_R]
        if weights.image_label:
            class_ids = torch.cat([image.labels.class_ids for image in images if image.labels]).to(model.device)
            owner = batch_rois(boxes)[:, 0].long()
            logits = model.roi_head.classifier.with_background(model.roi_head.logits(label_RF))
            with _full_precision(model.device):
                result["image_label"] = weights.image_label * losses.image_label_loss(logits, class_ids, owner)
        if weights.image_label_parts:
            nothing = torch.full((len(part_RF),), model.num_classes, device=model.device)
            part_logits = model.roi_head.logits(part_RF)
            with _full_precision(model.device):
                missed = losses.classification_loss(part_logits, nothing)
            result["image_label_parts"] = weights.image_label_parts * missed
        if weights.image_label_refine:
            deltas = model.roi_head.box_regressor(label_RF)
            with _full_precision(model.device):
                goal = encode_boxes(
                    torch.cat([taught for taught, _ in regions]), torch.cat(boxes), model.config.roi.box_weights
                )
                refined = losses.box_regression_loss(deltas, goal, float(len(goal)))
            result["image_label_refine"] = weights.image_label_refine * refined
    return result | _distillation_losses(model, distilled_RF, images, weights, share)


def _taught_regions(
    boxes_L4: Tensor, image_hw: tuple[int, int], weights: LossWeights, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The regions of one image's labels [L, 4], and those that hold only a part of one [P, 4]."""
    taught = boxes_L4
    if weights.image_label_jitter:
        taught = moved(boxes_L4, weights.image_label_jitter, image_hw, generator)
    parts = parts_of(boxes_L4, generator) if weights.image_label_parts else boxes_L4[:0]
    return taught, parts


def _is_part(taught_L4: Tensor, parts_P4: Tensor) -> Tensor:
    return torch.arange(len(taught_L4) + len(parts_P4), device=taught_L4.device) >= len(taught_L4)


def proposal_losses(
    model: TwoStageDetector,
    predictions: AnchorPredictions,
    labels: Sequence[BoxLabels],
    *,
    weights: LossWeights,
    generator: Randomness = None,
    choose: Choose = random_choice,
) -> dict[str, Tensor]:
    """rpn_objectness and rpn_box of a batch, normalised by the number of sampled anchors."""
    config = model.config.rpn
    anchors = torch.cat(predictions.anchors)
    targets = [
        sample_anchors(
            anchors,
            label.boxes_xyxy,
            iou_thresholds=config.iou_thresholds,
            count=config.sampled_anchors,
            positive_fraction=config.positive_fraction,
            choose=choose,
            generator=_of_image(generator, i),
        )
        for i, label in enumerate(labels)
    ]
    label_BN = torch.stack([target.labels for target in targets])
    positive_BN = label_BN == POSITIVE
    true_deltas = [
        encode_boxes(anchors[positive], target.boxes_xyxy, DELTA_WEIGHTS)
        for positive, target in zip(positive_BN, targets, strict=True)
    ]
    normaliser = float(config.sampled_anchors * len(labels))
    sampled_BN = label_BN != IGNORED
    logits, deltas = torch.cat(predictions.logits, dim=1), torch.cat(predictions.deltas, dim=1)
    with _full_precision(model.device):
        objectness = losses.objectness_loss(logits[sampled_BN], positive_BN[sampled_BN], normaliser)
        box = losses.box_regression_loss(deltas[positive_BN], torch.cat(true_deltas), normaliser)
    return _weighted({"rpn_objectness": (weights.rpn_objectness, objectness), "rpn_box": (weights.rpn_box, box)})


@torch.no_grad()
def sample_batch(
    model: TwoStageDetector,
    proposals: Sequence[BoxProposals],
    labels: Sequence[BoxLabels],
    *,
    generator: Randomness = None,
    choose: Choose = random_choice,
) -> list[SampledRegions]:
    """The regions of each image that the head trains on."""
    config = model.config.roi
    return [
        sample_regions(
            found.boxes_xyxy,
            label.boxes_xyxy,
            label.class_ids,
            num_classes=model.num_classes,
            foreground_iou=config.foreground_iou,
            count=config.sampled_regions,
            foreground_fraction=config.foreground_fraction,
            choose=choose,
            generator=_of_image(generator, i),
        )
        for i, (found, label) in enumerate(zip(proposals, labels, strict=True))
    ]


def loss_columns(
    sampled: Sequence[SampledRegions],
    num_classes: int,
    trained_columns_K: Tensor | None,
    federated: FederatedLoss | None,
    generator: torch.Generator | None,
    share: BatchShare | None = None,
) -> Tensor | None:
    """[K] bool: the columns that count in this step's classification loss; None for all of them."""
    class_ids = torch.cat([regions.class_ids for regions in sampled])
    columns = None if trained_columns_K is None else trained_columns_K.to(class_ids.device)
    if federated is None:
        return columns
    if share is not None:
        class_ids = share.everyones_ids(class_ids, num_classes)
    drawn = losses.federated_columns(
        class_ids, federated.frequency_weight_K.to(class_ids.device), federated.classes, generator=generator
    )
    return drawn if columns is None else drawn & columns


def region_losses(
    model: TwoStageDetector,
    encoded: EncodedImages,
    sampled: Sequence[SampledRegions],
    images: Sequence[TrainingImage],
    masks: Sequence[Tensor | None],
    *,
    weights: LossWeights,
    columns: Tensor | None,
    share: BatchShare | None = None,
) -> dict[str, Tensor]:
    """Losses of given regions: classification, box, mask, and distillation of the images' own regions.

    `masks` [M, H, W] of each image's true boxes, or None; `columns` [K] or [R, K] bool: what counts in classification.
    """
    head = model.roi_head
    region_RF, distilled_RF = _region_features(
        model, encoded, [regions.boxes_xyxy for regions in sampled], images, weights
    )
    class_ids = torch.cat([regions.class_ids for regions in sampled])
    boxes = torch.cat([regions.boxes_xyxy for regions in sampled])
    true_boxes = torch.cat([regions.true_boxes_xyxy for regions in sampled])
    foreground = class_ids < model.num_classes
    logits, deltas = head.logits(region_RF), head.box_regressor(region_RF)
    with _full_precision(model.device):
        classification = losses.classification_loss(logits, class_ids, columns)
        true_deltas = encode_boxes(boxes[foreground], true_boxes[foreground], model.config.roi.box_weights)
        box = losses.box_regression_loss(deltas[foreground], true_deltas, float(len(class_ids)))
    result = _weighted({"classification": (weights.classification, classification), "box": (weights.box, box)})
    result |= _mask_losses(model, encoded, sampled, masks, weights)
    return result | _distillation_losses(model, distilled_RF, images, weights, share)


def _with_masks(sampled: Sequence[SampledRegions], masks: Sequence[Tensor | None], num_classes: int) -> list[Tensor]:
    """[R] bool of each image: the regions whose true box has a mask; empty where an image has boxes alone.

    Boxes that came by a name follow the true ones and have no mask.
    """
    known = [own for own in masks if own is not None]
    if len(known) < len(masks):
        return []
    return [
        (regions.class_ids < num_classes) & (regions.true_indices < len(own))
        for regions, own in zip(sampled, known, strict=True)
    ]


def _mask_losses(
    model: TwoStageDetector,
    encoded: EncodedImages,
    sampled: Sequence[SampledRegions],
    masks: Sequence[Tensor | None],
    weights: LossWeights,
) -> dict[str, Tensor]:
    foreground = _with_masks(sampled, masks, model.num_classes)
    if model.mask_head is None or not weights.mask or not any(chosen.any() for chosen in foreground):
        return {}
    known = [own for own in masks if own is not None]
    boxes = [regions.boxes_xyxy[chosen] for regions, chosen in zip(sampled, foreground, strict=True)]
    logits = model.mask_head(encoded.features, batch_rois(boxes))
    targets = [
        mask_targets(true[regions.true_indices[chosen]], own, logits.shape[-1])
        for true, regions, chosen, own in zip(known, sampled, foreground, boxes, strict=True)
        if len(own)
    ]
    with _full_precision(model.device):
        return {"mask": weights.mask * losses.mask_loss(logits, torch.cat(targets))}


def _region_features(
    model: TwoStageDetector,
    encoded: EncodedImages,
    boxes: Sequence[Tensor],
    images: Sequence[TrainingImage],
    weights: LossWeights,
) -> tuple[Tensor, Tensor]:
    """Features [R, F] of `boxes`, and those of the images' distillation regions, in one pass of the trunk."""
    distils = bool(weights.rkd_l1 or weights.rkd_relation or weights.rkd_barlow or weights.rkd_info_nce)
    regions = [
        _boxes_or_none(image.regions.boxes_xyxy if distils and image.regions else None, model.device)
        for image in images
    ]
    rois = torch.cat([batch_rois(boxes), batch_rois(regions)])
    features: Tensor = model.roi_head.trunk(encoded.features, rois)
    count = sum(len(b) for b in boxes)
    return features[:count], features[count:]


def _distillation_losses(
    model: TwoStageDetector,
    region_RF: Tensor,
    images: Sequence[TrainingImage],
    weights: LossWeights,
    share: BatchShare | None = None,
) -> dict[str, Tensor]:
    """Eq. 1 and 2 over all regions of the batch together."""
    gathers = share is not None and weights.relation_over == "all" and bool(weights.rkd_relation)
    # Where rows are gathered, a process without any must still take part.
    if len(region_RF) == 0 and not gathers:
        return {}
    head = model.roi_head
    targets = [image.regions.embeddings for image in images if image.regions is not None]
    targets = targets or [torch.zeros(0, head.classifier.text_KD.shape[1])]
    teacher_RD = F.normalize(torch.cat(targets).to(model.device, torch.float32), dim=1)
    through_linear = weights.rkd_through == "linear"
    student_RD = head.distilled_unit_embeddings(region_RF) if through_linear else head.unit_embeddings(region_RF)
    with _full_precision(model.device):
        result: dict[str, Tensor] = {}
        if weights.rkd_l1:
            result["rkd_l1"] = weights.rkd_l1 * losses.pointwise_l1(student_RD, teacher_RD)
        if weights.rkd_barlow:
            result["rkd_barlow"] = weights.rkd_barlow * barlow_twins_loss(student_RD, teacher_RD)
        if weights.rkd_info_nce:
            result["rkd_info_nce"] = weights.rkd_info_nce * info_nce_loss(student_RD, teacher_RD)
        if weights.rkd_relation:
            if share is not None and gathers:
                student_RD, teacher_RD = share.everyones_rows(student_RD), share.everyones_rows(teacher_RD)
            relation = weights.rkd_relation * losses.relation_loss(
                student_RD, teacher_RD, row_norm=weights.relation_row_norm, reduction=weights.relation_reduction
            )
            result["rkd_relation"] = share.for_all(relation) if share is not None and gathers else relation
        return result


def _of_image(generator: Randomness, i: int) -> torch.Generator | None:
    return generator if generator is None or isinstance(generator, torch.Generator) else generator[i]


def _weighted(terms: dict[str, tuple[float, Tensor]]) -> dict[str, Tensor]:
    return {name: factor * value for name, (factor, value) in terms.items() if factor}


def _full_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)


def _boxes_or_none(boxes: Tensor | None, device: torch.device) -> Tensor:
    return torch.zeros((0, 4), device=device) if boxes is None else boxes.to(device, torch.float32)


def _labels(image: TrainingImage, device: torch.device) -> BoxLabels:
    if image.boxes is None:
        return BoxLabels(
            boxes_xyxy=torch.zeros((0, 4), device=device),
            class_ids=torch.zeros(0, dtype=torch.int64, device=device),
        )
    masks = image.boxes.masks
    return BoxLabels(
        boxes_xyxy=image.boxes.boxes_xyxy.to(device, torch.float32),
        class_ids=image.boxes.class_ids.to(device),
        masks=None if masks is None else masks.to(device),
    )
