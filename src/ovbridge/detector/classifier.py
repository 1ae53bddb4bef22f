"""The open-vocabulary classifier: logit = scale * cos(region, text) + bias, for any text bank.

Legend: R regions, K classes, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CosineClassifier(nn.Module):
    """Scores region embeddings against fixed text embeddings.

    The background class has the zero vector as its text, so its logit is the bias; it takes part only where the
    image-level loss asks for it.
    """

    text_KD: Tensor  # noqa: N815 - dense-maths suffix

    def __init__(self, text_KD: Tensor, *, scale: float, bias: float | None) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("text_KD", F.normalize(text_KD.float(), dim=1))
        self.bias = None if bias is None else nn.Parameter(torch.tensor([bias]))

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return len(self.text_KD)

    def set_text_bank(self, embeddings_KD: Tensor) -> None:
        """Replace the vocabulary; rows need not be unit length. Raises ValueError for another width."""
        if embeddings_KD.ndim != 2 or embeddings_KD.shape[1] != self.text_KD.shape[1]:
            raise ValueError(
                f"text bank is {tuple(embeddings_KD.shape)}, the classifier needs [K, {self.text_KD.shape[1]}]"
            )
        self.text_KD = F.normalize(embeddings_KD.float(), dim=1).to(self.text_KD.device)

    def query(self, embedding_RD: Tensor) -> Tensor:
        """Scaled unit rows [R, D]: a logit is their product with a text row, plus the bias."""
        return self.scale * F.normalize(embedding_RD.float(), dim=1)

    def forward(self, embedding_RD: Tensor) -> Tensor:
        """Logits [R, K], in float32."""
        with torch.autocast(embedding_RD.device.type, enabled=False):
            logits_RK = self.query(embedding_RD) @ self.text_KD.T
            return logits_RK if self.bias is None else logits_RK + self.bias

    def with_background(self, logits_RK: Tensor) -> Tensor:
        """[R, K + 1]: the background logit appended."""
        background = logits_RK.new_zeros((len(logits_RK), 1))
        if self.bias is not None:
            background = background + self.bias
        return torch.cat([logits_RK, background], dim=1)
