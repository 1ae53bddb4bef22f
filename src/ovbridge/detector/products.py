"""Large products in fp32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LARGE = 500_000
"""Weights below which either way is fast. The rows of `x_NC` have no say: each comes out the same in any company."""


def linear(x_NC: Tensor, weight_KC: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """`F.linear` of [N, C] with [K, C]: [N, K].

    On the CPU and in fp32, PyTorch's linear layers go through a library that reaches less than half of what AMD
    processors can do; as a 1x1 convolution the same product goes through another one, which is as fast on both kinds.
    """
    large = weight_KC.numel() >= _LARGE and len(x_NC) > 0
    full = x_NC.dtype == weight_KC.dtype == torch.float32 and not torch.is_autocast_enabled(x_NC.device.type)
    if not large or not full or x_NC.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x_NC, weight_KC, bias_K)
    product = F.conv2d(x_NC.T[None, :, None], weight_KC[:, :, None, None], bias_K)
    return product.permute(0, 2, 3, 1).reshape(len(x_NC), len(weight_KC)).contiguous()
