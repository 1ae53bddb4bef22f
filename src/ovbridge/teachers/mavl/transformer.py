"""Deformable encoder and decoder of MAVL, and its late fusion with text.

Legend: N images, S image tokens, Q queries, T (image, text) pairs, W words (text tokens), L levels, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovbridge.teachers.mavl.config import MavlConfig
from ovbridge.teachers.mavl.deformable_attention import DeformableAttention, LevelShapes, reads_tables

TOKENS_AT_ONCE = 1024
"""Image tokens that go through an encoder layer together on a CPU."""


def _xavier(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
            nn.init.xavier_uniform_(parameter)


def cell_centres(level_shapes: LevelShapes, valid_NL2: Tensor) -> Tensor:
    """Centres of all cells as (x, y) in [0, 1] of the unpadded image, [N, S, 2] (above 1 in the padding).

    `valid` is the part of the padded width and height that the image fills at each level.
    """
    points = []
    for level, (rows, columns) in enumerate(level_shapes):
        y, x = torch.meshgrid(
            torch.arange(rows, device=valid_NL2.device, dtype=valid_NL2.dtype) + 0.5,
            torch.arange(columns, device=valid_NL2.device, dtype=valid_NL2.dtype) + 0.5,
            indexing="ij",
        )
        cells = torch.stack([x.flatten() / columns, y.flatten() / rows], dim=-1)
        points.append(cells / valid_NL2[:, level, None])
    return torch.cat(points, dim=1)


class EncoderLayer(nn.Module):
    """Deformable self-attention over image tokens, post-norm."""

    def __init__(self, config: MavlConfig) -> None:
        super().__init__()
        d = config.d_model
        self.self_attn = DeformableAttention(d_model=d, heads=config.heads, levels=config.levels, points=config.points)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.linear1, self.linear2 = nn.Linear(d, config.feedforward), nn.Linear(config.feedforward, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        tokens_NSC: Tensor,
        position_NSC: Tensor,
        reference_NSL2: Tensor,
        shapes: LevelShapes,
        padding_NS: Tensor | None,
    ) -> Tensor:
        """The refined tokens [N, S, C]."""
        if not reads_tables(tokens_NSC):
            read = self.self_attn(tokens_NSC + position_NSC, reference_NSL2, tokens_NSC, shapes, padding_NS)
            return self._mix(tokens_NSC, read)
        reader = self.self_attn.reader(tokens_NSC, shapes, padding_NS)
        out = torch.empty_like(tokens_NSC)
        # In parts that stay in the cache: the widest of the tensors between has 4 * C values a token.
        size = max(1, TOKENS_AT_ONCE // len(tokens_NSC))
        for start in range(0, tokens_NSC.shape[1], size):
            part = slice(start, start + size)
            tokens = tokens_NSC[:, part]
            out[:, part] = self._mix(tokens, reader(tokens + position_NSC[:, part], reference_NSL2[:, part]))
        return out

    def _mix(self, tokens_NSC: Tensor, read_NSC: Tensor) -> Tensor:
        x = self.norm1(tokens_NSC + self.dropout(read_NSC))
        out: Tensor = self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return out


class Encoder(nn.Module):
    """The stack of encoder layers."""

    def __init__(self, config: MavlConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        _xavier(self)

    def forward(
        self,
        tokens_NSC: Tensor,
        position_NSC: Tensor,
        centres_NS2: Tensor,
        shapes: LevelShapes,
        valid_NL2: Tensor,
        padding_NS: Tensor | None,
    ) -> Tensor:
        """The image memory [N, S, C]."""
        reference = centres_NS2[:, :, None] * valid_NL2[:, None]
        for layer in self.layers:
            tokens_NSC = layer(tokens_NSC, position_NSC, reference, shapes, padding_NS)
        return tokens_NSC


class DecoderLayer(nn.Module):
    """Self-attention among queries, then deformable attention to the image memory, post-norm."""

    def __init__(self, config: MavlConfig) -> None:
        super().__init__()
        d = config.d_model
        self.cross_attn = DeformableAttention(d_model=d, heads=config.heads, levels=config.levels, points=config.points)
        self.self_attn = nn.MultiheadAttention(d, config.heads, dropout=config.dropout, batch_first=True)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.linear1, self.linear2 = nn.Linear(d, config.feedforward), nn.Linear(config.feedforward, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        target_NQC: Tensor,
        query_NQC: Tensor,
        reference_NQL2: Tensor,
        memory_NSC: Tensor,
        shapes: LevelShapes,
        padding_NS: Tensor | None,
    ) -> Tensor:
        """The refined queries [N, Q, C]."""
        keys = target_NQC + query_NQC
        mixed, _ = self.self_attn(keys, keys, target_NQC, need_weights=False)
        x = self.norm2(target_NQC + self.dropout(mixed))
        read = self.cross_attn(x + query_NQC, reference_NQL2, memory_NSC, shapes, padding_NS)
        x = self.norm1(x + self.dropout(read))
        out: Tensor = self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return out


class Decoder(nn.Module):
    """The stack of decoder layers; reference points stay where they are (no iterative refinement)."""

    def __init__(self, config: MavlConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        _xavier(self)

    def forward(
        self,
        target_NQC: Tensor,
        query_NQC: Tensor,
        reference_NQ2: Tensor,
        memory_NSC: Tensor,
        shapes: LevelShapes,
        valid_NL2: Tensor,
        padding_NS: Tensor | None,
    ) -> list[Tensor]:
        """The queries after each layer, each [N, Q, C]."""
        reference_NQL2 = reference_NQ2[:, :, None] * valid_NL2[:, None]
        outputs = []
        for layer in self.layers:
            target_NQC = layer(target_NQC, query_NQC, reference_NQL2, memory_NSC, shapes, padding_NS)
            outputs.append(target_NQC)
        return outputs


class FusionLayer(nn.Module):
    """Plain post-norm self-attention over the sequence [queries, words]."""

    def __init__(self, config: MavlConfig) -> None:
        super().__init__()
        d = config.d_model
        self.self_attn = nn.MultiheadAttention(d, config.heads, dropout=config.dropout, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.linear1, self.linear2 = nn.Linear(d, config.feedforward), nn.Linear(config.feedforward, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, sequence_TQWC: Tensor, padding_TQW: Tensor) -> Tensor:
        """The refined sequence; `padding` is True at positions that nobody may read."""
        x = sequence_TQWC
        mixed, _ = self.self_attn(x, x, x, key_padding_mask=padding_TQW, need_weights=False)
        x = self.norm1(x + self.dropout(mixed))
        out: Tensor = self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return out


class LateFusion(nn.Module):
    """Text meets the image here and nowhere else: one image's queries serve any number of texts."""

    def __init__(self, config: MavlConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config) for _ in range(config.fusion_layers))
        _xavier(self)

    def forward(self, queries_TQC: Tensor, words_TWC: Tensor, word_padding_TW: Tensor) -> list[Tensor]:
        """The queries after each layer, each [T, Q, C]."""
        count = queries_TQC.shape[1]
        sequence = torch.cat([queries_TQC, words_TWC], dim=1)
        padding = F.pad(word_padding_TW, (count, 0), value=False)
        outputs = []
        for layer in self.layers:
            sequence = layer(sequence, padding)
            outputs.append(sequence[:, :count])
        return outputs
