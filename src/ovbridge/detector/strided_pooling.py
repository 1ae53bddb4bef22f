"""RoIAlign of every second cell only, for a stage that starts with a strided 1x1 convolution.

Legend: R regions, S cells per axis after the stride, T pixels under a cell along one axis, C channels.

Such a stage reads cells 0, 2, 4, ... of the pooled grid and nothing else. As RoIAlign and a 1x1 convolution are both
linear and act on different axes, the convolution may run first, on the feature map, where it costs a few per cent
of what it costs on a thousand regions; then only the cells that are read need pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _cell_windows(start_R: Tensor, length_R: Tensor, cells: int, samples: int, limit: int) -> tuple[Tensor, Tensor]:
    """First pixel [R, S] and weights [R, S, T] of every second of `cells` cells along one axis.

    `start_R` and `length_R` are in feature pixels. A cell averages ceil(length / cells) equidistant samples, at most
    `samples`; each is a bilinear mean of two pixels. Samples further than one pixel outside count as zero.
    """
    device = start_R.device
    count_R = (length_R / cells).ceil()
    index = torch.arange(samples, device=device)
    fraction = (index + 0.5) / count_R.clamp(min=1.0)[:, None, None]
    cell = torch.arange(0, cells, 2, device=device)[:, None]
    at = start_R[:, None, None] + (cell + fraction) * (length_R / cells)[:, None, None]
    counts = (index < count_R[:, None, None]) & (at >= -1.0) & (at <= limit)
    at = at.clamp(0.0, limit - 1.0)
    low = at.floor()
    share = counts / count_R.clamp(min=1.0)[:, None, None]
    first = low[:, :, :1]
    # One place more than the widest cell covers: rounding may push a tap of weight zero there.
    weights = torch.zeros((*low.shape[:2], samples + 2), device=device)
    offset = (low - first).long()
    weights.scatter_add_(2, offset, share * (1.0 - (at - low)))
    weights.scatter_add_(2, offset + 1, share * (at - low))
    return first.squeeze(2).long(), weights[:, :, : samples + 1]


def pool_every_second_cell(feature: Tensor, rois: Tensor, stride: int, cells: int) -> Tensor:
    """Cells 0, 2, 4, ... of an aligned, adaptively sampled RoIAlign on a grid of `cells` x `cells`.

    feature: [B, C, H, W]; rois: [R, 5] in input pixels. Returns [R, C, S, S] in channels-last order.
    """
    batch, channels, height, width = feature.shape
    rois = rois.float()
    start = rois[:, 1:3] / stride - 0.5
    length = (rois[:, 3:] / stride - 0.5) - start
    # Regions that need equally many samples go together, so that small ones do not pay for large ones.
    samples_R = (length.amax(dim=1) / cells).ceil().clamp(min=1).long()
    order = samples_R.argsort(stable=True)
    groups = torch.split(order, torch.bincount(samples_R).tolist()) if len(rois) else ()
    pixels = feature.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    pooled = []
    for samples, index in enumerate(groups):
        if not len(index):
            continue
        top, rows = _cell_windows(start[index, 1], length[index, 1], cells, samples, height)
        left, columns = _cell_windows(start[index, 0], length[index, 0], cells, samples, width)
        reach = torch.arange(samples + 1, device=rois.device)
        y = (top[:, :, None] + reach).clamp(max=height - 1)
        x = (left[:, :, None] + reach).clamp(max=width - 1)
        image = rois[index, 0].long()
        # [R, S, S, T, T]: row cell, column cell, pixel row, pixel column
        taps = (image[:, None, None] * height + y)[:, :, None, :, None] * width + x[:, None, :, None, :]
        weights = rows[:, :, None, :, None] * columns[:, None, :, None, :]
        bags = (-1, (samples + 1) ** 2)
        pooled.append(
            F.embedding_bag(
                taps.reshape(bags), pixels, mode="sum", per_sample_weights=weights.reshape(bags).to(pixels.dtype)
            )
        )
    side = (cells + 1) // 2
    stacked = torch.cat(pooled) if pooled else pixels.new_zeros((0, channels))
    unsorted = stacked.reshape(-1, side * side * channels)[order.argsort()]
    return unsorted.reshape(-1, side, side, channels).permute(0, 3, 1, 2)
