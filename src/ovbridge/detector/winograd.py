"""3x3 convolutions with a fraction of the multiplications: Winograd's F(4x4, 3x3) and F(2x2, 3x3) (arXiv 1509.09308).

Legend: C input channels, O output channels, T tiles, S side of a tile, P = S * S points of a tile.

A tile of 4 x 4 outputs reads 6 x 6 inputs. Both become 36 points, on which the convolution is one product a point: 36
products do the work of 144 (of 2 x 2 outputs: 16 of 36). To and from the points lead fixed weighted sums of pixels, the
same for every channel: weighted gathers of rows of a channels-last map, as in `gathered_pooling`, in which rows beyond
the border are left out. The products are one grouped 1x1 convolution.

fp32 takes the larger tile, whose results are off by 2e-6 of their size (root mean square; a direct convolution's by
4e-7); bf16 the smaller one, off by 0.4 % (0.3 %), or the larger, off by 2 %, for rough results.

Only inside `by_points`, on the CPU and without gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST_CHANNELS = 128
_LEAST_PIXELS = 800
"""Below either the products are too small to be worth the way there and back."""

_HELD = 2**26
"""Bytes of the points that are held at a time, at least."""

Taps = tuple[Tensor, Tensor, Tensor]
"""Weighted sums: rows of a table [N] int32, their weights [N], and where each sum begins."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiling:
    """F(step x step, 3x3): its three transforms along one axis, in exact fractions."""

    step: int
    to_points: Tensor
    """[S, S], of pixels."""
    of_filter: Tensor
    """[S, 3]"""
    to_pixels: Tensor
    """[step, S]"""

    @property
    def side(self) -> int:
        """S."""
        return self.step + 2

    @property
    def points(self) -> int:
        """P."""
        return self.side**2


def _tiling(to_points: list[list[float]], of_filter: list[list[float]], to_pixels: list[list[float]]) -> Tiling:
    matrices = [torch.tensor(rows, dtype=torch.float64) for rows in (to_points, of_filter, to_pixels)]
    return Tiling(step=len(to_pixels), to_points=matrices[0], of_filter=matrices[1], to_pixels=matrices[2])


# Interpolation at 0, 1, -1 and infinity; the larger one at 2 and -2 as well. The second point of both is 1, whose value
# reaches every output once.
SMALL = _tiling(
    [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]],
    [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    [[1, 1, 1, 0], [0, 1, -1, 1]],
)
LARGE = _tiling(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
)
_FAITHFUL = {torch.float32: LARGE, torch.bfloat16: SMALL}
_ROUGH = {torch.float32: LARGE, torch.bfloat16: LARGE}

_tilings: ContextVar[Mapping[torch.dtype, Tiling]] = ContextVar("tilings", default=MappingProxyType({}))


@contextmanager
def by_points(*, rough: bool = False) -> Iterator[None]:
    """Inside, in this thread, layers that can take their 3x3 convolutions on points where that is faster.

    `rough` takes the larger tile in bf16 too: for results that only say what to compute again.
    """
    token = _tilings.set(_ROUGH if rough else _FAITHFUL)
    try:
        yield
    finally:
        _tilings.reset(token)


def points_pay(x: Tensor, weight: Tensor) -> bool:
    """Whether a 3x3 convolution of stride 1 and padding 1 should go over points here and now."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu" or not _gathers_fast():
        return False
    wide = min(weight.shape[:2]) >= _LEAST_CHANNELS
    return wide and x.shape[0] * x.shape[2] * x.shape[3] >= _LEAST_PIXELS and _computed_in(x) in _tilings.get()


@cache
def _gathers_fast() -> bool:
    """Whether PyTorch has a vectorised `embedding_bag` for this processor."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _computed_in(x: Tensor) -> torch.dtype:
    """The dtype that a convolution of `x` has here."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class PointFilter:
    """A 3x3 filter as products on points."""

    @torch.no_grad()
    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, tiling: Tiling) -> None:
        """Of `weight` [O, C, 3, 3] and `bias` [O], computing in `dtype`."""
        self.outputs, self.inputs = weight.shape[:2]
        self.dtype, self.tiling = dtype, tiling
        transform = torch.kron(self.tiling.of_filter, self.tiling.of_filter).float()
        on_points = transform @ weight.float().permute(2, 3, 0, 1).reshape(9, -1)
        self.weight = on_points.view(-1, self.inputs, 1, 1).to(dtype)
        self.bias = None
        if bias is not None:
            placed = torch.zeros(self.tiling.points, self.outputs, dtype=dtype)
            placed[self.tiling.side + 1] = bias  # the point (1, 1)
            self.bias = placed.flatten()

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution of [B, C, H, W] with padding 1: [B, O, H, W], channels last."""
        batch, channels, height, width = x.shape
        step, points = self.tiling.step, self.tiling.points
        across, down = -(-width // step), -(-height // step)
        pixels = x.to(self.dtype).permute(0, 2, 3, 1)
        held = max(_HELD // self.weight.element_size(), self.weight.numel())
        rows = math.ceil(held / (points * across * channels))
        if rows >= down:  # whole images, several at a time
            at_once = rows // down
            spans = [(first, min(at_once, batch - first), 0, down) for first in range(0, batch, at_once)]
        else:
            at_once = 1
            spans = [(image, 1, top, min(rows, down - top)) for image in range(batch) for top in range(0, down, rows)]
        made = []
        for image, images, top, tiles in spans:
            first, last = max(top * step - 1, 0), min((top + tiles) * step + 1, height)
            outputs = min(tiles * step, height - top * step)
            table = pixels[image : image + images, first:last].reshape(-1, channels).contiguous()
            above = first < top * step
            taps = _input_taps(self.tiling, self.dtype, tiles, (last - first, width), above=above, images=at_once)
            values = _gather(table, taps, images * tiles * across * points)
            values = values.view(1, 1, -1, points * channels).permute(0, 3, 1, 2)
            values = F.conv2d(values, self.weight, self.bias, groups=points)
            table = values.permute(0, 2, 3, 1).reshape(-1, self.outputs).contiguous()
            taps = _output_taps(self.tiling, self.dtype, tiles, (outputs, width), images=at_once)
            made.append(_gather(table, taps, images * outputs * width))
        whole = made[0] if len(made) == 1 else torch.cat(made)
        return whole.view(batch, height, width, self.outputs).permute(0, 3, 1, 2)


class KeptFilter:
    """The point filter of one layer, kept from pass to pass and made anew when its weights have changed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[torch.dtype, int], _Kept] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptFilter:
        return KeptFilter()

    def __call__(
        self, x: Tensor, made_of: Sequence[Tensor], make: Callable[[], tuple[Tensor, Tensor | None]]
    ) -> Tensor:
        """The convolution of `x` with the weight and bias that `make` makes of the values in `made_of`."""
        dtype = _computed_in(x)
        tiling = _tilings.get()[dtype]
        kind = dtype, tiling.step
        # By identity, which holds on to the tensors: an address alone may be given to other weights.
        state = [(id(part), part.data_ptr(), 0 if part.is_inference() else part._version) for part in made_of]
        kept = self._kept.get(kind)
        if kept is None or kept.state != state:
            kept = _Kept(made_of=tuple(made_of), state=state, filter=PointFilter(*make(), dtype, tiling))
            self._kept[kind] = kept
        return kept.filter(x)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    made_of: tuple[Tensor, ...]
    state: list[tuple[int, int, int]]
    filter: PointFilter


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1, over points where that pays."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self._on_points = KeptFilter()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, O, H, W]."""
        if not points_pay(x, self.weight):
            return super().forward(x)
        assert self.bias is not None
        return self._on_points(x, (self.weight, self.bias), lambda: (self.weight, self.bias))


def _gather(table: Tensor, taps: Taps, sums: int) -> Tensor:
    """The first `sums` of the weighted sums [sums, columns]."""
    index, weights, starts = _first(taps, sums)
    return F.embedding_bag(index, table, starts, mode="sum", per_sample_weights=weights)


@lru_cache(maxsize=32)
def _input_taps(
    tiling: Tiling, dtype: torch.dtype, tiles: int, pixels_hw: tuple[int, int], *, above: bool, images: int
) -> Taps:
    """From the pixels of `images` images to the points of `tiles` rows of tiles of each; `above`: the first row of
    pixels lies above the first tile."""
    height, width = pixels_hw
    transform = torch.kron(tiling.to_points, tiling.to_points)  # [P, S * S pixels]
    x = torch.arange(-(-width // tiling.step))[:, None] * tiling.step + torch.arange(tiling.side) - 1

    def row_of_tiles(first_y: int) -> Taps:
        y = torch.arange(first_y, first_y + tiling.side)
        inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[:, None, :]
        tap = inside.flatten(1)[:, None, :] & (transform != 0)  # [tiles of the row, P, S * S]
        index = (y[:, None] * width + x[:, None, :]).flatten(1)[:, None, :]
        return _taps(tap, index.expand_as(tap), transform.expand_as(tap).to(dtype))

    start = 0 if above else -1
    rows = [row_of_tiles(start)]
    if tiles > 2:  # Only the first and the last row of tiles may reach beyond the border.
        rows.append(_repeated(row_of_tiles(start + tiling.step), tiles - 2, tiling.step * width))
    if tiles > 1:
        rows.append(row_of_tiles(start + (tiles - 1) * tiling.step))
    return _repeated(_joined(rows), images, height * width)


@lru_cache(maxsize=32)
def _output_taps(tiling: Tiling, dtype: torch.dtype, tiles: int, pixels_hw: tuple[int, int], *, images: int) -> Taps:
    """From the points of `tiles` rows of tiles of `images` images to the pixels of each."""
    height, width = pixels_hw
    across, step = -(-width // tiling.step), tiling.step
    x = torch.arange(width)
    transform = torch.kron(tiling.to_pixels, tiling.to_pixels).view(step, step, -1)[:, x % step]  # [step, width, P]
    index = (x // step)[:, None] * tiling.points + torch.arange(tiling.points)
    row = _taps(transform != 0, index.expand_as(transform), transform.to(dtype))
    whole = _repeated(row, tiles, across * tiling.points)
    return _repeated(_first(whole, height * width), images, tiles * across * tiling.points)


def _taps(tap: Tensor, index: Tensor, weights: Tensor) -> Taps:
    """Of sums in the order of `tap` [..., places] bool, which says what takes part in each."""
    sizes = tap.sum(-1, dtype=torch.int32).flatten()
    return index[tap].int(), weights[tap], sizes.cumsum(0, dtype=torch.int32) - sizes


def _first(taps: Taps, sums: int) -> Taps:
    index, weights, starts = taps
    if sums == len(starts):
        return taps
    taken = int(starts[sums])
    return index[:taken], weights[:taken], starts[:sums]


def _repeated(taps: Taps, times: int, rows: int) -> Taps:
    """The same sums `times` times, each time `rows` rows further in the table."""
    index, weights, starts = taps
    turn = torch.arange(times, dtype=torch.int32)[:, None]
    return (index + turn * rows).flatten(), weights.repeat(times), (starts + turn * len(index)).flatten()


def _joined(parts: Sequence[Taps]) -> Taps:
    """The sums of all, one after the other."""
    before = itertools.accumulate((len(index) for index, _, _ in parts), initial=0)
    starts = [starts + skipped for (_, _, starts), skipped in zip(parts, before, strict=False)]
    return torch.cat([index for index, _, _ in parts]), torch.cat([w for _, w, _ in parts]), torch.cat(starts)
