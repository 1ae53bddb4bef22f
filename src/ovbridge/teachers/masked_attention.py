"""CLIP's image tower asked about a part of its input: the class token reads only the patches inside a box.

Patches attend to each other as they always do, so what they say of the object is informed by its surroundings; only
what is read out of them is confined to the box. With a box over the whole input this is CLIP itself.
Sources: MaskCLIP (arXiv 2208.08984, §3.3), OADP (arXiv 2303.05892, §3.2).
Legend: N crops, P patches, L = P + 1 tokens, H heads, C width, D embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.errors import TeacherError


def patches_inside(boxes_N4: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """[N, P] bool: the patches, row by row, that share some area with each box (xyxy in pixels of the input).

    A box without area, or outside, has the patch at its centre.
    """
    rows, columns = grid
    x1, y1, x2, y2 = boxes_N4.float().unbind(dim=1)
    x = torch.arange(columns, device=boxes_N4.device) * (size / columns)
    y = torch.arange(rows, device=boxes_N4.device) * (size / rows)
    across = (x[None] < x2[:, None]) & (x[None] + size / columns > x1[:, None])
    down = (y[None] < y2[:, None]) & (y[None] + size / rows > y1[:, None])
    inside = (down[:, :, None] & across[:, None, :]).flatten(1)
    centre_x = ((x1 + x2) / 2 / size * columns).long().clamp(0, columns - 1)
    centre_y = ((y1 + y2) / 2 / size * rows).long().clamp(0, rows - 1)
    nowhere = ~inside.any(dim=1)
    inside[nowhere, (centre_y * columns + centre_x)[nowhere]] = True
    return inside


def encode_masked(model: nn.Module, pixels_N3HW: Tensor, boxes_N4: Tensor, *, name: str) -> Tensor:
    """[N, D] embeddings of the boxes (xyxy in pixels of the square input), not normalised.

    Raises TeacherError where `name`'s image tower is neither a vision transformer nor a modified ResNet of open_clip.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    tower, size = model.visual, int(pixels_N3HW.shape[-1])
    if isinstance(tower, VisionTransformer) and tower.attn_pool is None and tower.pool_type == "tok":
        return _vision_transformer(tower, pixels_N3HW, boxes_N4, size)
    if isinstance(tower, ModifiedResNet):
        return _modified_resnet(tower, pixels_N3HW, boxes_N4, size)
    raise TeacherError(
        f"the image tower of {name} ({type(tower).__name__}) has no class token to mask: use tight or square"
    )


def _vision_transformer(tower: Any, pixels_N3HW: Tensor, boxes_N4: Tensor, size: int) -> Tensor:
    inside_NP = patches_inside(boxes_N4, tower.grid_size, size)
    heads: int = tower.transformer.resblocks[0].attn.num_heads
    tokens_NLC: Tensor = tower._embeds(pixels_N3HW)
    length = tokens_NLC.shape[1]
    mask_NLL = tokens_NLC.new_zeros(len(tokens_NLC), length, length)
    # Row 0 is the class token: it reads itself and the patches inside.
    mask_NLL[:, 0, 1:] = torch.zeros_like(inside_NP, dtype=mask_NLL.dtype).masked_fill(~inside_NP, float("-inf"))
    tokens_NLC = tower.transformer(tokens_NLC, attn_mask=mask_NLL.repeat_interleave(heads, dim=0))
    pooled_NC, _ = tower._pool(tokens_NLC)
    embeddings: Tensor = pooled_NC if tower.proj is None else pooled_NC @ tower.proj
    return embeddings


def _modified_resnet(tower: Any, pixels_N3HW: Tensor, boxes_N4: Tensor, size: int) -> Tensor:
    """The attention pooling that ends the tower, its query and its keys taken from inside the box."""
    features = pixels_N3HW
    for part in (tower.stem, tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        features = part(features)
    inside_NP = patches_inside(boxes_N4, (features.shape[2], features.shape[3]), size)
    pool = tower.attnpool
    patches_PNC = features.flatten(2).permute(2, 0, 1)
    weights_PN1 = (inside_NP / inside_NP.sum(dim=1, keepdim=True)).T[:, :, None].to(patches_PNC.dtype)
    mean_1NC = (patches_PNC * weights_PN1).sum(dim=0, keepdim=True)
    tokens = torch.cat([mean_1NC, patches_PNC]) + pool.positional_embedding[:, None]
    outside_NL = F.pad(~inside_NP, (1, 0), value=False)
    pooled, _ = F.multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=tokens.shape[-1],
        num_heads=pool.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        training=False,
        key_padding_mask=outside_NL,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    embeddings: Tensor = pooled[0]
    return embeddings
