"""Self-attention with the tokens left in the order in which they come, for inference.

`nn.MultiheadAttention` turns a batch [N, L, C] into [L, N, C] before it projects, and the product of that view with
the weights is, under autocast, computed with one copy of the weights a token: 350 MB of copies a layer for five crops
in ViT-B/32, nine tenths of the tower's time. Its other path writes all attention weights out.
Legend: N sequences, L tokens, H heads, C width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class BatchFirstSelfAttention(nn.MultiheadAttention):
    """The numbers of `nn.MultiheadAttention` where query, key and value are one [N, L, C]; never returns weights."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(attended [N, L, C], None).

        One mask at most: `key_padding_mask` is [N, L] bool, True where nobody may read; `attn_mask`, [L, L] or
        [N * H, L, L], is added to the logits. Everything else is left to the library.
        """
        two_masks = key_padding_mask is not None and attn_mask is not None
        if query is not key or key is not value or need_weights or others or two_masks:
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, **others)
        n, length, width = query.shape
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.view(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mask = None
        if key_padding_mask is not None:
            mask = ~key_padding_mask.bool()[:, None, None, :]
        elif attn_mask is not None:
            mask = attn_mask.to(q.dtype)
            mask = mask if mask.dim() == 2 else mask.view(n, self.num_heads, length, length)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(attended.transpose(1, 2).reshape(n, length, width))
        return out, None


def keep_batches_first(model: nn.Module) -> None:
    """Make every batch-first self-attention of `model` a `BatchFirstSelfAttention`, in place, for inference."""
    for module in model.modules():
        # The class is changed, not the module: whoever holds its parameters goes on holding them.
        if type(module) is nn.MultiheadAttention and module.batch_first and module.in_proj_weight is not None:
            module.__class__ = BatchFirstSelfAttention
