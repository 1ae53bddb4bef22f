"""RoIAlign (arXiv 1703.06870) over one feature map or a pyramid.

Legend: R regions of all images, image by image; S side of the pooled grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from ovbridge.detector.gathered_pooling import CellTaps


def batch_rois(boxes: Sequence[Tensor]) -> Tensor:
    """[R, 5] rows (image index, x1, y1, x2, y2) from one [N, 4] a image."""
    owner = torch.repeat_interleave(
        torch.arange(len(boxes), device=boxes[0].device),
        torch.tensor([len(b) for b in boxes], device=boxes[0].device),
    )
    flat = torch.cat(list(boxes))
    return torch.cat([owner.to(flat.dtype)[:, None], flat], dim=1)


class RegionPooler(nn.Module):
    """Pools every region from the level that suits its size (Eq. 1 of arXiv 1612.03144).

    Half-pixel aligned, with as many samples a cell as it covers feature pixels.
    """

    def __init__(
        self, *, resolution: int, strides: Sequence[int], canonical_size: float = 224.0, canonical_stride: int = 16
    ) -> None:
        super().__init__()
        self.resolution, self.strides = resolution, tuple(strides)
        self.canonical_size, self.canonical_level = canonical_size, math.log2(canonical_stride)

    def levels_of(self, rois: Tensor) -> Tensor:
        """[R] int64 index of the level of each region of `rois` [R, 5]."""
        side = (rois[:, 3:] - rois[:, 1:3]).prod(dim=1).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(side / self.canonical_size + 1e-8))
        low, high = math.log2(self.strides[0]), math.log2(self.strides[-1])
        return (level.clamp(low, high) - low).to(torch.int64)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Maps [B, C, H, W] a level and regions [R, 5] in pixels of the input → [R, C, S, S], in float32; on a CPU
        without gradients in the dtype of the maps."""
        on_cpu = features[0].device.type == "cpu"
        as_they_are = on_cpu and not torch.is_grad_enabled()
        maps = [feature if as_they_are else feature.float() for feature in features[: len(self.strides)]]
        if len(maps) == 1:
            return self._align(maps[0], rois, self.strides[0])
        levels = self.levels_of(rois)
        shape = (len(rois), maps[0].shape[1], self.resolution, self.resolution)
        order = torch.channels_last if on_cpu else torch.contiguous_format
        pooled = torch.empty(shape, dtype=maps[0].dtype, device=rois.device, memory_format=order).zero_()
        for level, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
            index = (levels == level).nonzero().flatten()
            if len(index):
                pooled.index_copy_(0, index, self._align(feature, rois[index], stride))
        return pooled

    def _align(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        if feature.device.type == "cpu":
            size = (feature.shape[2], feature.shape[3])
            return CellTaps(rois, size, stride=stride, cells=self.resolution, images=len(feature)).pool(feature)
        pooled: Tensor = roi_align(
            feature, rois.to(feature.dtype), self.resolution, 1.0 / stride, sampling_ratio=0, aligned=True
        )
        return pooled
