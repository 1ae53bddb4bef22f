"""The region head: pooled regions → region features → class logits, box deltas, distilled embeddings.

Legend: R regions of all images, F region feature, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.detector.backbone import BottleneckBlock, Norm, folded_once, residual_stage
from ovbridge.detector.classifier import CosineClassifier
from ovbridge.detector.gathered_pooling import CellTaps
from ovbridge.detector.library_body import LibraryTrunk
from ovbridge.detector.pooling import RegionPooler
from ovbridge.detector.projection import Projection

REGIONS_AT_ONCE = 256
"""Regions that go through stage 5 together without gradients: what lies between two of its layers stays near."""


class Stage5Trunk(nn.Module):
    """C4: residual stage 5 on every region, then the mean over its pixels."""

    def __init__(
        self, pooler: RegionPooler, inputs: int, *, channels: int, depth: int, norm: Norm, stride_in_1x1: bool
    ) -> None:
        super().__init__()
        self.features = channels
        self.pooler = pooler
        self.stage5 = residual_stage(
            inputs, channels, depth, stride=2, block="bottleneck", norm=norm, stride_in_1x1=stride_in_1x1
        )
        self.starts_on_the_map = norm == "frozen" and stride_in_1x1

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Maps [B, C, H, W] and regions [R, 5] → [R, F]."""
        if not self.starts_on_the_map:
            return self._finish(self.stage5(self.pooler([features[0]], rois)))
        first, *rest = self.stage5
        assert isinstance(first, BottleneckBlock)
        assert first.shortcut is not None
        if torch.is_grad_enabled():
            return self._from_the_map(first, rest, self._maps(first, features[0]), rois)
        with folded_once(self.stage5):
            maps = self._maps(first, features[0])
            parts = torch.split(rois, REGIONS_AT_ONCE)
            return torch.cat([self._from_the_map(first, rest, maps, part) for part in parts])

    def _maps(self, first: BottleneckBlock, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Both strided 1x1 convolutions of the first block on the map: before pooling they are nearly free.

        Their biases come after it, because a region reaching outside the image pools zeros there.
        """
        assert first.shortcut is not None
        return F.conv2d(feature, first.conv1.folded()[0]), F.conv2d(feature, first.shortcut.folded()[0])

    def _from_the_map(
        self, first: BottleneckBlock, rest: Sequence[nn.Module], maps: tuple[Tensor, Tensor], rois: Tensor
    ) -> Tensor:
        assert first.shortcut is not None
        size = (maps[0].shape[2], maps[0].shape[3])
        stride, cells = self.pooler.strides[0], self.pooler.resolution
        taps = CellTaps(rois, size, stride=stride, cells=cells, every=2, images=len(maps[0]))
        inner, skip = (taps.pool(values) for values in maps)
        inner = F.relu_(inner + first.conv1.folded()[1][:, None, None].to(inner.dtype))
        x = first.finish(inner, skip, first.shortcut.folded()[1])
        for block in rest:
            x = block(x)
        return self._finish(x)

    @staticmethod
    def _finish(x: Tensor) -> Tensor:
        return cast(Tensor, _Mean.apply(x))


class _Mean(torch.autograd.Function):
    """Mean over the pixels of each region [R, F, H, W] in fp32: [R, F].

    The gradient is written once, as `x` lies in memory and in its dtype; PyTorch's own is written in fp32, channels
    first, and converted.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.like = torch.empty_like(x, device="meta")
        with torch.autocast(x.device.type, enabled=False):
            return x.mean(dim=(2, 3), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient_RF,) = gradients
        made = torch.empty_like(ctx.like, device=gradient_RF.device)
        return made.copy_((gradient_RF / (made.shape[2] * made.shape[3]))[:, :, None, None])


class FullyConnectedTrunk(nn.Module):
    """FPN: fully connected layers with ReLU on the flattened region."""

    def __init__(self, pooler: RegionPooler, inputs: int, *, widths: Sequence[int]) -> None:
        super().__init__()
        self.features = widths[-1]
        self.pooler = pooler
        self.layers = nn.ModuleList()
        width = inputs * pooler.resolution**2
        for output in widths:
            layer = nn.Linear(width, output)
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
            width = output

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Maps [B, C, H, W] and regions [R, 5] → [R, F]."""
        x: Tensor = self.pooler(features, rois).flatten(1)
        for layer in self.layers:
            x = F.relu_(layer(x))
        return x


class BoxRegressor(nn.Module):
    """Class-agnostic deltas: Linear - ReLU - Linear."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, features)
        self.fc2 = nn.Linear(features, 4)
        nn.init.normal_(self.fc2.weight, std=0.001)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, region_RF: Tensor) -> Tensor:
        """[R, F] → [R, 4]."""
        return cast(Tensor, self.fc2(F.relu_(self.fc1(region_RF)))).float()


Trunk = Stage5Trunk | FullyConnectedTrunk | LibraryTrunk


class RoIHead(nn.Module):
    """Trunk, projection, classifier and box regression; the parts are given."""

    def __init__(
        self,
        *,
        trunk: Trunk,
        projection: Projection,
        classifier: CosineClassifier,
        box_regressor: BoxRegressor,
    ) -> None:
        super().__init__()
        self.trunk: Trunk = trunk
        self.projection: Projection = projection
        self.classifier = classifier
        self.box_regressor = box_regressor

    def logits(self, region_RF: Tensor) -> Tensor:
        """[R, F] → [R, K] before the sigmoid."""
        return cast(Tensor, self.classifier(self.projection(region_RF)))

    def unit_embeddings(self, region_RF: Tensor) -> Tensor:
        """[R, F] → [R, D] of unit length, as classification sees the regions."""
        return F.normalize(self.projection(region_RF).float(), dim=1)

    def distilled_unit_embeddings(self, region_RF: Tensor) -> Tensor:
        """[R, F] → [R, D] of unit length, as distillation compares them with CLIP."""
        return F.normalize(self.projection.distilled(region_RF).float(), dim=1)

    @torch.no_grad()
    def in_chunks(self, features: Sequence[Tensor], rois: Tensor, chunk: int = 1024) -> Tensor:
        """The trunk [R, F] with bounded memory, for use without gradient."""
        return torch.cat([self.trunk(features, part) for part in torch.split(rois, chunk)])
