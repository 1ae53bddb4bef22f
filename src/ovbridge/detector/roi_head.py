"""The region head: pooled regions → region features → class logits, box deltas, distilled embeddings.

Legend: R regions of all images, F region feature, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.detector.backbone import BottleneckBlock, Norm, residual_stage
from ovbridge.detector.classifier import CosineClassifier
from ovbridge.detector.library_body import LibraryTrunk
from ovbridge.detector.pooling import RegionPooler
from ovbridge.detector.projection import Projection
from ovbridge.detector.strided_pooling import pool_every_second_cell


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
        first, *rest = self.stage5
        x = self._first_block(cast(BottleneckBlock, first), features[0], rois)
        for block in rest:
            x = block(x)
        return x.mean(dim=(2, 3))

    def _first_block(self, block: BottleneckBlock, feature: Tensor, rois: Tensor) -> Tensor:
        if not self.starts_on_the_map:
            return cast(Tensor, block(self.pooler([feature], rois)))
        assert block.shortcut is not None
        inner_weight, inner_bias = block.conv1.folded()
        skip_weight, skip_bias = block.shortcut.folded()
        # Both strided 1x1 convolutions run on the map, before pooling. Their biases come after it, because a region
        # reaching outside the image pools zeros there.
        mixed = F.conv2d(feature, torch.cat([inner_weight, skip_weight]))
        pooled = pool_every_second_cell(mixed, rois, self.pooler.strides[0], self.pooler.resolution)
        inner, skip = torch.split(pooled, [len(inner_bias), len(skip_bias)], dim=1)
        inner = F.relu(inner + inner_bias[:, None, None].to(inner.dtype))
        return block.finish(inner, skip + skip_bias[:, None, None].to(skip.dtype))


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
    def in_chunks(self, features: Sequence[Tensor], rois: Tensor, chunk: int = 256) -> Tensor:
        """The trunk [R, F] with bounded memory, for use without gradient."""
        return torch.cat([self.trunk(features, part) for part in torch.split(rois, chunk)])
