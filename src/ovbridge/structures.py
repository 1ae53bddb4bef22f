"""Shape-checked records that the packages hand to each other.

Legend: N boxes or detections, D embedding width. Every box tensor is float32 `[N, 4]` in xyxy order;
each field says in pixels of which image.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ovbridge.errors import ConfigError

if TYPE_CHECKING:
    import supervision


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_boxes(boxes_xyxy: Tensor, owner: str) -> None:
    _require(
        boxes_xyxy.ndim == 2 and boxes_xyxy.shape[1] == 4,
        f"{owner}: boxes must be [N, 4], got {tuple(boxes_xyxy.shape)}",
    )


def _check_length(values: Sequence[Any] | Tensor, n: int, owner: str, name: str) -> None:
    _require(len(values) == n, f"{owner}: {name} has {len(values)} entries for {n} boxes")


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a detector found in one image, best first.

    Example:
        >>> found = Detections(
        ...     boxes_xyxy=torch.tensor([[0.0, 0.0, 4.0, 2.0]]),
        ...     scores=torch.tensor([0.9]),
        ...     class_ids=torch.tensor([1]),
        ...     names=("mug", "kite"),
        ... )
        >>> found.class_names
        ['kite']
    """

    boxes_xyxy: Tensor
    """[N, 4] float, absolute pixels of the image given."""
    scores: Tensor
    """[N] float in [0, 1]."""
    class_ids: Tensor
    """[N] int64, indices into `names`."""
    names: tuple[str, ...]
    """The vocabulary asked for, in order."""
    masks: Tensor | None = None
    """[N, H, W] bool at the size of the image given, or None."""

    def __post_init__(self) -> None:
        _check_boxes(self.boxes_xyxy, "Detections")
        n = len(self.boxes_xyxy)
        _check_length(self.scores, n, "Detections", "scores")
        _check_length(self.class_ids, n, "Detections", "class_ids")
        if n:
            top = int(self.class_ids.max())
            _require(top < len(self.names), f"Detections: class id {top} outside {len(self.names)} names")
        if self.masks is not None:
            _check_length(self.masks, n, "Detections", "masks")

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    @property
    def class_names(self) -> list[str]:
        """The name of each detection, [N]."""
        return [self.names[i] for i in self.class_ids.tolist()]

    def select(self, index: Tensor) -> Detections:
        """The detections at `index` (int64 positions or a bool mask), in that order."""
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[index],
            scores=self.scores[index],
            class_ids=self.class_ids[index],
            masks=None if self.masks is None else self.masks[index],
        )

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO result records (`bbox` is xywh in pixels); `category_ids[i]` is the COCO id of `names[i]`,
        by default i + 1."""
        ids = category_ids if category_ids is not None else range(1, len(self.names) + 1)
        return [
            {
                "image_id": image_id,
                "category_id": int(ids[class_id]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, class_id in zip(
                self.boxes_xyxy.tolist(), self.scores.tolist(), self.class_ids.tolist(), strict=True
            )
        ]

    def to_yolo(self, *, width: int, height: int) -> list[str]:
        """One line a box, "class x_centre y_centre w h score", the box in shares of a picture of this size (pixels);
        classes count from 0."""
        lines = []
        for (x1, y1, x2, y2), score, class_id in zip(
            self.boxes_xyxy.tolist(), self.scores.tolist(), self.class_ids.tolist(), strict=True
        ):
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(class_id), *(f"{share:.6f}" for share in shares), f"{score:.6f}"]))
        return lines

    def to_transformers(self) -> list[dict[str, Any]]:
        """What transformers' zero-shot object detection pipeline returns: score, label and whole-pixel box."""
        return [
            {
                "score": score,
                "label": name,
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), (int(v) for v in box), strict=True)),
            }
            for name, score, box in zip(self.class_names, self.scores.tolist(), self.boxes_xyxy.tolist(), strict=True)
        ]

    def to_fiftyone(self, *, width: int, height: int) -> Any:
        """The same detections as `fiftyone.Detections`, boxes in shares of a picture of this size (pixels).

        Raises ConfigError where FiftyOne is not installed.
        """
        try:
            fiftyone = importlib.import_module("fiftyone")
        except ImportError:
            raise ConfigError("to_fiftyone needs FiftyOne: pip install fiftyone") from None
        return fiftyone.Detections(
            detections=[
                fiftyone.Detection(
                    label=name,
                    bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
                    confidence=score,
                )
                for name, score, (x1, y1, x2, y2) in zip(
                    self.class_names, self.scores.tolist(), self.boxes_xyxy.tolist(), strict=True
                )
            ]
        )

    def to_supervision(self) -> supervision.Detections:
        """The same detections as `supervision.Detections`, with `data["class_name"]` filled."""
        import numpy as np
        import supervision as sv

        return sv.Detections(
            xyxy=self.boxes_xyxy.cpu().numpy().astype(np.float32).reshape(-1, 4),
            mask=None if self.masks is None else self.masks.cpu().numpy().astype(bool),
            confidence=self.scores.cpu().numpy().astype(np.float32),
            class_id=self.class_ids.cpu().numpy().astype(int),
            data={"class_name": np.array(self.class_names, dtype=str)},
        )


@dataclass(frozen=True, kw_only=True)
class BoxLabels:
    """Human boxes of one image (the detection data set, D_det)."""

    boxes_xyxy: Tensor
    """[N, 4] float, pixels of the image they travel with."""
    class_ids: Tensor
    """[N] int64, columns of the training vocabulary."""
    masks: Tensor | None = None
    """[N, H, W] bool, or None where the task has no masks."""

    def __post_init__(self) -> None:
        _check_boxes(self.boxes_xyxy, "BoxLabels")
        _check_length(self.class_ids, len(self.boxes_xyxy), "BoxLabels", "class_ids")
        if self.masks is not None:
            _check_length(self.masks, len(self.boxes_xyxy), "BoxLabels", "masks")

    def __len__(self) -> int:
        return len(self.boxes_xyxy)


@dataclass(frozen=True, kw_only=True)
class ImageLabels:
    """Pseudo boxes of one image that has only labels (D_cls): one box a label, Eq. 4 of arXiv 2207.03482."""

    boxes_xyxy: Tensor
    """[N, 4] float, the best "every <class>" box of each label, pixels of the image they travel with."""
    class_ids: Tensor
    """[N] int64, columns of the training vocabulary."""
    scores: Tensor
    """[N] float in [0, 1], the proposer's confidence."""

    def __post_init__(self) -> None:
        _check_boxes(self.boxes_xyxy, "ImageLabels")
        _check_length(self.class_ids, len(self.boxes_xyxy), "ImageLabels", "class_ids")
        _check_length(self.scores, len(self.boxes_xyxy), "ImageLabels", "scores")

    def __len__(self) -> int:
        return len(self.boxes_xyxy)


@dataclass(frozen=True, kw_only=True)
class RegionTargets:
    """Class-agnostic proposals of one image with the CLIP embedding of each crop (RKD targets, Eq. 1-2)."""

    boxes_xyxy: Tensor
    """[N, 4] float, pixels of the image they travel with."""
    embeddings: Tensor
    """[N, D] float, raw CLIP image embeddings (not normalised)."""
    scores: Tensor
    """[N] float in [0, 1], the proposer's objectness."""

    def __post_init__(self) -> None:
        _check_boxes(self.boxes_xyxy, "RegionTargets")
        _require(self.embeddings.ndim == 2, "RegionTargets: embeddings must be [N, D]")
        _check_length(self.embeddings, len(self.boxes_xyxy), "RegionTargets", "embeddings")
        _check_length(self.scores, len(self.boxes_xyxy), "RegionTargets", "scores")

    def __len__(self) -> int:
        return len(self.boxes_xyxy)


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """Boxes of a proposer for one image and one query, best first."""

    boxes_xyxy: Tensor
    """[N, 4] float, pixels of the image given; may reach outside it."""
    scores: Tensor
    """[N] float in [0, 1]."""

    def __post_init__(self) -> None:
        _check_boxes(self.boxes_xyxy, "Proposals")
        _check_length(self.scores, len(self.boxes_xyxy), "Proposals", "scores")

    def __len__(self) -> int:
        return len(self.boxes_xyxy)


@dataclass(frozen=True, kw_only=True)
class TrainingImage:
    """One image as the detector trains on it, with whichever supervision it carries.

    A detection image has `boxes`; an image-level one has `labels`; either may have `regions`.
    """

    image_id: int
    pixels: Tensor
    """[3, H, W] uint8 RGB, already resized and flipped; every box below is in its pixels."""
    boxes: BoxLabels | None = None
    labels: ImageLabels | None = None
    regions: RegionTargets | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(
            self.pixels.ndim == 3 and self.pixels.shape[0] == 3 and self.pixels.dtype == torch.uint8,
            f"TrainingImage: pixels must be [3, H, W] uint8, got {tuple(self.pixels.shape)} {self.pixels.dtype}",
        )
