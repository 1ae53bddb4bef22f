"""MAVL composed: encode an image once, fuse any number of texts with it.

Legend: N images, S image tokens, Q queries, T (image, text) pairs, W words, L levels, C width, K token positions.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovbridge.teachers.mavl.backbone import InputProjections, ResNet, level_padding, sine_features, sine_position
from ovbridge.teachers.mavl.config import MavlConfig
from ovbridge.teachers.mavl.text import TextEncoder
from ovbridge.teachers.mavl.transformer import Decoder, Encoder, LateFusion, cell_centres

_INITIAL_BOX_LOGIT = -1.7
"""Boxes start 15 % of the image wide and high: near the size of what they must find."""


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """All that the texts need to know about a batch of images."""

    memory: Tensor
    """Encoder output."""
    level_shapes: tuple[tuple[int, int], ...]
    """Rows and columns of each level in S."""
    padding: Tensor | None
    """True at tokens outside the image; None where the batch has no padding."""
    centres: Tensor
    """(x, y) of each token in [0, 1] of the unpadded image; N is 1 where the batch has no padding."""
    decoded: tuple[Tensor, ...]
    """[N, Q, C] after each decoder layer."""
    reference: Tensor
    """Where each query looks, (x, y) in [0, 1] of the unpadded image."""


def whole_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """No autocast inside, except in training: from the decoder on, rounding to bf16 changes which boxes are best.

    Of the five best regions an image of the built-in proposer 5 % then overlapped those of fp32 by less than 0.9; with
    bf16 in the backbone and the encoder alone, where nine tenths of the time go, none.
    """
    return nullcontext() if torch.is_grad_enabled() else torch.autocast(tensor.device.type, enabled=False)


def inverse_sigmoid(p: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of p, with p and 1 - p kept above eps."""
    p = p.clamp(0.0, 1.0)
    return torch.log(p.clamp(min=eps) / (1.0 - p).clamp(min=eps))


def spread_points(count: int) -> Tensor:
    """`count` points (x, y) on an even grid over the unit square, row by row."""
    rows = max(1, round(math.sqrt(count)))
    per_row = [count * (r + 1) // rows - count * r // rows for r in range(rows)]
    points = [((c + 0.5) / n, (r + 0.5) / rows) for r, n in enumerate(per_row) for c in range(n)]
    return torch.tensor(points)


class BoxHead(nn.Module):
    """Three linear layers with ReLU between."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d_model, d_model), nn.Linear(d_model, d_model), nn.Linear(d_model, 4)])
        last = self.layers[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        last.bias.data = torch.tensor([0.0, 0.0, _INITIAL_BOX_LOGIT, _INITIAL_BOX_LOGIT])

    def forward(self, x: Tensor) -> Tensor:
        """Box logits [..., 4]: centre relative to the reference point, size."""
        for layer in list(self.layers)[:-1]:
            x = F.relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits


class Mavl(nn.Module):
    """A text-driven proposer; the same class at full size and small."""

    def __init__(self, config: MavlConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.backbone = ResNet(config.backbone)
        self.input_proj = InputProjections(self.backbone.out_channels, d, config.levels)
        self.level_embed = nn.Parameter(torch.randn(config.levels, d) * 0.1)
        self.encoder = Encoder(config)
        self.query_embed = nn.Embedding(config.queries, 2 * d)
        self.reference_points = nn.Linear(d, 2)
        self.decoder = Decoder(config)
        self.text = TextEncoder(config.text, d, config.dropout)
        self.fusion = LateFusion(config)
        self.class_head = nn.Linear(d, config.token_positions)
        self.box_head = BoxHead(d)
        self._spread_queries()

    @torch.no_grad()
    def _spread_queries(self) -> None:
        """Queries start on an even grid: the first two numbers of each are its reference point's logits, the rest
        of its position half is the sine embedding of that point; contents start small and distinct."""
        d = self.config.d_model
        points = spread_points(self.config.queries)
        half = sine_features(points * (2.0 * math.pi), d // 2).flatten(1)
        self.query_embed.weight[:, :2] = inverse_sigmoid(points)
        self.query_embed.weight[:, 2:d] = half[:, 2:]
        self.query_embed.weight[:, d:] = 0.1 * torch.randn(self.config.queries, d)
        nn.init.zeros_(self.reference_points.weight)
        self.reference_points.weight[:, :2] = torch.eye(2)
        nn.init.zeros_(self.reference_points.bias)

    def encode(self, pixels_N3HW: Tensor, padding_NHW: Tensor | None = None) -> EncodedImages:
        """Everything before the text. `pixels` are normalised with ImageNet's mean and deviation, RGB, zero where
        `padding` is True (to the right and below)."""
        features = self.input_proj(self.backbone(pixels_N3HW))
        shapes = tuple((f.shape[2], f.shape[3]) for f in features)
        if padding_NHW is None:
            image = torch.zeros(1, *pixels_N3HW.shape[2:], dtype=torch.bool, device=pixels_N3HW.device)
        else:
            image = padding_NHW
        masks = [level_padding(image, *shape) for shape in shapes]
        inside = [(~m).float() for m in masks]
        valid_NL2 = torch.stack([torch.stack([m[:, 0].mean(1), m[:, :, 0].mean(1)], dim=-1) for m in inside], dim=1)
        positions = [
            sine_position(mask, self.config.d_model) + level[None, :, None, None]
            for mask, level in zip(masks, self.level_embed, strict=True)
        ]
        # Under autocast the features are bf16; from here on what is added up stays fp32.
        tokens_NSC = torch.cat([f.flatten(2).transpose(1, 2) for f in features], dim=1).to(self.level_embed.dtype)
        position_NSC = torch.cat([p.flatten(2) for p in positions], dim=2).transpose(1, 2)
        padding_NS = None if padding_NHW is None else torch.cat([m.flatten(1) for m in masks], dim=1)
        centres_NS2 = cell_centres(shapes, valid_NL2)
        memory = self.encoder(tokens_NSC, position_NSC, centres_NS2, shapes, valid_NL2, padding_NS)

        query, target = self.query_embed.weight.expand(len(pixels_N3HW), -1, -1).chunk(2, dim=-1)
        with whole_precision(query):
            reference = self.reference_points(query).sigmoid()
            decoded = self.decoder(target, query, reference, memory, shapes, valid_NL2, padding_NS)
        return EncodedImages(
            memory=memory,
            level_shapes=shapes,
            padding=padding_NS,
            centres=centres_NS2,
            decoded=tuple(decoded),
            reference=reference,
        )

    def encode_text(self, token_ids_TW: Tensor, padding_TW: Tensor) -> Tensor:
        """Words [T, W, C]; they do not depend on the image and can be kept."""
        words_TWC: Tensor = self.text(token_ids_TW, padding_TW)
        return words_TWC

    def fuse(
        self, encoded: EncodedImages, image_of_text_T: Tensor, words_TWC: Tensor, word_padding_TW: Tensor
    ) -> list[Tensor]:
        """The queries of each text's image after each fusion layer, [T, Q, C]; the heads read the last one."""
        with whole_precision(words_TWC):
            layers: list[Tensor] = self.fusion(encoded.decoded[-1][image_of_text_T], words_TWC, word_padding_TW)
        return layers

    def boxes(self, queries: Tensor, reference: Tensor) -> Tensor:
        """Boxes (cx, cy, w, h) [..., 4] in [0, 1] of the unpadded image; `reference` is [..., 2]."""
        with whole_precision(queries):
            logits = self.box_head(queries.to(self.level_embed.dtype))
            return torch.cat([logits[..., :2] + inverse_sigmoid(reference), logits[..., 2:]], dim=-1).sigmoid()

    def token_logits(self, queries: Tensor) -> Tensor:
        """Logits [..., K] over the text's token positions; the last is "no object"."""
        with whole_precision(queries):
            logits: Tensor = self.class_head(queries.to(self.level_embed.dtype))
        return logits
