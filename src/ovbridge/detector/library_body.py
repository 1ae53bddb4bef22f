"""A torchvision or timm network inside the detector: as backbone, and its last stage as the trunk of the region head.

Legend: B images, R regions, C channels, F region feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ovbridge.detector.library_network import StagedNetwork
from ovbridge.detector.pooling import RegionPooler


def _channels_first(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 3, 1, 2).contiguous() if channels_last else x


class LibraryBody(nn.Module):
    """Stem and stages 2, 3, ... (of stride 2^s); returns the features of `out_stages`.

    For a pyramid, networks without batch norm get a layer norm on every output, as their features grow without bound.
    """

    def __init__(
        self, network: StagedNetwork, *, out_stages: Sequence[int], freeze_at: int, normalise_outputs: bool
    ) -> None:
        super().__init__()
        self.out_stages = tuple(out_stages)
        self.strides = tuple(2**s for s in out_stages)
        self.channels = tuple(network.channels[s - 2] for s in out_stages)
        self.channels_last = network.channels_last
        self.stem = network.stem
        numbered = enumerate(network.stages[: out_stages[-1] - 1], start=2)
        self.stages = nn.ModuleDict({str(stage): module for stage, module in numbered})
        self.output_norms = nn.ModuleDict()
        if normalise_outputs and not network.batch_norm:
            self.output_norms.update(
                {str(s): nn.LayerNorm(width) for s, width in zip(self.out_stages, self.channels, strict=True)}
            )
        frozen: list[nn.Module] = [self.stem] if freeze_at >= 1 else []
        frozen += [module for stage, module in self.stages.items() if int(stage) <= freeze_at]
        for module in frozen:
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised pixels [B, 3, H, W] → one map [B, C, H / stride, W / stride] an output stage."""
        x = self.stem(x)
        features = []
        for stage, blocks in self.stages.items():
            x = blocks(x)
            if int(stage) in self.out_stages:
                features.append(self._output(stage, x))
        return features

    def _output(self, stage: str, x: Tensor) -> Tensor:
        if stage not in self.output_norms:
            return _channels_first(x, self.channels_last)
        last = x if self.channels_last else x.permute(0, 2, 3, 1)
        return _channels_first(self.output_norms[stage](last), True)


class LibraryTrunk(nn.Module):
    """C4: the network's last stage on every region, then the mean over its pixels."""

    def __init__(self, pooler: RegionPooler, network: StagedNetwork) -> None:
        super().__init__()
        self.features = network.channels[3]
        self.pooler = pooler
        self.channels_last = network.channels_last
        self.stage5 = network.stages[3]
        self.norm = nn.Identity() if network.batch_norm else nn.LayerNorm(self.features)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Maps [B, C, H, W] and regions [R, 5] → [R, F]."""
        pooled: Tensor = self.pooler([features[0]], rois)
        x = self.stage5(pooled.permute(0, 2, 3, 1) if self.channels_last else pooled)
        return cast(Tensor, self.norm(_channels_first(x, self.channels_last).mean(dim=(2, 3))))
