"""The architecture of a MAVL model as data, and the two sizes that OVBridge uses."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ovbridge.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A ResNet in torchvision's layout; the defaults are ResNet-101."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Residual block; a bottleneck puts out four times its width."""
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    """Residual blocks in the stages of stride 4, 8, 16 and 32."""
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Channels of the stages; the stem has `widths[0]`."""
    norm: Literal["frozen", "batch"] = "frozen"
    """Batch normalisation with fixed statistics (as pretrained backbones are used) or with learned ones."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A RoBERTa encoder; the defaults are roberta-base."""

    vocabulary_size: int = 50265
    """Token ids, special tokens included."""
    hidden: int = 768
    """Width of the token states."""
    layers: int = 12
    """Transformer layers."""
    heads: int = 12
    """Attention heads."""
    feedforward: int = 3072
    """Hidden width of the feed-forward blocks."""
    positions: int = 514
    """Position embeddings; the first two are not used (RoBERTa counts from the padding id)."""
    dropout: float = 0.1
    """Dropout while training."""


@dataclass(frozen=True, kw_only=True)
class MavlConfig:
    """A MAVL model; the defaults are the released MDef-DETR with ResNet-101 and roberta-base."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The image backbone."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text encoder."""
    d_model: int = 256
    """Width of the transformer."""
    heads: int = 8
    """Attention heads, deformable or not."""
    encoder_layers: int = 6
    """Deformable self-attention layers over the image tokens."""
    decoder_layers: int = 6
    """Layers in which the queries read the image."""
    fusion_layers: int = 6
    """Self-attention layers over queries and text tokens together."""
    feedforward: int = 1024
    """Hidden width of the feed-forward blocks."""
    levels: int = 4
    """Feature levels: 3 are strides 8, 16, 32; the 4th is one more strided convolution."""
    points: int = 4
    """Sampling points per head and level."""
    queries: int = 300
    """Learned queries, that is boxes per text."""
    token_positions: int = 256
    """Logits per box: one a text token, the last one "no object"."""
    image_short_side: int = 800
    """Images are resized to this short side; the long side is not limited."""
    dropout: float = 0.1
    """Dropout in the transformer while training."""

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> MavlConfig:
        """Read `to_json`'s form; raises CheckpointError where a field is unknown."""
        record: dict[str, Any] = json.loads(text)
        unknown = set(record) - {f.name for f in fields(cls)}
        if unknown:
            raise CheckpointError(f"MAVL config has unknown fields {sorted(unknown)}: written by a newer ovbridge")
        backbone: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in record.pop("backbone").items()
        }
        return cls(backbone=BackboneConfig(**backbone), text=TextConfig(**record.pop("text")), **record)


def mavl_full() -> MavlConfig:
    """The size of the released `MDef_DETR_r101` checkpoints."""
    return MavlConfig()


def mavl_small(vocabulary_size: int = 1024) -> MavlConfig:
    """The built-in proposer: trains on one CPU core in half an hour."""
    return MavlConfig(
        backbone=BackboneConfig(block="basic", blocks=(1, 1, 1, 1), widths=(24, 48, 96, 192), norm="batch"),
        text=TextConfig(
            vocabulary_size=vocabulary_size,
            hidden=96,
            layers=2,
            heads=4,
            feedforward=192,
            positions=66,
            dropout=0.0,
        ),
        d_model=96,
        heads=4,
        encoder_layers=1,
        decoder_layers=2,
        fusion_layers=2,
        feedforward=256,
        levels=3,
        points=4,
        queries=100,
        token_positions=32,
        image_short_side=128,
        dropout=0.0,
    )
