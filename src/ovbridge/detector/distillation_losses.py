"""Distillation losses beside the paper's (Eq. 1 and 2): pure functions of unit embeddings.

Legend: R regions, D embedding. Both are computed in float32 and are zero (with a gradient of zero) for fewer than two
regions, which have nothing to be told apart from.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def barlow_twins_loss(student_RD: Tensor, teacher_RD: Tensor, *, off_diagonal: float = 0.005) -> Tensor:
    """Cross-correlation of the embedding's dimensions towards the identity (Eq. 1-2 of arXiv 2103.03230), / D.

    Each dimension is standardised over the regions; equal dimensions should agree, different ones be independent.
    """
    count, dim = student_RD.shape
    if count < 2:
        return student_RD.float().sum() * 0.0
    correlation_DD = _standardised(student_RD).T @ _standardised(teacher_RD) / count
    on = (torch.diagonal(correlation_DD) - 1).square().sum()
    off = correlation_DD.square().sum() - torch.diagonal(correlation_DD).square().sum()
    return (on + off_diagonal * off) / dim


def info_nce_loss(student_RD: Tensor, teacher_RD: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Each region should be nearest to its own teacher embedding among all of the batch, and the other way round
    (Eq. 4 of arXiv 1807.03748, symmetric as in CLIP)."""
    if len(student_RD) < 2:
        return student_RD.float().sum() * 0.0
    logits_RR = student_RD.float() @ teacher_RD.float().T / temperature
    own_R = torch.arange(len(logits_RR), device=logits_RR.device)
    return (F.cross_entropy(logits_RR, own_R) + F.cross_entropy(logits_RR.T, own_R)) / 2


def _standardised(x_RD: Tensor) -> Tensor:
    x_RD = x_RD.float()
    return (x_RD - x_RD.mean(dim=0)) / x_RD.std(dim=0, unbiased=False).clamp(min=1e-4)
