"""Batch norm over the images of all processes, on any device.

PyTorch's own SyncBatchNorm computes on GPUs only. Legend: B images, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce


class PeerBatchNorm(nn.BatchNorm2d):
    """Batch norm whose mean and variance in training are those of every process's images together."""

    group: distributed.ProcessGroup | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        own = torch.full((1,), float(x.numel() // x.shape[1]), device=x.device)
        sums = self._over_all(torch.cat([x.float().sum(dim=(0, 2, 3)), own]))
        count, mean_C = sums[-1], sums[:-1] / sums[-1]
        centred = x - mean_C[:, None, None]
        variance_C = self._over_all(centred.float().square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean_C, momentum)
            self.running_var.lerp_(variance_C * count / (count - 1), momentum)
        scale_C = (variance_C + self.eps).rsqrt() * self.weight
        normal: Tensor = centred * scale_C[:, None, None] + self.bias[:, None, None]
        return normal

    def _over_all(self, own: Tensor) -> Tensor:
        """The sum over the processes, with gradient."""
        total: Tensor = all_reduce(own, group=self.group)  # type: ignore[no-untyped-call]
        return total


def share_batch_norm(model: nn.Module) -> None:
    """Make every batch norm below `model` one over all processes, in place; parameters and names stay."""
    # A group of its own: its messages must not mix with those of the gradients.
    group = distributed.new_group()
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = PeerBatchNorm
            module.group = group  # type: ignore[assignment]
