"""What MAVL learns from: one assignment of queries to boxes an image, then pure losses.

Legend: N images, S image tokens, Q queries, G boxes of an image (padded), T (image, text) pairs, P token positions,
K nouns, C width, A width of the alignment space. Boxes are (cx, cy, w, h) in [0, 1] of the unpadded image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from ovbridge.teachers.mavl.config import MavlConfig
from ovbridge.teachers.mavl.model import EncodedImages, Mavl


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the training objective."""

    repeats: int = 3
    """Each box is given to this many queries (one-to-many matching); inference removes duplicates by NMS."""
    box: float = 5.0
    """L1 of (cx, cy, w, h)."""
    giou: float = 2.0
    """1 - GIoU."""
    token: float = 2.0
    """Soft token prediction."""
    no_object: float = 0.15
    """Weight of queries that found nothing; a query on an object that the text does not mean weighs 1."""
    objectness: float = 1.0
    """Auxiliary: is there an object, asked of each decoder layer."""
    noun: float = 1.0
    """Auxiliary: which noun is it, asked of the decoder's output against the encoded text of every noun."""
    dense: float = 1.0
    """Auxiliary: objectness, noun and box at every encoder token inside an object's centre."""


class AuxiliaryHeads(nn.Module):
    """Heads that exist while training only."""

    def __init__(self, config: MavlConfig, alignment_dim: int = 64) -> None:
        super().__init__()
        d = config.d_model
        self.objectness = nn.Linear(d, 1)
        self.align_query = nn.Linear(d, alignment_dim)
        self.align_noun = nn.Linear(d, alignment_dim)
        self.scale = nn.Parameter(torch.tensor(10.0).log())
        self.dense_objectness = nn.Linear(d, 1)
        self.dense_align = nn.Linear(d, alignment_dim)
        self.dense_box = nn.Linear(d, 4)
        for layer in (self.objectness, self.dense_objectness):
            nn.init.constant_(layer.bias, -2.0)
        nn.init.zeros_(self.dense_box.weight)
        nn.init.constant_(self.dense_box.bias, -2.0)

    def noun_logits(self, aligned: Tensor, nouns_KA: Tensor) -> Tensor:
        """Scaled cosines [..., K]."""
        scale = self.scale.exp().clamp(max=50.0)
        return scale * F.normalize(aligned, dim=-1) @ F.normalize(nouns_KA, dim=-1).T


@dataclass(frozen=True, kw_only=True)
class ImageTargets:
    """The objects of a batch of images, padded to G."""

    boxes: Tensor
    """(cx, cy, w, h); (0.5, 0.5, 1, 1) where there is no object."""
    nouns: Tensor
    """Index of the object's noun."""
    counts: tuple[int, ...]
    """Objects of each image."""


@dataclass(frozen=True, kw_only=True)
class TextTargets:
    """What each (image, text) pair means."""

    image_of_text: Tensor
    """The image of each text."""
    tokens: Tensor
    """Distribution over token positions for each box that the text means; all zero for the others."""


def match(
    boxes_NQ4: Tensor, objectness_NQ: Tensor, targets: ImageTargets, *, repeats: int, weights: LossConfig
) -> Tensor:
    """Index of the box that each query must find, [N, Q] int64, -1 for none.

    The Hungarian assignment of least L1 - GIoU - objectness cost, each box repeated (as often as queries allow).
    """
    from scipy.optimize import linear_sum_assignment  # not needed to propose, and slow to import

    n, q = objectness_NQ.shape
    assigned = np.full((n, q), -1, dtype=np.int64)
    l1 = torch.cdist(boxes_NQ4, targets.boxes, p=1)
    probability = objectness_NQ.sigmoid()
    for i, count in enumerate(targets.counts):
        if not count:
            continue
        goal = targets.boxes[i, :count]
        giou = generalized_box_iou(_xyxy(boxes_NQ4[i]), _xyxy(goal))
        cost = weights.box * l1[i, :, :count] - weights.giou * giou - probability[i, :, None]
        times = max(1, min(repeats, q // count))
        rows, columns = linear_sum_assignment(cost.repeat(1, times).cpu().numpy())
        assigned[i, rows] = columns % count
    return torch.from_numpy(assigned).to(boxes_NQ4.device)


def box_losses(boxes_M4: Tensor, goal_M4: Tensor, total: float) -> tuple[Tensor, Tensor]:
    """L1 and 1 - GIoU of M pairs, summed and divided by `total`."""
    l1 = F.l1_loss(boxes_M4, goal_M4, reduction="sum") / total
    giou = generalized_box_iou_loss(_xyxy(boxes_M4), _xyxy(goal_M4), reduction="sum") / total
    return l1, giou


def token_loss(logits_TQP: Tensor, goal_TQP: Tensor, weight_TQ: Tensor) -> Tensor:
    """Soft token prediction: weighted mean cross-entropy to a distribution over token positions (MDETR, §2.2)."""
    entropy_TQ = -(goal_TQP * logits_TQP.log_softmax(dim=-1)).sum(dim=-1)
    return (entropy_TQ * weight_TQ).sum() / weight_TQ.sum()


def token_goals(assigned_NQ: Tensor, text: TextTargets, *, no_object: float) -> tuple[Tensor, Tensor, Tensor]:
    """Per text: which queries it means [T, Q] bool, their goal [T, Q, P], the loss weight [T, Q]."""
    assigned_TQ = assigned_NQ[text.image_of_text]
    p = text.tokens.shape[2]
    goal = text.tokens.gather(1, assigned_TQ.clamp(min=0).unsqueeze(-1).expand(-1, -1, p))
    meant = (assigned_TQ >= 0) & (goal.sum(dim=-1) > 0)
    nothing = F.one_hot(torch.tensor(p - 1, device=goal.device), p).to(goal.dtype)
    goal = torch.where(meant.unsqueeze(-1), goal, nothing)
    weight = torch.where(assigned_TQ >= 0, 1.0, no_object)
    return meant, goal, weight


def dense_goals(targets: ImageTargets, centres_NS2: Tensor, *, shrink: float = 0.5) -> Tensor:
    """The box whose centre part holds each token [N, S], the smallest where several do, -1 for none."""
    boxes = targets.boxes
    distance_NSG2 = (centres_NS2[:, :, None] - boxes[:, None, :, :2]).abs()
    exists_NG = torch.arange(boxes.shape[1], device=boxes.device) < torch.tensor(
        targets.counts, device=boxes.device
    ).unsqueeze(1)
    inside_NSG = (distance_NSG2 <= 0.5 * shrink * boxes[:, None, :, 2:]).all(dim=-1) & exists_NG[:, None]
    area_NG = boxes[..., 2] * boxes[..., 3]
    area_NSG = torch.where(inside_NSG, area_NG[:, None], torch.inf)
    smallest, index = area_NSG.min(dim=2)
    return torch.where(smallest.isfinite(), index, -1)


class MavlObjective(nn.Module):
    """All losses of a batch, with the auxiliary heads that some of them need."""

    def __init__(self, config: MavlConfig, weights: LossConfig) -> None:
        super().__init__()
        self.weights = weights
        self.heads = AuxiliaryHeads(config)

    def forward(
        self,
        model: Mavl,
        encoded: EncodedImages,
        fused: list[Tensor],
        targets: ImageTargets,
        text: TextTargets,
        nouns_KC: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted losses by name. `nouns_KC` is the mean text state of each noun."""
        w, heads = self.weights, self.heads
        nouns_KA = heads.align_noun(nouns_KC)
        boxes = [model.boxes(x, encoded.reference) for x in encoded.decoded]
        objectness = [heads.objectness(x).squeeze(-1) for x in encoded.decoded]
        with torch.no_grad():
            assigned_NQ = match(boxes[-1], objectness[-1], targets, repeats=w.repeats, weights=w)
        found_NQ = assigned_NQ >= 0
        image_M, query_M = found_NQ.nonzero(as_tuple=True)
        object_M = assigned_NQ[found_NQ]
        goal_M4, noun_M = targets.boxes[image_M, object_M], targets.nouns[image_M, object_M]
        total = max(1.0, float(len(object_M)))

        losses: dict[str, Tensor] = {}
        l1 = giou = objects = boxes[0].new_zeros(())
        for layer_boxes, layer_objectness in zip(boxes, objectness, strict=True):
            layer_l1, layer_giou = box_losses(layer_boxes[image_M, query_M], goal_M4, total)
            l1, giou = l1 + layer_l1, giou + layer_giou
            objects = objects + _focal(layer_objectness, found_NQ.float(), total)
        losses["decoder_box"], losses["decoder_giou"] = w.box * l1, w.giou * giou
        losses["objectness"] = w.objectness * objects
        if len(object_M):
            aligned = heads.align_query(encoded.decoded[-1][image_M, query_M])
            losses["noun"] = w.noun * F.cross_entropy(heads.noun_logits(aligned, nouns_KA), noun_M)
        losses |= self._fusion(model, encoded, fused, assigned_NQ, targets, text)
        if w.dense > 0:
            losses |= self._dense(encoded, targets, nouns_KA)
        return losses

    def _fusion(
        self,
        model: Mavl,
        encoded: EncodedImages,
        fused: list[Tensor],
        assigned_NQ: Tensor,
        targets: ImageTargets,
        text: TextTargets,
    ) -> dict[str, Tensor]:
        w = self.weights
        meant_TQ, goal_TQP, weight_TQ = token_goals(assigned_NQ, text, no_object=w.no_object)
        text_M, query_M = meant_TQ.nonzero(as_tuple=True)
        image_M = text.image_of_text[text_M]
        goal_M4 = targets.boxes[image_M, assigned_NQ[image_M, query_M]]
        reference_M2 = encoded.reference[image_M, query_M]
        total = max(1.0, float(len(text_M)))
        token = l1 = giou = goal_TQP.new_zeros(())
        for states in fused:
            token = token + token_loss(model.token_logits(states), goal_TQP, weight_TQ)
            layer_l1, layer_giou = box_losses(model.boxes(states[text_M, query_M], reference_M2), goal_M4, total)
            l1, giou = l1 + layer_l1, giou + layer_giou
        return {"token": w.token * token, "box": w.box * l1, "giou": w.giou * giou}

    def _dense(self, encoded: EncodedImages, targets: ImageTargets, nouns_KA: Tensor) -> dict[str, Tensor]:
        heads, w = self.heads, self.weights
        assigned_NS = dense_goals(targets, encoded.centres)
        found_NS = assigned_NS >= 0
        if encoded.padding is not None:
            found_NS = found_NS & ~encoded.padding
        image_M, token_M = found_NS.nonzero(as_tuple=True)
        object_M = assigned_NS[found_NS]
        total = max(1.0, float(len(object_M)))
        losses = _focal(heads.dense_objectness(encoded.memory).squeeze(-1), found_NS.float(), total)
        if len(object_M):
            states_MC = encoded.memory[image_M, token_M]
            nouns = heads.noun_logits(heads.dense_align(states_MC), nouns_KA)
            losses = losses + F.cross_entropy(nouns, targets.nouns[image_M, object_M])
            sides = heads.dense_box(states_MC).sigmoid()
            centre = encoded.centres.expand(len(found_NS), -1, -1)[image_M, token_M]
            corners = torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], dim=-1)
            goal = _xyxy(targets.boxes[image_M, object_M])
            losses = losses + 2.0 * generalized_box_iou_loss(corners, goal, reduction="sum") / total
        return {"dense": w.dense * losses}


def _focal(logits: Tensor, goal: Tensor, total: float, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (arXiv 1708.02002), summed and divided by the number of objects."""
    entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    wrong = (logits.sigmoid() - goal).abs()
    return ((alpha * goal + (1.0 - alpha) * (1.0 - goal)) * wrong**gamma * entropy).sum() / total


def _xyxy(boxes: Tensor) -> Tensor:
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners
