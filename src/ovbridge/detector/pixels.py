"""From uint8 pictures of different sizes to one padded network input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.detector.config import PixelConfig


class PixelNormalizer(nn.Module):
    """`(x - mean) / std` in the channel order of the weights, then zero padding on the right and below."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        self.config = config
        # Not persistent: they are configuration, which the checkpoint's metadata holds.
        self.register_buffer("mean", torch.tensor(config.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).reshape(3, 1, 1), persistent=False)

    def forward(
        self, images: Sequence[Tensor], least_hw: tuple[int, int] | None = None
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Pictures [3, H, W] uint8 RGB → [B, 3, H', W'] float32 and the (H, W) of each before padding.

        `least_hw`: height and width that the padding reaches at least, for parts of a batch that must pad alike.
        """
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        multiple = max(self.config.size_divisibility, 1)
        least_h, least_w = least_hw or (0, 0)
        height = -(-max(least_h, *(h for h, _ in sizes)) // multiple) * multiple
        width = -(-max(least_w, *(w for _, w in sizes)) // multiple) * multiple
        batch = torch.stack([self._normalize(image, height, width) for image in images])
        # Channels innermost: every layer keeps the order, convolutions and pooling are faster in it.
        return batch.contiguous(memory_format=torch.channels_last), sizes

    def _normalize(self, image: Tensor, height: int, width: int) -> Tensor:
        values = image.to(self.mean.device, torch.float32)
        if self.config.order == "bgr":
            values = values.flip(0)
        values = (values - self.mean) / self.std
        return F.pad(values, (0, width - values.shape[2], 0, height - values.shape[1]))
