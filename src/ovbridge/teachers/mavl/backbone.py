"""The image side before the transformer: ResNet stages, input projections, position embedding.

Legend: N images, C channels, H W rows and columns of a level.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from ovbridge.teachers.mavl.config import BackboneConfig

_BLOCKS: dict[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
_NORMS: dict[str, Callable[..., nn.Module]] = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}


class ResNet(nn.Module):
    """A ResNet without its classifier; parameter names and strides are torchvision's."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        block, norm = _BLOCKS[config.block], _NORMS[config.norm]
        stem = config.widths[0]
        self.conv1 = nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels, stages = stem, []
        for index, (count, width) in enumerate(zip(config.blocks, config.widths, strict=True)):
            out = width * block.expansion
            stride = 1 if index == 0 else 2
            shortcut = None
            if stride != 1 or channels != out:
                shortcut = nn.Sequential(nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False), norm(out))
            blocks = [block(channels, width, stride, shortcut, norm_layer=norm)]
            blocks += [block(out, width, norm_layer=norm) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.out_channels = tuple(width * block.expansion for width in config.widths[1:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels_N3HW: Tensor) -> list[Tensor]:
        """Features of stride 8, 16 and 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(pixels_N3HW))))
        stride8 = self.layer2(self.layer1(x))
        stride16 = self.layer3(stride8)
        return [stride8, stride16, self.layer4(stride16)]


class InputProjections(nn.ModuleList):
    """Brings every level to d_model channels; levels beyond the third are strided convolutions."""

    def __init__(self, in_channels: tuple[int, ...], d_model: int, levels: int) -> None:
        projections = [nn.Conv2d(channels, d_model, kernel_size=1) for channels in in_channels]
        channels = in_channels[-1]
        for _ in range(levels - len(in_channels)):
            projections.append(nn.Conv2d(channels, d_model, kernel_size=3, stride=2, padding=1))
            channels = d_model
        super().__init__(nn.Sequential(conv, nn.GroupNorm(32, d_model)) for conv in projections)
        for conv in projections:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One [N, d_model, H, W] per level."""
        levels = [self[level](feature) for level, feature in enumerate(features)]
        for level in range(len(features), len(self)):
            # The fourth level reads the raw stride-32 features, later ones their predecessor (Deformable DETR).
            levels.append(self[level](features[-1] if level == len(features) else levels[-1]))
        return levels


def level_padding(padding_NHW: Tensor, rows: int, columns: int) -> Tensor:
    """The image's padding mask (True = no image) at a level's size."""
    return F.interpolate(padding_NHW[:, None].float(), size=(rows, columns))[:, 0].bool()


def sine_position(padding_NHW: Tensor, d_model: int, *, temperature: float = 10000.0) -> Tensor:
    """Sine embedding [N, d_model, H, W] of each cell's row and column, counted from 1, over the image's (DETR)."""
    inside = (~padding_NHW).float()
    rows, columns = inside.cumsum(1), inside.cumsum(2)
    rows = rows / (rows[:, -1:] + 1e-6) * (2.0 * math.pi)
    columns = columns / (columns[:, :, -1:] + 1e-6) * (2.0 * math.pi)
    return torch.cat(
        [sine_features(rows, d_model // 2, temperature), sine_features(columns, d_model // 2, temperature)], dim=-1
    ).permute(0, 3, 1, 2)


def sine_features(phase: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Interleaved sine and cosine of `phase` at `width // 2` wavelengths: [..., width]."""
    exponent = 2.0 * torch.div(torch.arange(width, device=phase.device), 2, rounding_mode="floor") / width
    angle = phase[..., None] / temperature**exponent
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2)
