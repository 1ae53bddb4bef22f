"""RoIAlign as two matrix products, for training on small feature maps on a CPU.

A cell is the mean over a regular grid of bilinear samples, so its weights are an outer product of weights along y and
along x: pooled = weights_y @ map @ weights_x.T. The backward pass of torchvision's kernel scatters sample by sample on
one thread; here it is two products as well. Work grows with the whole map, so only small maps gain.
Legend: R regions, B images, N regions an image (padded), S side of the pooled grid, G samples a cell, C channels,
H x W cells of the map, L = H or W.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALL_MAP_CELLS = 1024
"""Maps of at most so many cells are pooled this way."""


def pays(feature: Tensor) -> bool:
    """True where `feature` [B, C, H, W] is small, learns, and is on a CPU."""
    cells = feature.shape[2] * feature.shape[3]
    return feature.device.type == "cpu" and feature.requires_grad and cells <= SMALL_MAP_CELLS


def separable_roi_align(feature: Tensor, rois: Tensor, scale: float, resolution: int) -> Tensor:
    """[R, C, S, S] of `rois` [R, 5] (image index, xyxy): `roi_align` of torchvision, aligned, adaptive sampling.

    `scale` is cells of the map a pixel. Differentiable in `feature` [B, C, H, W] alone.
    """
    images, channels, height, width = feature.shape
    if len(rois) == 0:
        return feature.new_zeros((0, channels, resolution, resolution)) + 0 * feature.sum()
    owner_R = rois[:, 0].long()
    slot_R, slots = _slots(owner_R, images)
    with torch.no_grad():
        y_RSH = axis_weights(rois[:, 2] * scale, rois[:, 4] * scale, height, resolution)
        x_RSW = axis_weights(rois[:, 1] * scale, rois[:, 3] * scale, width, resolution)
        place_R = owner_R * slots + slot_R
        y_BNSH = y_RSH.new_zeros((images * slots, resolution, height)).index_copy_(0, place_R, y_RSH)
    rows = y_BNSH.view(images, slots * resolution, height) @ feature.permute(0, 2, 3, 1).reshape(images, height, -1)
    rows = rows.view(images * slots, resolution, width, channels)[place_R]
    return (x_RSW[:, None] @ rows).permute(0, 3, 1, 2)


def axis_weights(start_R: Tensor, end_R: Tensor, length: int, resolution: int) -> Tensor:
    """[R, S, L]: weight of each of `length` map cells in each pooled cell, along one axis; ends in cells of the map."""
    start_R, size_R = start_R - 0.5, end_R - start_R
    samples_R = torch.ceil(size_R / resolution).clamp(min=0)
    most = max(int(samples_R.max()), 1)
    cell_S = torch.arange(resolution, device=start_R.device, dtype=start_R.dtype)
    sample_G = torch.arange(most, device=start_R.device, dtype=start_R.dtype)
    count_R = samples_R.clamp(min=1)
    inside_RG = (sample_G + 0.5) / count_R[:, None]
    at_RSG = start_R[:, None, None] + (cell_S[:, None] + inside_RG[:, None]) * (size_R / resolution)[:, None, None]
    counts_RSG = (sample_G < samples_R[:, None])[:, None] & (at_RSG >= -1) & (at_RSG <= length)
    at_RSG = at_RSG.clamp(0, length - 1)
    cell_L = torch.arange(length, device=start_R.device, dtype=start_R.dtype)
    hat_RSGL = (1 - (at_RSG[..., None] - cell_L).abs()).clamp_(min=0)
    return torch.einsum("rsgl,rsg->rsl", hat_RSGL, counts_RSG.to(hat_RSGL.dtype) / count_R[:, None, None])


def _slots(owner_R: Tensor, images: int) -> tuple[Tensor, int]:
    """Position of each region among those of its image [R], and the most that an image has."""
    of_image_RB = torch.nn.functional.one_hot(owner_R, images)
    before_RB = of_image_RB.cumsum(dim=0)
    return before_RB.gather(1, owner_R[:, None]).squeeze(1) - 1, int(before_RB[-1].max())
