"""From region features to the text encoder's space: one linear layer, or weights transferred from one.

Legend: R regions, F region feature, D embedding, H hidden. Section 3.4 of arXiv 2207.03482.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.detector.config import ProjectionConfig


class LinearProjection(nn.Module):
    """`W_D x + b`: one layer for classification and for distillation."""

    def __init__(self, features: int, embedding_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, embedding_dim)

    def forward(self, region_RF: Tensor) -> Tensor:
        """[R, F] → embedding [R, D] that is compared with text; not normalised."""
        return self.distilled(region_RF)

    def distilled(self, region_RF: Tensor) -> Tensor:
        """[R, F] → embedding [R, D] that is compared with CLIP's image embedding; not normalised."""
        embedding: Tensor = self.linear(region_RF)
        return embedding


class WeightTransferProjection(nn.Module):
    """`W_P x + skip(x)` with `W_P = MLP(W_D)`, where the distilled `W_D` stays as it is.

    The MLP acts on the rows of `W_D` [D, F]; only it and the skip branch learn.
    """

    def __init__(
        self,
        features: int,
        embedding_dim: int,
        *,
        hidden: int,
        residual_hidden: int,
        negative_slope: float,
        layers: int = 2,
        residual: bool = True,
        freeze_distilled: bool = True,
    ) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.linear = nn.Linear(features, embedding_dim).requires_grad_(not freeze_distilled)
        self.transfer1 = nn.Linear(features, hidden if layers > 1 else features)
        self.transfer2 = nn.Linear(hidden, features) if layers > 1 else None
        self.residual1 = nn.Linear(features, residual_hidden) if residual else None
        self.residual2 = nn.Linear(residual_hidden, embedding_dim) if residual else None
        self.between = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 2))

    @torch.no_grad()
    def start_at_identity(self) -> None:
        """Set the new layers so that `W_P = W_D` and the skip branch adds only the bias of the linear layer.

        leaky(x) - leaky(-x) = (1 + slope) x, so two hidden units a feature carry it through unchanged.
        Raises ValueError if there are fewer.
        """
        hidden, features = self.transfer1.weight.shape
        if self.transfer2 is None or self.residual1 is None or self.residual2 is None or len(self.between):
            raise ValueError("an identity start needs transfer.layers 2 and the residual branch")
        if hidden < 2 * features:
            raise ValueError(f"an identity start needs transfer.hidden >= {2 * features}, it is {hidden}")
        eye = torch.eye(features)
        gain = 1 / (1 + self.negative_slope)
        self.transfer1.weight[: 2 * features] = torch.cat([eye, -eye])
        self.transfer2.weight.zero_()
        self.transfer2.weight[:, : 2 * features] = gain * torch.cat([eye, -eye], dim=1)
        for silent in (self.transfer1.bias, self.transfer2.bias, self.residual2.weight):
            silent.zero_()
        self.residual2.bias.copy_(self.linear.bias)

    def transferred_weight(self) -> Tensor:
        """`W_P` [D, F]."""
        weight: Tensor = self.transfer1(self.linear.weight)
        for layer in (*self.between, self.transfer2):
            if layer is not None:
                weight = layer(F.leaky_relu(weight, self.negative_slope))
        return weight

    def forward(self, region_RF: Tensor) -> Tensor:
        """[R, F] → embedding [R, D] that is compared with text; not normalised."""
        embedding: Tensor = F.linear(region_RF, self.transferred_weight())
        if self.residual1 is None or self.residual2 is None:
            return embedding
        skip_RH = F.leaky_relu(self.residual1(region_RF), self.negative_slope)
        skip_RD: Tensor = self.residual2(skip_RH)
        return embedding + skip_RD

    def distilled(self, region_RF: Tensor) -> Tensor:
        """[R, F] → embedding [R, D] under the frozen `W_D`: distillation trains the region features only."""
        embedding: Tensor = self.linear(region_RF)
        return embedding


Projection = LinearProjection | WeightTransferProjection


def build_projection(features: int, config: ProjectionConfig) -> Projection:
    """The projection that `config` describes, on region features of width `features`."""
    if config.transfer is None:
        return LinearProjection(features, config.embedding_dim)
    return WeightTransferProjection(
        features,
        config.embedding_dim,
        hidden=config.transfer.hidden,
        residual_hidden=config.transfer.residual_hidden,
        negative_slope=config.transfer.negative_slope,
        layers=config.transfer.layers,
        residual=config.transfer.residual,
        freeze_distilled=config.transfer.freeze_distilled,
    )
