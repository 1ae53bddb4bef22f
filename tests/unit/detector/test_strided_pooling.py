"""Pooling every second cell after the convolution is pooling all cells, then the strided convolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.detector.pooling import RegionPooler
from ovbridge.detector.roi_head import Stage5Trunk
from ovbridge.detector.strided_pooling import pool_every_second_cell


def regions(generator: torch.Generator) -> Tensor:
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([300.0, 200.0]) - 20
    size = torch.rand(60, 2, generator=generator) ** 3 * 400
    special = torch.tensor(
        [
            [0.0, 0, 320, 208],
            [-90, -90, 700, 40],
            [5, 5, 5, 5],
            [310, 190, 400, 300],
            [900, 900, 950, 950],
            [0, 3, 9, 3],
        ]
    )
    boxes = torch.cat([corner, corner + size], dim=1)
    owner = torch.randint(0, 2, (66, 1), generator=generator).float()
    return torch.cat([owner, torch.cat([boxes, special])], dim=1)


def test_equals_every_second_cell_of_roi_align(generator: torch.Generator) -> None:
    feature = torch.randn(2, 5, 13, 20, generator=generator)
    rois = regions(generator)
    for cells in (14, 7):
        whole = RegionPooler(resolution=cells, strides=(16,))([feature], rois)[:, :, ::2, ::2]
        part = pool_every_second_cell(feature, rois, 16, cells)
        assert part.shape == whole.shape
        assert torch.allclose(part, whole, atol=1e-4)
    assert pool_every_second_cell(feature, rois[:0], 16, 14).shape == (0, 5, 7, 7)


def test_gradient_equals_that_of_roi_align(generator: torch.Generator) -> None:
    rois, gradients = regions(generator), []
    feature = torch.randn(2, 4, 13, 20, generator=generator)
    weight = torch.randn(len(rois), 4, 7, 7, generator=generator)
    for strided in (False, True):
        leaf = feature.clone().requires_grad_()
        if strided:
            pooled = pool_every_second_cell(leaf, rois, 16, 14)
        else:
            pooled = RegionPooler(resolution=14, strides=(16,))([leaf], rois)[:, :, ::2, ::2]
        (pooled * weight).sum().backward()
        gradients.append(leaf.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-3)


def test_trunk_equals_the_plain_stage(generator: torch.Generator) -> None:
    trunk = Stage5Trunk(
        RegionPooler(resolution=14, strides=(16,)), 6, channels=16, depth=2, norm="frozen", stride_in_1x1=True
    )
    for module in trunk.modules():
        for buffer in module._buffers.values():
            if buffer is not None:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    feature, rois = torch.randn(2, 6, 13, 20, generator=generator), regions(generator)
    plain = trunk.stage5(trunk.pooler([feature], rois)).mean(dim=(2, 3))
    assert torch.allclose(trunk([feature], rois), plain, atol=1e-4)
    assert trunk([feature], rois[:0]).shape == (0, 16)


def test_a_region_outside_the_map_pools_zeros() -> None:
    pooled = pool_every_second_cell(torch.ones(1, 1, 4, 4), torch.tensor([[0, 500.0, 500, 600, 600]]), 16, 14)
    assert F.relu(pooled).sum() == 0
