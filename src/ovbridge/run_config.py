"""A whole training run as one record: the component configurations, composed.

`RunConfig` goes to JSON and back unchanged, and every field can be set from the command line (`config_tree`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ovbridge.detector.config import DetectorConfig
from ovbridge.errors import ConfigError
from ovbridge.ranges import COUNT, SEED, SHARE, require_ranges
from ovbridge.training.batches import BatchConfig
from ovbridge.training.inputs import DataConfig
from ovbridge.training.loop import LoopConfig
from ovbridge.training.loss_weights import LossWeights
from ovbridge.training.optim import OptimConfig
from ovbridge.training.stages import Stage
from ovbridge.validation import ValidationConfig

FREE_FIELDS = frozenset(
    {
        "config.data.root",
        "config.data.images",
        "config.data.annotations",
        "config.data.label_images",
        "config.data.label_annotations",
        "config.data.store",
        "config.data.text_bank",
        "config.init",
        "config.batches.workers",
        "config.loop.save_every",
        "config.loop.keep_checkpoints",
        "config.loop.log_every",
        "config.loop.prefetch",
        "config.loop.accumulate",
        "config.loop.checkpoint_activations",
        "config.loop.data_timeout",
        "config.loop.evaluate_every",
        "config.loop.profile_steps",
        "config.loop.tracker",
        "config.validation",
        "version",
    }
)
"""Fields that may change when a run goes on: they change no weight but by rounding (`accumulate`: see there, so that a
run that ran out of memory can go on), or (paths) their contents are compared instead."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One stage of training under one recipe."""

    recipe: str
    """Name of the function that made this, for people."""
    stage: Stage
    """What it starts from, what it freezes, which losses it adds."""
    detector: DetectorConfig
    """The architecture; `projection.embedding_dim` is taken from the text bank."""
    loop: LoopConfig
    """Steps, precision, how often to save."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where the data are."""
    batches: BatchConfig = field(default_factory=BatchConfig)
    """Sizes and mix of the batches, image sizes."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    losses: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses; those that the stage does not add are not computed."""
    federated_classes: int | None = None
    """Classify over this many drawn classes a step (LVIS: 50); None uses all that have boxes."""
    init: str = ""
    """Checkpoint to start from; for a stage that starts from nothing, a file with a pretrained backbone, or empty."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """What to evaluate on in the course of training."""
    test_size: tuple[int, int] = (800, 1333)
    """Short side and longest side in pixels at which the trained detector is to be used; kept in the checkpoint."""
    seed: int = 0
    """Fixes new weights, the order of the data, augmentation and sampling."""

    def __post_init__(self) -> None:
        require_ranges(self, "", federated_classes=COUNT, test_size=COUNT, seed=SEED)
        counts = ("pre_nms_train", "post_nms_train", "pre_nms_test", "post_nms_test", "sampled_anchors")
        require_ranges(self.detector.rpn, "detector.rpn.", positive_fraction=SHARE, **dict.fromkeys(counts, COUNT))
        require_ranges(self.detector.roi, "detector.roi.", sampled_regions=COUNT, foreground_fraction=SHARE)
        transferred = self.detector.projection.transfer is not None
        if transferred != (self.stage.projection == "transfer"):
            raise ConfigError(
                f"stage.projection is {self.stage.projection!r} but the detector has "
                f"{'a' if transferred else 'no'} weight transfer: use the recipe of that stage"
            )
