"""What a two-stage detector is made of: nested frozen records that travel inside every checkpoint.

A part that a detector does not have is None (no pyramid, no mask head, no weight transfer). What a number may be is
in its type, and checked where a record is read (`DetectorConfig.from_json`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ovbridge.errors import CheckpointError

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Several = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """How uint8 RGB pixels become network input: `(x - mean) / std`, zero padding afterwards."""

    mean: tuple[Finite, Finite, Finite]
    """Per channel, in `order`, in units of 0..255."""
    std: tuple[Positive, Positive, Positive]
    """Per channel, in `order`, in units of 0..255."""
    order: Literal["rgb", "bgr"] = "rgb"
    """Channel order that the network was trained on."""
    size_divisibility: Whole = 0
    """Height and width of a batch are padded to a multiple of this; 0 pads only to the largest image."""


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """Feature pyramid over the backbone's output stages (arXiv 1612.03144)."""

    channels: Count = 256
    """Channels of every level."""
    extra_level: bool = True
    """One more level for the RPN alone: the last one, subsampled by 2."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A residual network; stages are numbered from 2 as in the paper (stage s has stride 2^s)."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1."""
    stem_channels: Count = 64
    """Channels after the 7x7 stem."""
    depths: Annotated[tuple[Count, ...], Several] = (3, 4, 6, 3)
    """Blocks of stages 2, 3, ..."""
    channels: Annotated[tuple[Count, ...], Several] = (256, 512, 1024, 2048)
    """Output channels of stages 2, 3, ..."""
    out_stages: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Several] = (2, 3, 4, 5)
    """Stages whose features the detector uses, ascending."""
    norm: Literal["frozen", "batch"] = "frozen"
    """Frozen statistics and scale (fine-tuning a pretrained network), or trainable batch norm."""
    stride_in_1x1: bool = True
    """Bottlenecks halve the resolution in the first 1x1 (MSRA weights) or in the 3x3 (torchvision's)."""
    freeze_at: Whole = 2
    """The stem (1) and the stages up to this number get no gradient; 0 trains everything."""
    pyramid: PyramidConfig | None = None
    """None: the single output stage is used as it is (C4)."""
    network: str | None = None
    """None: the residual network above. "timm/convnext_tiny", "torchvision/swin_t", ...: that library's network, of
    which `channels`, `out_stages` and `freeze_at` then speak; the other fields mean nothing."""


@dataclass(frozen=True, kw_only=True)
class RpnConfig:
    """Region proposal network (arXiv 1506.01497, section 3.1)."""

    anchor_sizes: tuple[Annotated[tuple[Positive, ...], Several], ...]
    """Square root of the anchors' areas in pixels, one tuple a feature level."""
    aspect_ratios: Annotated[tuple[Positive, ...], Several] = (0.5, 1.0, 2.0)
    """Height over width."""
    nms_iou: Share = 0.7
    """Non-maximum suppression within a level."""
    pre_nms_train: Count = 2000
    """Best candidates kept per level and image before suppression, in training."""
    post_nms_train: Count = 1000
    """Proposals kept per image, in training."""
    pre_nms_test: Count = 1000
    """As `pre_nms_train`, for detecting."""
    post_nms_test: Count = 1000
    """As `post_nms_train`, for detecting."""
    iou_thresholds: tuple[Share, Share] = (0.3, 0.7)
    """Anchors below the first are negative, from the second on positive, between them ignored."""
    sampled_anchors: Count = 256
    """Anchors per image in the loss; also its normaliser."""
    positive_fraction: Share = 0.5
    """At most this share of them is positive."""


@dataclass(frozen=True, kw_only=True)
class Stage5TrunkConfig:
    """The C4 head: residual stage 5 on every pooled region, then the mean over its pixels."""

    resolution: Count = 14
    """Side of the pooled grid before the stage halves it."""
    depth: Count = 3
    """Blocks."""
    channels: Count = 2048
    """Width of a region feature."""


@dataclass(frozen=True, kw_only=True)
class FullyConnectedTrunkConfig:
    """The FPN head: fully connected layers on every pooled region."""

    resolution: Count = 7
    """Side of the pooled grid."""
    widths: Annotated[tuple[Count, ...], Several] = (1024, 1024)
    """Outputs of the layers; the last is the width of a region feature."""


@dataclass(frozen=True, kw_only=True)
class RoiConfig:
    """Region head: exactly one of the two trunks, box regression, sampling for training."""

    stage5: Stage5TrunkConfig | None = None
    """The C4 trunk, or None."""
    fully_connected: FullyConnectedTrunkConfig | None = None
    """The FPN trunk, or None."""
    canonical_size: Positive = 224.0
    """A region of this side in pixels is pooled from the level of stride `canonical_stride`."""
    canonical_stride: Count = 16
    """See `canonical_size`; smaller regions go to finer levels."""
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    """Scales of the regression targets (dx, dy, dw, dh)."""
    foreground_iou: Share = 0.5
    """A proposal with at least this overlap takes the class of its best true box."""
    sampled_regions: Count = 512
    """Regions per image in the loss."""
    foreground_fraction: Share = 0.25
    """At most this share of them is foreground."""


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Weight transfer, section 3.4 of arXiv 2207.03482."""

    hidden: Count = 512
    """Hidden width of the layers that turn W_D into W_P."""
    residual_hidden: Count = 1024
    """Hidden width of the skip branch."""
    negative_slope: Finite = 0.1
    """Of the leaky ReLU in both."""
    start: Literal["random", "identity"] = "random"
    """"random": the new layers start as nn.Linear does (the released code). "identity": they start with W_P = W_D and
    a silent skip branch, so that the first step classifies as the distilled projection does; this takes
    `hidden` >= twice the width of a region feature."""
    layers: Literal[1, 2, 3] = 2
    """Linear layers that turn W_D into W_P; with one there is no hidden width."""
    residual: bool = True
    """Whether the skip branch is there."""
    freeze_distilled: bool = True
    """Whether W_D stays as it is; if not, `stage.frozen` must not name it either."""


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """Region feature → the text encoder's embedding space."""

    embedding_dim: Count
    """Width D of the text (and image) embeddings."""
    transfer: TransferConfig | None = None
    """None: one linear layer."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """logit = scale * cos(region, text) + bias."""

    scale: Positive = 50.0
    """Multiplier of the cosine (the paper's 1/temperature)."""
    bias: Finite | None = None
    """Initial value of one learnable scalar, or None for no bias."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Class-agnostic mask head (arXiv 1703.06870)."""

    resolution: Count = 14
    """Side of the pooled grid; masks come out twice as fine."""
    channels: Count = 256
    """Channels of the convolutions."""
    convolutions: Whole = 4
    """3x3 convolutions before the upsampling."""


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """From scores to final detections; NMS is per class and one region may carry several classes."""

    score_threshold: Share = 0.05
    """Only scores above it count, in [0, 1]."""
    nms_iou: Share = 0.5
    """A box overlapping a better one of its class by more than this is dropped."""
    max_detections: Count = 100
    """Best detections kept per image."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """The whole architecture. `from_json(to_json(config)) == config`."""

    name: str
    """Architecture name, for people."""
    pixels: PixelConfig
    backbone: BackboneConfig
    rpn: RpnConfig
    roi: RoiConfig
    projection: ProjectionConfig
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    mask: MaskConfig | None = None
    """None: boxes only."""
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    """How this detector is evaluated unless the caller says otherwise."""

    def __post_init__(self) -> None:
        if (self.roi.stage5 is None) == (self.roi.fully_connected is None):
            raise ValueError("RoiConfig: give exactly one of stage5 and fully_connected")
        backbone = self.backbone
        levels = len(backbone.out_stages) + (backbone.pyramid is not None and backbone.pyramid.extra_level)
        if len(self.rpn.anchor_sizes) != levels:
            raise ValueError(f"RpnConfig: {len(self.rpn.anchor_sizes)} anchor levels for {levels} feature levels")

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> DetectorConfig:
        """Inverse of `to_json`; raises CheckpointError naming the first field that does not fit."""
        try:
            return TypeAdapter(cls).validate_python(record)
        except ValidationError as error:
            raise CheckpointError(f"detector configuration: {first_fault(error)}: write the checkpoint again") from None


def first_fault(error: ValidationError) -> str:
    """The first field that does not fit, and why, in one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'record'}: {first['msg']}"
