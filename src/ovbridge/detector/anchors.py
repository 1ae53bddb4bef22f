"""Anchor boxes on a feature grid, as in Detectron2: no rounding, centres at multiples of the stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """[A, 4] xyxy in pixels around the origin, size-major: each size (square root of the area) with every ratio
    (height / width)."""
    shapes = [
        ((size * size / ratio) ** 0.5, ratio * (size * size / ratio) ** 0.5)
        for size in sizes
        for ratio in aspect_ratios
    ]
    return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in shapes])


def grid_anchors(grid_hw: tuple[int, int], stride: int, cell: Tensor) -> Tensor:
    """[H * W * A, 4] anchors of one level in pixels, row by row, all of a cell together."""
    height, width = grid_hw
    y = torch.arange(0, height * stride, stride, dtype=cell.dtype, device=cell.device)
    x = torch.arange(0, width * stride, stride, dtype=cell.dtype, device=cell.device)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)
