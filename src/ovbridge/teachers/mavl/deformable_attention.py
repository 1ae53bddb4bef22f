"""Multi-scale deformable attention in pure PyTorch (arXiv 2010.04159, Eq. 3).

Legend: N images, S image tokens of all levels, Q queries, H heads, D head width, L levels, P points, C = H * D.

Two forms of the same sum. With gradients, and on a GPU: one `grid_sample` per level with the heads folded into the
batch. Without gradients on a CPU: the four neighbours of all points of a head are one weighted `embedding_bag`, which
never stores a sample (`level_table`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LevelShapes = Sequence[tuple[int, int]]
"""(height, width) of every feature level, finest first."""

BORDER = 1
"""Cells of zeros around every level of a table: a sample outside the image reads them."""


def deformable_sample(
    value_NSHD: Tensor, level_shapes: LevelShapes, locations_NQHLP2: Tensor, weights_NQHLP: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples, [N, Q, H * D].

    `locations` are (x, y) in [0, 1] of the padded image; samples outside read zero. `weights` sum to 1 over L and P.
    """
    n, _, heads, width = value_NSHD.shape
    queries, points = locations_NQHLP2.shape[1], locations_NQHLP2.shape[4]
    grid = (2.0 * locations_NQHLP2 - 1.0).transpose(1, 2).flatten(0, 1)
    sampled, start = [], 0
    for level, (rows, columns) in enumerate(level_shapes):
        tokens = value_NSHD[:, start : start + rows * columns]
        feature = tokens.permute(0, 2, 3, 1).reshape(n * heads, width, rows, columns)
        sampled.append(F.grid_sample(feature, grid[:, :, level], padding_mode="zeros", align_corners=False))
        start += rows * columns
    weights = weights_NQHLP.transpose(1, 2).reshape(n * heads, 1, queries, len(sampled) * points)
    out = (torch.cat(sampled, dim=-1) * weights).sum(dim=-1)
    return out.view(n, heads * width, queries).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class LevelTable:
    """Values of all levels as the rows of one table, each level inside a border of zeros."""

    rows: Tensor
    """[N * cells * H, D], a head a row; cells of the borders included."""
    heads: int
    """H."""
    cells: int
    """Cells of one image, over all levels and with borders."""
    shapes: LevelShapes
    """(height, width) of every level, without borders."""
    starts: tuple[int, ...]
    """The first cell of every level in its image."""


def level_table(value_NSHD: Tensor, level_shapes: LevelShapes) -> LevelTable:
    """Lay the values out so that any neighbour of any sample, wherever it falls, is a row of the table."""
    n, _, heads, width = value_NSHD.shape
    sizes = [(rows + 2 * BORDER) * (columns + 2 * BORDER) for rows, columns in level_shapes]
    # Beyond the far corner of the last level the interpolation looks, with weight 0, a row and a cell further.
    cells = sum(sizes) + level_shapes[-1][1] + 2 * BORDER + 1
    table = value_NSHD.new_zeros(n, cells, heads, width)
    start, first, starts = 0, 0, []
    for (rows, columns), size in zip(level_shapes, sizes, strict=True):
        bordered = table[:, start : start + size].view(n, rows + 2 * BORDER, columns + 2 * BORDER, heads, width)
        tokens = value_NSHD[:, first : first + rows * columns].reshape(n, rows, columns, heads, width)
        bordered[:, BORDER:-BORDER, BORDER:-BORDER] = tokens
        starts.append(start)
        start, first = start + size, first + rows * columns
    return LevelTable(rows=table.view(-1, width), heads=heads, cells=cells, shapes=level_shapes, starts=tuple(starts))


class TableSampler:
    """Sums of bilinear samples of a `LevelTable`, for so many queries at a time: what depends on that number alone."""

    def __init__(self, table: LevelTable, *, images: int, queries: int, points: int) -> None:
        self._table = table
        rows_of, heads, device, dtype = table.rows, table.heads, table.rows.device, table.rows.dtype
        height, width = torch.tensor(table.shapes, device=device).repeat_interleave(points, dim=0).unbind(-1)
        bordered = width + 2 * BORDER
        starts = torch.tensor(table.starts, device=device).repeat_interleave(points)
        image = torch.arange(images, device=device).view(-1, 1, 1, 1) * (table.cells * heads)
        head = torch.arange(heads, device=device).view(-1, 1)
        first = (starts + BORDER * bordered + BORDER) * heads + head + image
        shape = (images, queries, heads, len(table.shapes) * points)

        # Written out in full: elementwise operations on a CPU are several times faster without broadcasting.
        def full(values: Tensor, kind: torch.dtype) -> Tensor:
            return values.to(kind).expand(shape).contiguous()

        self._width, self._height = full(width, dtype), full(height, dtype)
        self._first, self._down = full(first, torch.int32), full(bordered * heads, torch.int32)
        self._bags = torch.arange(0, self._first.numel(), shape[-1], dtype=torch.int32, device=device)
        self._out = (images, queries, heads * rows_of.shape[1])

    def __call__(self, x_NQHK: Tensor, y_NQHK: Tensor, weights_NQHK: Tensor) -> Tensor:
        """[N, Q, H * D]; (x, y) in cells of the sample's level, 0 at the centre of the first; K = L * P samples."""
        x = torch.minimum(x_NQHK, self._width).clamp_(min=-1.0)
        y = torch.minimum(y_NQHK, self._height).clamp_(min=-1.0)
        left, top = x.floor(), y.floor()
        right, below = x.sub_(left), y.sub_(top)
        lower = weights_NQHK * below
        upper = weights_NQHK - lower
        lower_right, upper_right = lower * right, upper * right
        heads = self._table.heads
        index = top.to(torch.int32).mul_(self._down).add_(left.to(torch.int32), alpha=heads).add_(self._first)
        out = self._bag(index, upper.sub_(upper_right))
        out += self._bag(index + heads, upper_right)
        index += self._down
        out += self._bag(index, lower.sub_(lower_right))
        out += self._bag(index.add_(heads), lower_right)
        return out.view(self._out)

    def _bag(self, index: Tensor, weights: Tensor) -> Tensor:
        return F.embedding_bag(
            index.view(-1), self._table.rows, self._bags, mode="sum", per_sample_weights=weights.view(-1)
        )


class DeformableAttention(nn.Module):
    """Each query reads P points a head and level around its reference point."""

    def __init__(self, *, d_model: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(d_model, heads * levels * points * 2)
        self.attention_weights = nn.Linear(d_model, heads * levels * points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self._reset()

    def _reset(self) -> None:
        """Offsets start as a star: head h looks in direction 2 pi h / H, point p at distance p + 1 (§A.4)."""
        angle = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        star = torch.stack([angle.cos(), angle.sin()], dim=-1)
        star = star / star.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.points + 1).view(1, 1, -1, 1)
        offsets = star.view(self.heads, 1, 1, 2) * distance.expand(self.heads, self.levels, self.points, 1)
        with torch.no_grad():
            nn.init.zeros_(self.sampling_offsets.weight)
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
            nn.init.zeros_(self.attention_weights.weight)
            nn.init.zeros_(self.attention_weights.bias)
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        query_NQC: Tensor,
        reference_NQL2: Tensor,
        tokens_NSC: Tensor,
        level_shapes: LevelShapes,
        padding_NS: Tensor | None,
    ) -> Tensor:
        """[N, Q, C]; `reference` is (x, y) in [0, 1] of the padded image per level, `padding` True outside it."""
        if reads_tables(query_NQC):
            return self.reader(tokens_NSC, level_shapes, padding_NS)(query_NQC, reference_NQL2)
        n, queries, _ = query_NQC.shape
        shape = (n, queries, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query_NQC).view(*shape, 2)
        weights = self.attention_weights(query_NQC).view(n, queries, self.heads, -1).softmax(dim=-1).view(shape)
        cells_L2 = torch.tensor([(w, h) for h, w in level_shapes], dtype=offsets.dtype, device=offsets.device)
        locations = reference_NQL2[:, :, None, :, None, :] + offsets / cells_L2[:, None, :]
        sampled = deformable_sample(self._value(tokens_NSC, padding_NS), level_shapes, locations, weights)
        out_NQC: Tensor = self.output_proj(sampled)
        return out_NQC

    def reader(self, tokens_NSC: Tensor, level_shapes: LevelShapes, padding_NS: Tensor | None) -> TableReader:
        """Reads these tokens for any queries, without gradients; worth it where many queries come in parts."""
        # Values stay fp32 where the projections are bf16: reading them is not what takes time.
        value = self._value(tokens_NSC, padding_NS)
        value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        return TableReader(self, level_table(value, level_shapes))

    def _value(self, tokens_NSC: Tensor, padding_NS: Tensor | None) -> Tensor:
        value: Tensor = self.value_proj(tokens_NSC)
        if padding_NS is not None:
            value = value.masked_fill(padding_NS.unsqueeze(-1), 0.0)
        return value.view(*value.shape[:2], self.heads, -1)


def reads_tables(tensor: Tensor) -> bool:
    """Whether sampling goes through a table: the fastest form on a CPU, without gradients."""
    return tensor.device.type == "cpu" and not torch.is_grad_enabled()


class TableReader:
    """Deformable attention to tokens that are a table already."""

    def __init__(self, attention: DeformableAttention, table: LevelTable) -> None:
        self._attention, self._table = attention, table
        offsets, weights = attention.sampling_offsets, attention.attention_weights
        # One projection, all x first, then all y, then the weights' logits: none has to be picked apart afterwards.
        self._weight = torch.cat([offsets.weight[0::2], offsets.weight[1::2], weights.weight])
        self._bias = torch.cat([offsets.bias[0::2], offsets.bias[1::2], weights.bias])
        self._cells_L2 = torch.tensor([(w, h) for h, w in table.shapes], dtype=table.rows.dtype)
        self._samplers: dict[tuple[int, int], TableSampler] = {}

    def __call__(self, query_NQC: Tensor, reference_NQL2: Tensor) -> Tensor:
        """[N, Q, C]; see `DeformableAttention.forward`."""
        n, queries, _ = query_NQC.shape
        points, heads = self._attention.points, self._attention.heads
        projected = F.linear(query_NQC, self._weight, self._bias).to(self._table.rows.dtype)
        x, y, logits = projected.view(n, queries, 3, heads, -1).unbind(2)
        # (x, y) = reference * cells + offset - 0.5: offsets are learned in cells.
        centres = (reference_NQL2 * self._cells_L2 - 0.5).repeat_interleave(points, dim=2)
        sampler = self._sampler(n, queries)
        sampled = sampler(x + centres[:, :, None, :, 0], y + centres[:, :, None, :, 1], logits.softmax(dim=-1))
        out_NQC: Tensor = self._attention.output_proj(sampled)
        return out_NQC

    def _sampler(self, images: int, queries: int) -> TableSampler:
        sampler = self._samplers.get((images, queries))
        if sampler is None:
            sampler = TableSampler(self._table, images=images, queries=queries, points=self._attention.points)
            self._samplers[images, queries] = sampler
        return sampler
