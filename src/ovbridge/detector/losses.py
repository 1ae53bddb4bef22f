"""Every loss of the detector as a pure function of tensors; weights are applied by the caller.

Legend: R regions, K classes, C columns (K, or K + 1 with background), D embedding, N anchors. Equation numbers
are those of arXiv 2207.03482; where the released code differs from the paper, the code's form is the default.
All are computed in float32 and are zero (with a gradient of zero) for empty input.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def classification_loss(logits_RK: Tensor, class_ids_R: Tensor, column_weight: Tensor | None = None) -> Tensor:
    """Sigmoid cross-entropy: sum over classes and regions / number of regions (the code's L_cls).

    A class id of K is background: a row without a positive. `column_weight` ([K] or [R, K], bool or float) takes
    columns out, so that classes without training boxes are never negatives.
    """
    count, num_classes = logits_RK.shape
    target_RK = F.one_hot(class_ids_R, num_classes + 1)[:, :num_classes].to(torch.float32)
    loss_RK = F.binary_cross_entropy_with_logits(logits_RK.float(), target_RK, reduction="none")
    if column_weight is not None:
        loss_RK = loss_RK * column_weight.to(loss_RK.dtype)
    return loss_RK.sum() / max(count, 1)


def federated_columns(
    class_ids_R: Tensor, frequency_weight_K: Tensor, count: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Columns [K] bool of the federated loss (section 5.2 of arXiv 2103.07461, as its code does it).

    The classes of this batch, with background (id K) counted as one of them, and others drawn without replacement
    with probability proportional to `frequency_weight_K` until there are `count`.
    """
    num_classes = len(frequency_weight_K)
    present = torch.unique(class_ids_R)
    chosen = torch.zeros(num_classes + 1, dtype=torch.bool, device=class_ids_R.device)
    chosen[present] = True
    missing = count - len(present)
    if missing > 0:
        probability = torch.cat([frequency_weight_K.float(), frequency_weight_K.new_zeros(1, dtype=torch.float32)])
        probability[present] = 0.0
        # Never ask for more than can be drawn.
        missing = min(missing, int((probability > 0).sum()))
        if missing:
            drawn = torch.multinomial(probability.cpu(), missing, replacement=False, generator=generator)
            chosen[drawn.to(chosen.device)] = True
    return chosen[:num_classes]


def box_regression_loss(deltas_P4: Tensor, target_deltas_P4: Tensor, normaliser: float, beta: float = 0.0) -> Tensor:
    """Smooth L1 (beta 0 is L1), summed over the P positives / `normaliser`.

    For the RoI head the normaliser is the number of all sampled regions, for the RPN that of all sampled anchors.
    """
    total = F.smooth_l1_loss(deltas_P4.float(), target_deltas_P4.float(), reduction="sum", beta=beta)
    return total / max(normaliser, 1.0)


def objectness_loss(logits_N: Tensor, is_object_N: Tensor, normaliser: float) -> Tensor:
    """Cross-entropy over the sampled anchors, summed / `normaliser` (section 3.1.2 of arXiv 1506.01497)."""
    total = F.binary_cross_entropy_with_logits(logits_N.float(), is_object_N.float(), reduction="sum")
    return total / max(normaliser, 1.0)


def mask_loss(logits_PSS: Tensor, target_PSS: Tensor) -> Tensor:
    """Mean cross-entropy over the mask cells of all foreground regions (arXiv 1703.06870)."""
    if logits_PSS.numel() == 0:
        return logits_PSS.float().sum()
    return F.binary_cross_entropy_with_logits(logits_PSS.float(), target_PSS.float())


def pointwise_l1(student_RD: Tensor, teacher_RD: Tensor) -> Tensor:
    """Mean absolute difference over all R * D elements; rows must be unit length.

    Eq. 1 is D times this: it sums over D. The code takes the mean, then multiplies by 100 and by beta_1.
    """
    if student_RD.numel() == 0:
        return student_RD.float().sum()
    return F.l1_loss(student_RD.float(), teacher_RD.float())


def relation_loss(
    student_RD: Tensor,
    teacher_RD: Tensor,
    *,
    row_norm: Literal["l1", "l2"] = "l1",
    reduction: Literal["sum", "mean_square"] = "sum",
) -> Tensor:
    """Inter-region relations (Eq. 2): squared Frobenius distance of row-normalised Gram matrices.

    Rows of the input must be unit length. The paper says rows by L2 and 1/R^2 ("mean_square"); the code
    normalises rows by L1, keeps the sum, and multiplies by 100 and by beta_2.
    """
    order = 1.0 if row_norm == "l1" else 2.0
    student_RR = F.normalize(student_RD.float() @ student_RD.float().T, p=order, dim=1)
    teacher_RR = F.normalize(teacher_RD.float() @ teacher_RD.float().T, p=order, dim=1)
    total = (student_RR - teacher_RR).square().sum()
    return total if reduction == "sum" else total / max(len(student_RD), 1) ** 2


def image_label_loss(logits_RC: Tensor, class_ids_R: Tensor, image_ids_R: Tensor) -> Tensor:
    """Pseudo max-score loss (Eq. 4): cross-entropy of each label's box summed over all columns, averaged over the
    labels of an image, then over the images that have any.

    The code counts the background column and the columns without training boxes too.
    """
    if len(logits_RC) == 0:
        return logits_RC.float().sum()
    target_RC = F.one_hot(class_ids_R, logits_RC.shape[1]).to(torch.float32)
    loss_R = F.binary_cross_entropy_with_logits(logits_RC.float(), target_RC, reduction="none").sum(dim=1)
    _, owner_R, labels_of_image = torch.unique(image_ids_R, return_inverse=True, return_counts=True)
    total: Tensor = (loss_R / labels_of_image[owner_R]).sum()
    return total / len(labels_of_image)
