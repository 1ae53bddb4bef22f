"""Class-agnostic masks: a small convolutional head on pooled regions, its targets, and pasting into the image.

Legend: R regions, S side of the predicted mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ovbridge.detector.pooling import RegionPooler
from ovbridge.detector.winograd import Conv3x3


class MaskHead(nn.Module):
    """3x3 convolutions, one transposed convolution that doubles the side, a 1x1 predictor."""

    def __init__(self, pooler: RegionPooler, inputs: int, *, channels: int, convolutions: int) -> None:
        super().__init__()
        self.pooler = pooler
        widths = (inputs, *([channels] * convolutions))
        self.convs = nn.ModuleList(Conv3x3(width, output) for width, output in itertools.pairwise(widths))
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, 1, 1)
        for layer in (*self.convs, self.upsample):
            nn.init.kaiming_normal_(cast(Tensor, layer.weight), mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(cast(Tensor, self.predictor.bias))

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Maps and regions [R, 5] → mask logits [R, S, S]."""
        x = self.pooler(features, rois)
        for conv in self.convs:
            x = F.relu_(conv(x))
        return self._predict(x)

    def _predict(self, x: Tensor) -> Tensor:
        """[R, C, S / 2, S / 2] → logits [R, S, S]: upsampling, ReLU, prediction.

        A transposed 2x2 convolution with stride 2 is a linear map from each cell to four that nobody else writes to,
        and what follows acts on each of them alone: they take their places when one number is left of each.
        """
        regions, _, height, width = x.shape
        weight, bias = self.upsample.weight, self.upsample.bias
        outputs = weight.shape[1]
        assert bias is not None
        four = F.conv2d(x, weight.permute(2, 3, 1, 0).reshape(4 * outputs, -1, 1, 1), bias.repeat(4))
        four = F.relu_(four).permute(0, 2, 3, 1).reshape(-1, outputs)
        logits = F.linear(four, self.predictor.weight.view(1, outputs), self.predictor.bias)
        places = logits.view(regions, height, width, 2, 2).permute(0, 1, 3, 2, 4)
        return places.reshape(regions, 2 * height, 2 * width).float()


def mask_targets(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Bool masks [R, H, W] cropped to `boxes` [R, 4] and resampled to [R, side, side] bool."""
    index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    rois = torch.cat([index[:, None], boxes], dim=1)
    crops: Tensor = roi_align(masks[:, None].to(boxes.dtype), rois, side, 1.0, sampling_ratio=0, aligned=True)
    return crops.squeeze(1) >= 0.5


def _tent_weights(start: float, end: float, first: int, last: int, side: int, device: torch.device) -> Tensor:
    """[last - first, side] bilinear weights of the mask's cells at the centres of pixels first..last-1."""
    centres = torch.arange(first, last, device=device, dtype=torch.float32) + 0.5
    position = (centres - start) / (end - start) * side - 0.5
    cells = torch.arange(side, device=device, dtype=torch.float32)
    return (1.0 - (position[:, None] - cells).abs()).clamp(min=0.0)


def paste_masks(probabilities: Tensor, boxes: Tensor, image_hw: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Mask probabilities [R, S, S] stretched over `boxes` [R, 4] of an image: [R, H, W] bool.

    Bilinear between cell centres, zero outside the box, as grid_sample would do it; as the interpolation is
    separable, each mask takes two small matrix products over its box alone.
    """
    height, width = image_hw
    side = probabilities.shape[-1]
    pasted = torch.zeros((len(boxes), height, width), dtype=torch.bool, device=boxes.device)
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        # One pixel around the box: the tent of the outermost cells reaches half a cell outside.
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, width), min(int(y2) + 2, height)
        if x2 <= x1 or y2 <= y1 or right <= left or bottom <= top:
            continue
        rows = _tent_weights(y1, y2, top, bottom, side, boxes.device)
        columns = _tent_weights(x1, x2, left, right, side, boxes.device)
        pasted[i, top:bottom, left:right] = rows @ probabilities[i].float() @ columns.T >= threshold
    return pasted
