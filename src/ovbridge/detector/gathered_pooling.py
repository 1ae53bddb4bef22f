"""RoIAlign as one weighted gather: each pooled cell is a short weighted sum of rows of the map.

Legend: R regions, S cells per axis, T pixels under a cell along one axis, C channels, N taps of all cells.

A cell is a mean of bilinear samples, so its pixels have weights that do not depend on the channel. They are worked out
once (`CellTaps`) and serve every map of that size; no sample is ever stored, and rows of a channels-last map are read
as they lie.

`every` = 2 pools cells 0, 2, 4, ... alone, which is all that a stage starting with a strided 1x1 convolution reads. As
RoIAlign and a 1x1 convolution are both linear and act on different axes, that convolution may run first, on the map,
where it costs a few per cent of what it costs on a thousand regions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F


class CellTaps:
    """Which pixels make up each cell of some regions, and with what weights."""

    @torch.no_grad()
    def __init__(
        self, rois: Tensor, map_hw: tuple[int, int], *, stride: int, cells: int, every: int = 1, images: int = 1
    ) -> None:
        """Of an aligned, adaptively sampled RoIAlign on a grid of `cells` x `cells`.

        `rois` [R, 5] are (image index, xyxy in input pixels); `map_hw` is the size of the maps, of `images` images.
        """
        self._shape = (images, *map_hw)
        self._side = (cells + every - 1) // every
        self._regions = len(rois)
        # A region that is no region pools one pixel; whoever made it drops what comes of it.
        rois = rois.float().nan_to_num(0.0, 0.0, 0.0)
        start = rois[:, 1:3] / stride - 0.5
        # A region whose sides have changed places has no samples.
        length = ((rois[:, 3:] / stride - 0.5) - start).clamp(min=0)
        # Regions that need equally many samples go together, so that small ones do not pay for large ones.
        samples_R = (length.amax(dim=1) / cells).ceil().clamp(min=1).long()
        taps_R = (samples_R + 1).clamp(max=map_hw[0]) * (samples_R + 1).clamp(max=map_hw[1])
        bags = self._side**2
        ends_R = (taps_R * bags).cumsum(0)
        first_R = ends_R - taps_R * bags
        total = int(ends_R[-1]) if len(rois) else 0
        self._index = torch.empty(total, dtype=torch.int32, device=rois.device)
        self._weights = torch.empty(total, device=rois.device)
        bag = torch.arange(bags, device=rois.device)
        self._offsets = (first_R[:, None] + bag * taps_R[:, None]).flatten().int()
        for samples in torch.unique(samples_R).tolist():
            rows_R = (samples_R == samples).nonzero().flatten()
            index, weights = self._taps(rois[rows_R, 0], start[rows_R], length[rows_R], cells, every, samples)
            place = first_R[rows_R, None] + torch.arange(index.shape[1], device=rois.device)
            self._index[place] = index
            self._weights[place] = weights

    def _taps(
        self, image_R: Tensor, start_R2: Tensor, length_R2: Tensor, cells: int, every: int, samples: int
    ) -> tuple[Tensor, Tensor]:
        """[R, S * S * T * T] row of the map and weight of each tap, for regions with equally many samples a cell."""
        _, height, width = self._shape
        top, rows = _cell_windows(start_R2[:, 1], length_R2[:, 1], cells, every, samples, height)
        left, columns = _cell_windows(start_R2[:, 0], length_R2[:, 0], cells, every, samples, width)
        y, x = (
            (first[:, :, None] + torch.arange(w.shape[2], dtype=torch.int32, device=w.device)).clamp(max=limit - 1)
            for first, w, limit in ((top, rows, height), (left, columns, width))
        )
        # [R, S, S, T, T]: row cell, column cell, pixel row, pixel column
        index = ((image_R.int()[:, None, None] * height + y) * width)[:, :, None, :, None] + x[:, None, :, None, :]
        weights = rows[:, :, None, :, None] * columns[:, None, :, None, :]
        return index.flatten(1), weights.flatten(1)

    def pool(self, feature: Tensor) -> Tensor:
        """A map [B, C, H, W] → [R, C, S, S] in channels-last order, in its dtype; differentiable in the map."""
        assert (feature.shape[0], *feature.shape[2:]) == self._shape
        channels = feature.shape[1]
        pixels = feature.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
        pooled = cast(Tensor, _WeightedGather.apply(pixels, self._index, self._weights, self._offsets))
        return pooled.view(self._regions, self._side, self._side, channels).permute(0, 3, 1, 2)


class _WeightedGather(torch.autograd.Function):
    """Weighted sums of rows of a table; backwards the same operation, with the taps in the order of the rows.

    PyTorch's own backward pass of `embedding_bag` adds the taps one after the other on one thread.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index_N: Tensor, weights_N: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(index_N, weights_N, offsets)
        ctx.rows = len(rows)
        return _bags(rows, index_N, weights_N, offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        index_N, weights_N, offsets = ctx.saved_tensors
        (gradient,) = gradients
        order_N = index_N.argsort(stable=True)
        sizes = torch.diff(offsets, append=offsets.new_tensor([len(index_N)]))
        bag_N = torch.repeat_interleave(torch.arange(len(offsets), dtype=torch.int32, device=offsets.device), sizes)
        taps = torch.bincount(index_N, minlength=ctx.rows)
        starts = (taps.cumsum(0) - taps).int()
        return _bags(gradient.contiguous(), bag_N[order_N], weights_N[order_N], starts), None, None, None


def _bags(rows: Tensor, index_N: Tensor, weights_N: Tensor, offsets: Tensor) -> Tensor:
    return F.embedding_bag(index_N, rows, offsets, mode="sum", per_sample_weights=weights_N.to(rows.dtype))


def _cell_windows(
    start_R: Tensor, length_R: Tensor, cells: int, every: int, samples: int, limit: int
) -> tuple[Tensor, Tensor]:
    """First pixel [R, S] int32 and weights [R, S, T] of the cells along one axis.

    `start_R` and `length_R` are in feature pixels. A cell averages ceil(length / cells) equidistant samples, at most
    `samples`; each is a bilinear mean of two pixels. Samples further than one pixel outside count as zero.
    """
    device = start_R.device
    count_R = (length_R / cells).ceil()
    index = torch.arange(samples, device=device)
    fraction = (index + 0.5) / count_R.clamp(min=1.0)[:, None, None]
    cell = torch.arange(0, cells, every, device=device)[:, None]
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
    # However large the region, a cell has no more pixels than the map.
    return first.squeeze(2).int(), weights[:, :, : min(samples + 1, limit)]
