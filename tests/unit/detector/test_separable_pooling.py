"""The two-product RoIAlign against torchvision's, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from ovbridge.detector.separable_pooling import SMALL_MAP_CELLS, axis_weights, pays, separable_roi_align

STRIDE = 8
# Inside, across the border, outside, without area, larger than the map, in a corner; images out of order.
ROIS = torch.tensor(
    [
        [1.0, 10, 12, 90, 60], [0, -30, -20, 40, 30], [1, 300, 10, 400, 60], [0, 40, 40, 40, 70],
        [2, -50, -50, 300, 200], [0, 120, 80, 136, 88], [2, 3, 5, 9, 7],
    ]
)  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_torchvision(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(3, 5, 11, 17, generator=generator).to(memory_format=layout).requires_grad_()
    weight = torch.randn(len(ROIS), 5, 7, 7, generator=generator)
    theirs = roi_align(feature, ROIS, 7, 1 / STRIDE, sampling_ratio=0, aligned=True)
    ours = separable_roi_align(feature, ROIS, 1 / STRIDE, 7)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    (theirs_gradient,) = torch.autograd.grad((theirs * weight).sum(), feature)
    (ours_gradient,) = torch.autograd.grad((ours * weight).sum(), feature)
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=1e-4, atol=1e-5)


def test_weights_of_a_cell_inside_the_map_sum_to_one() -> None:
    weights = axis_weights(torch.tensor([2.0]), torch.tensor([9.0]), 12, 7)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(1, 7))


def test_no_region_gives_no_row_and_a_gradient_of_zero() -> None:
    feature = torch.ones(2, 3, 4, 4, requires_grad=True)
    pooled = separable_roi_align(feature, torch.zeros(0, 5), 0.5, 7)
    assert pooled.shape == (0, 3, 7, 7)
    (gradient,) = torch.autograd.grad(pooled.sum(), feature)
    assert not gradient.any()


def test_only_small_maps_that_learn_are_pooled_so() -> None:
    small = torch.zeros(1, 1, 16, SMALL_MAP_CELLS // 16)
    assert pays(small.clone().requires_grad_())
    assert not pays(small)
    assert not pays(torch.zeros(1, 1, 16, SMALL_MAP_CELLS // 16 + 1, requires_grad=True))
