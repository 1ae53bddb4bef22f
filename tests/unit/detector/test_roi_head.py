"""What follows stage 5: the mean of each region, and its gradient."""

from __future__ import annotations

import pytest
import torch

from ovbridge.detector.roi_head import Stage5Trunk


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_and_its_gradient_are_those_of_pytorch(
    generator: torch.Generator, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = torch.randn(5, 6, 7, 3, generator=generator).to(dtype).contiguous(memory_format=layout)
    weight_RF = torch.randn(5, 6, generator=generator)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    mean_RF = Stage5Trunk._finish(ours)
    assert mean_RF.dtype == torch.float32
    (mean_RF * weight_RF).sum().backward()
    (theirs.mean(dim=(2, 3), dtype=torch.float32) * weight_RF).sum().backward()
    torch.testing.assert_close(mean_RF, x.mean(dim=(2, 3), dtype=torch.float32))
    assert ours.grad is not None
    assert ours.grad.dtype == dtype
    assert ours.grad.stride() == x.stride()
    torch.testing.assert_close(ours.grad, theirs.grad)
