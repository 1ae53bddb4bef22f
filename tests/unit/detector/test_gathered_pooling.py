"""Gathered pooling is RoIAlign, and every second cell after the convolution is RoIAlign, then the strided one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from ovbridge.detector.gathered_pooling import CellTaps
from ovbridge.detector.pooling import RegionPooler
from ovbridge.detector.roi_head import Stage5Trunk


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


def torchvision_aligned(feature: Tensor, rois: Tensor, cells: int) -> Tensor:
    pooled: Tensor = roi_align(feature, rois, cells, 1 / 16, sampling_ratio=0, aligned=True)
    return pooled


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("cells", "every"), [(7, 1), (14, 1), (14, 2), (7, 2)])
def test_values_and_gradients_are_those_of_torchvision(
    generator: torch.Generator, cells: int, every: int, layout: torch.memory_format
) -> None:
    rois = regions(generator)[torch.randperm(66, generator=generator)]
    feature = torch.randn(2, 5, 13, 20, generator=generator).to(memory_format=layout).requires_grad_()
    theirs = torchvision_aligned(feature, rois, cells)[:, :, ::every, ::every]
    ours = CellTaps(rois, (13, 20), stride=16, cells=cells, every=every, images=2).pool(feature)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    weight = torch.randn(theirs.shape, generator=generator)
    (expected,) = torch.autograd.grad((theirs * weight).sum(), feature)
    (found,) = torch.autograd.grad((ours * weight).sum(), feature)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("box", [[40.0, 0, 0, 400], [280.0, 0, 20, 190], [0.0, 190, 280, 20], [90.0, 80, 20, 10]])
def test_a_region_whose_sides_changed_places_pools_nothing(box: list[float]) -> None:
    pooled = CellTaps(torch.tensor([[0.0, *box]]), (13, 19), stride=16, cells=14).pool(torch.ones(1, 3, 13, 19))
    assert pooled.shape == (1, 3, 14, 14)
    assert not pooled.any()


def test_no_region_gives_no_row_and_a_gradient_of_zero() -> None:
    feature = torch.ones(2, 3, 4, 4, requires_grad=True)
    pooled = CellTaps(torch.zeros(0, 5), (4, 4), stride=2, cells=7, images=2).pool(feature)
    assert pooled.shape == (0, 3, 7, 7)
    (gradient,) = torch.autograd.grad(pooled.sum(), feature)
    assert not gradient.any()


def test_a_pyramid_is_pooled_level_by_level(generator: torch.Generator) -> None:
    corner = torch.rand(80, 2, generator=generator) * 200
    size = 8 * 120 ** torch.rand(80, 2, generator=generator)
    owner = torch.randint(0, 2, (80, 1), generator=generator).float()
    rois = torch.cat([owner, corner, corner + size], dim=1)
    maps = [torch.randn(2, 3, 256 // s, 320 // s, generator=generator) for s in (4, 8, 16, 32)]
    pooler = RegionPooler(resolution=7, strides=(4, 8, 16, 32))
    levels = pooler.levels_of(rois)
    assert len(levels.unique()) == 4
    pooled = pooler(maps, rois)
    for level, stride in enumerate(pooler.strides):
        mine = levels == level
        theirs = roi_align(maps[level], rois[mine], 7, 1 / stride, sampling_ratio=0, aligned=True)
        torch.testing.assert_close(pooled[mine], theirs, rtol=1e-4, atol=1e-4)


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
    taps = CellTaps(torch.tensor([[0, 500.0, 500, 600, 600]]), (4, 4), stride=16, cells=14)
    assert not taps.pool(torch.ones(1, 1, 4, 4)).any()


def test_huge_regions_take_no_more_taps_than_the_map_has_pixels(generator: torch.Generator) -> None:
    feature = torch.randn(1, 2, 6, 9, generator=generator)
    rois = torch.tensor([[0, -3e3, -2e3, 4e3, 5e3], [0, 10.0, 10, 60, 50]])
    taps = CellTaps(rois, (6, 9), stride=16, cells=7)
    assert len(taps._index) <= 2 * 49 * 6 * 9
    torch.testing.assert_close(taps.pool(feature), torchvision_aligned(feature, rois, 7), rtol=1e-4, atol=1e-4)


def test_regions_that_are_none_do_no_harm(generator: torch.Generator) -> None:
    feature = torch.randn(1, 2, 6, 9, generator=generator)
    rois = torch.tensor([[0, float("nan"), 0, 5, 5], [0, 10.0, 10, 60, 50], [0, 0, 0, float("inf"), 5]])
    pooled = CellTaps(rois, (6, 9), stride=16, cells=7).pool(feature)
    assert pooled.isfinite().all()
    torch.testing.assert_close(pooled[1:2], torchvision_aligned(feature, rois[1:2], 7), rtol=1e-4, atol=1e-4)
