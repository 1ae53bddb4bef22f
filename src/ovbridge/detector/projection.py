"""From region features to the text encoder's space: one linear layer, or weights transferred from one.

Legend: R regions, F region feature, D embedding, H hidden. Section 3.4 of arXiv 2207.03482.
"""

from __future__ import annotations

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
        self, features: int, embedding_dim: int, *, hidden: int, residual_hidden: int, negative_slope: float
    ) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.linear = nn.Linear(features, embedding_dim).requires_grad_(False)
        self.transfer1 = nn.Linear(features, hidden)
        self.transfer2 = nn.Linear(hidden, features)
        self.residual1 = nn.Linear(features, residual_hidden)
        self.residual2 = nn.Linear(residual_hidden, embedding_dim)

    def transferred_weight(self) -> Tensor:
        """`W_P` [D, F]."""
        hidden_DH = F.leaky_relu(self.transfer1(self.linear.weight), self.negative_slope)
        weight_DF: Tensor = self.transfer2(hidden_DH)
        return weight_DF

    def forward(self, region_RF: Tensor) -> Tensor:
        """[R, F] → embedding [R, D] that is compared with text; not normalised."""
        skip_RH = F.leaky_relu(self.residual1(region_RF), self.negative_slope)
        embedding: Tensor = F.linear(region_RF, self.transferred_weight()) + self.residual2(skip_RH)
        return embedding

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
    )
