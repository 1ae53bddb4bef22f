"""What each loss of a training step weighs, and which form of it is meant; Eq. 3 and 5 of arXiv 2207.03482.

Legend: K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ovbridge.errors import ConfigError
from ovbridge.ranges import NOT_NEGATIVE, SHARE, require_ranges
from ovbridge.training.label_boxes import LabelBoxRule


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Factor of each loss; a loss with factor 0 is not computed. Defaults: the official OV-COCO configuration."""

    rpn_objectness: float = 1.0
    """Cross-entropy of the sampled anchors."""
    rpn_box: float = 1.0
    """L1 of the positive anchors' deltas."""
    classification: float = 1.0
    """Sigmoid cross-entropy of the sampled regions."""
    box: float = 1.0
    """L1 of the foreground regions' deltas."""
    mask: float = 1.0
    """Mask cross-entropy; only detectors with a mask head and images with masks have it."""
    rkd_l1: float = 15.0
    """Point-wise distillation: the paper's beta_1 = 0.15 times the code's factor 100 (LVIS: 25)."""
    rkd_relation: float = 15.0
    """Relation distillation: beta_2 = 0.15 times 100 (LVIS: 13). A weight for the code's form of the loss."""
    image_label: float = 0.1
    """Pseudo max-score loss on image-level data: alpha."""
    relation_row_norm: Literal["l1", "l2"] = "l1"
    """Row normalisation of the relation matrices: "l1" as in the code, "l2" as in the paper."""
    relation_reduction: Literal["sum", "mean_square"] = "sum"
    """Squared Frobenius norm as it is (code) or over R^2 (paper)."""
    relation_over: Literal["process", "all"] = "process"
    """On several processes: a relation matrix each over its own regions, averaged (the released code), or one matrix
    over the regions of all, which gives the loss of one process with the whole batch. Passes of one process
    (`loop.accumulate`) have a matrix each either way."""
    rkd_barlow: float = 0.0
    """Barlow Twins between the regions' embeddings and CLIP's, beside or in place of the paper's two."""
    rkd_info_nce: float = 0.0
    """InfoNCE between the regions' embeddings and CLIP's, beside or in place of the paper's two."""
    image_label_box: LabelBoxRule = "stored"
    """The region a label is taught to: its stored pseudo box, or the detector's own proposal of best score or size."""
    image_label_jitter: float = 0.0
    """Beyond the paper: the pseudo box is taught with each side moved at random by up to this share of its size, as
    proposals lie about an object too."""
    image_label_refine: float = 0.0
    """Beyond the paper: L1 of the deltas from the moved pseudo box back onto it; wants `image_label_jitter` > 0."""
    image_label_parts: float = 0.0
    """Beyond the paper: parts of a pseudo box taught as no object of any class. Without it, classes that have labels
    but no boxes have no negatives near their objects."""
    named_regions: float | None = None
    """Beyond the paper: stored regions that CLIP names with at least this probability count as boxes of classes that
    have labels and no boxes (`named_regions.py`); None: never."""
    rkd_through: Literal["linear", "classification"] = "linear"
    """Which projection distillation compares with CLIP: the linear one (frozen once weights are transferred, the
    official way), or the one that classification uses. The same thing before weight transfer."""

    def __post_init__(self) -> None:
        factors = (
            "rpn_objectness", "rpn_box", "classification", "box", "mask", "rkd_l1", "rkd_relation", "image_label",
            "rkd_barlow", "rkd_info_nce", "image_label_refine", "image_label_parts",
        )  # fmt: skip
        require_ranges(self, "losses.", named_regions=SHARE, **dict.fromkeys(factors, NOT_NEGATIVE))
        if not 0 <= self.image_label_jitter < 0.5:
            raise ConfigError(
                f"losses.image_label_jitter is {self.image_label_jitter}: give a share of the box from 0 to below 0.5, "
                "or opposite sides could change places"
            )


@dataclass(frozen=True, kw_only=True)
class FederatedLoss:
    """Classification over a few drawn classes a step, for large long-tailed vocabularies (LVIS)."""

    frequency_weight_K: Tensor  # noqa: N815 - dense-maths suffix
    """[K] >= 0; the official choice is sqrt(number of training images with the class)."""
    classes: int = 50
    """Classes a step; background counts as one when it is among the sampled regions."""
