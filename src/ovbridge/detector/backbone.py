"""Residual backbones (arXiv 1512.03385) and the feature pyramid (arXiv 1612.03144).

Feature maps are [B, C, H / stride, W / stride], finest first. Every backbone tells its `strides` and `channels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.detector.winograd import Conv3x3, KeptFilter, points_pay

Norm = Literal["frozen", "batch"]

_FEW_CHANNELS = 16
"""oneDNN writes past the end of its buffer in the backward pass of a strided 1x1 convolution over fewer input channels
(bf16, channels last; torch 2.15): there the stride is taken before the convolution, which is the same."""


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics, scale and shift are constants (buffers)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """[C], [C]: the affine map that this norm is."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ConvNorm(nn.Module):
    """Convolution without bias, then normalisation. Frozen statistics are folded into the weights, so a frozen
    norm costs nothing at the size of the feature map, in training as in use."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, norm: Norm) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel // 2
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.norm: FrozenBatchNorm | nn.BatchNorm2d = (
            FrozenBatchNorm(outputs) if norm == "frozen" else nn.BatchNorm2d(outputs)
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.kept: tuple[Tensor, Tensor] | None = None
        """What `folded` gives, while `folded_once` holds it."""
        self._on_points = KeptFilter()

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight [O, I, k, k] and bias [O] of the one convolution that this is; needs a frozen norm."""
        kept = self.kept  # read once: another thread's pass over this model may end meanwhile
        return self._fold() if kept is None else kept

    def _fold(self) -> tuple[Tensor, Tensor]:
        scale, shift = cast(FrozenBatchNorm, self.norm).scale_and_shift()
        return self.weight * scale[:, None, None, None], shift

    def forward(self, x: Tensor, more_bias: Tensor | None = None) -> Tensor:
        """[B, I, H, W] → [B, O, H / stride, W / stride], with `more_bias` [O] added where the norm is frozen."""
        stride = self.stride
        if self.padding == 0 and stride > 1 and self.weight.shape[1] < _FEW_CHANNELS:
            x, stride = x[:, :, ::stride, ::stride], 1
        if isinstance(self.norm, FrozenBatchNorm):
            if stride == 1 and self.padding == 1 and more_bias is None and points_pay(x, self.weight):
                return self._on_points(x, (self.weight, *self.norm.buffers()), self._fold)
            weight, bias = self.folded()
            bias = bias if more_bias is None else bias + more_bias
            return F.conv2d(x, weight, bias, stride=stride, padding=self.padding)
        return cast(Tensor, self.norm(F.conv2d(x, self.weight, stride=stride, padding=self.padding)))


@contextmanager
def folded_once(module: nn.Module) -> Iterator[None]:
    """Inside, frozen norms of `module` are folded into their weights once, in the dtype of autocast, and not anew in
    every pass. Without gradients only."""
    dtype = None
    layers = [m for m in module.modules() if isinstance(m, ConvNorm) and isinstance(m.norm, FrozenBatchNorm)]
    if layers and torch.is_autocast_enabled(layers[0].weight.device.type):
        dtype = torch.get_autocast_dtype(layers[0].weight.device.type)
    try:
        for layer in layers:
            weight, bias = layer.folded()
            layer.kept = weight.to(dtype=dtype, memory_format=torch.channels_last), bias.to(dtype)
        yield
    finally:
        for layer in layers:
            layer.kept = None


class BasicBlock(nn.Module):
    """3x3 - 3x3 with a skip."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, stride=stride, norm=norm)
        self.conv2 = ConvNorm(outputs, outputs, 3, norm=norm)
        changes = stride != 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride, norm=norm) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] → [B, O, H / stride, W / stride]."""
        skip = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.conv2(F.relu_(self.conv1(x))) + skip)


class BottleneckBlock(nn.Module):
    """1x1 - 3x3 - 1x1 with a skip; the inner width is a quarter of the output."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: Norm, stride_in_1x1: bool) -> None:
        super().__init__()
        inner = outputs // 4
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(inputs, inner, 1, stride=first, norm=norm)
        self.conv2 = ConvNorm(inner, inner, 3, stride=second, norm=norm)
        self.conv3 = ConvNorm(inner, outputs, 1, norm=norm)
        changes = stride != 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride, norm=norm) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] → [B, O, H / stride, W / stride]."""
        skip = x if self.shortcut is None else self.shortcut(x)
        return self.finish(F.relu_(self.conv1(x)), skip)

    def finish(self, inner: Tensor, skip: Tensor, skip_bias: Tensor | None = None) -> Tensor:
        """What follows the first convolution's ReLU `inner`, given the skip branch, to which `skip_bias` [O] is still
        to be added; that needs a frozen norm."""
        last = self.conv3(F.relu_(self.conv2(inner)), skip_bias)
        # In place: no operation before or after needs the convolution's own output.
        return F.relu_(last.add_(skip) if last.dtype == skip.dtype else last + skip)


def residual_stage(
    inputs: int,
    outputs: int,
    depth: int,
    *,
    stride: int,
    block: Literal["basic", "bottleneck"],
    norm: Norm,
    stride_in_1x1: bool,
) -> nn.Sequential:
    """`depth` blocks, the first of which changes width and resolution."""
    blocks: list[nn.Module] = []
    for i in range(depth):
        width, step = (inputs, stride) if i == 0 else (outputs, 1)
        if block == "basic":
            blocks.append(BasicBlock(width, outputs, stride=step, norm=norm))
        else:
            blocks.append(BottleneckBlock(width, outputs, stride=step, norm=norm, stride_in_1x1=stride_in_1x1))
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """Stem (7x7 stride 2, max-pool) and stages 2, 3, ...; returns the features of `out_stages`."""

    def __init__(
        self,
        *,
        stem_channels: int,
        depths: Sequence[int],
        channels: Sequence[int],
        out_stages: Sequence[int],
        block: Literal["basic", "bottleneck"],
        norm: Norm,
        stride_in_1x1: bool,
        freeze_at: int,
    ) -> None:
        super().__init__()
        self.out_stages = tuple(out_stages)
        self.strides = tuple(2**s for s in out_stages)
        self.channels = tuple(channels[s - 2] for s in out_stages)
        self.stem = ConvNorm(3, stem_channels, 7, stride=2, norm=norm)
        inputs = stem_channels
        self.stages = nn.ModuleDict()
        for stage, (depth, outputs) in enumerate(zip(depths, channels, strict=True), start=2):
            self.stages[str(stage)] = residual_stage(
                inputs,
                outputs,
                depth,
                stride=1 if stage == 2 else 2,
                block=block,
                norm=norm,
                stride_in_1x1=stride_in_1x1,
            )
            inputs = outputs
        frozen: list[nn.Module] = [self.stem] if freeze_at >= 1 else []
        frozen += [module for stage, module in self.stages.items() if int(stage) <= freeze_at]
        for module in frozen:
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised pixels [B, 3, H, W] → one map an output stage."""
        x = F.max_pool2d(F.relu_(self.stem(x)), kernel_size=3, stride=2, padding=1)
        features = []
        for stage, blocks in self.stages.items():
            x = blocks(x)
            if int(stage) in self.out_stages:
                features.append(x)
        return features


class PyramidBackbone(nn.Module):
    """A body and the pyramid on it; `strides` and `channels` are those of the pyramid's levels."""

    def __init__(self, body: nn.Module, *, channels: int, extra_level: bool) -> None:
        super().__init__()
        self.body = body
        inputs = cast(tuple[int, ...], body.channels)
        strides = cast(tuple[int, ...], body.strides)
        self.extra_level = extra_level
        self.strides = (*strides, 2 * strides[-1]) if extra_level else strides
        self.channels = (channels,) * len(self.strides)
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in inputs)
        self.output = nn.ModuleList(Conv3x3(channels, channels) for _ in inputs)
        for conv in (*self.lateral, *self.output):
            nn.init.kaiming_uniform_(cast(Tensor, conv.weight), a=1)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised pixels [B, 3, H, W] → one map a level; H and W must be multiples of the last body stride."""
        return self.merge(self.body(x))

    def merge(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The body's maps, one an output stage → one map a level."""
        levels: list[Tensor] = []
        top: Tensor | None = None
        for feature, lateral, output in zip(
            reversed(features), reversed(self.lateral), reversed(self.output), strict=True
        ):
            merged = lateral(feature)
            if top is not None:
                merged = merged + F.interpolate(top, scale_factor=2.0, mode="nearest")
            top = merged
            levels.insert(0, output(merged))
        if self.extra_level:
            levels.append(levels[-1][:, :, ::2, ::2])
        return levels


def set_norm_eval(module: nn.Module) -> None:
    """Make every trainable batch norm below `module` use its running statistics; call it after `.train()`."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()
