"""The two-stage open-vocabulary detector: pixels → backbone → proposals → region head → detections.

Legend: B images, R regions, F region feature, D embedding, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.detector.boxes import decode_boxes
from ovbridge.detector.config import DetectorConfig, PostprocessConfig
from ovbridge.detector.example_matching import with_examples
from ovbridge.detector.mask_head import MaskHead
from ovbridge.detector.pixels import PixelNormalizer
from ovbridge.detector.pooling import batch_rois
from ovbridge.detector.postprocess import RawDetections, RowClasses, leading_regions, select_detections
from ovbridge.detector.roi_head import RoIHead
from ovbridge.detector.rpn import BoxProposals, RegionProposalNetwork
from ovbridge.detector.winograd import by_points
from ovbridge.structures import Proposals


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """Feature maps of a batch."""

    features: list[Tensor]
    """[B, C, H / stride, W / stride], one a level, finest first."""
    sizes: list[tuple[int, int]]
    """(H, W) of each image in pixels, before padding."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for in one image."""

    text_bank_KD: Tensor | None = None  # noqa: N815 - dense-maths suffix
    """Rows of any length in place of the stored vocabulary."""
    example_ED: Tensor | None = None  # noqa: N815 - dense-maths suffix
    """CLIP embeddings of example pictures, of any length: further rows after those of the vocabulary."""
    rows: RowClasses | None = None
    """Which of all these rows make one class together; None makes each row a class."""
    postprocess: PostprocessConfig | None = None
    """Threshold, NMS and count in place of the checkpoint's."""


@dataclass(frozen=True, kw_only=True)
class _Regions:
    """What the region head says of some regions."""

    boxes_R4: Tensor  # noqa: N815 - dense-maths suffix
    """xyxy in the pixels of the image given, not yet clipped."""
    query_RD: Tensor  # noqa: N815 - dense-maths suffix
    """What is compared with the rows of the text bank."""
    region_RF: Tensor  # noqa: N815 - dense-maths suffix

    def split(self, counts: Sequence[int]) -> list[_Regions]:
        """The regions of each image."""
        parts = zip(*(torch.split(value, list(counts)) for value in self._values()), strict=True)
        return [_Regions(boxes_R4=boxes, query_RD=query, region_RF=region) for boxes, query, region in parts]

    def replaced(self, index: Tensor, by: _Regions) -> _Regions:
        """With those at `index` as in `by`."""
        boxes, query, region = (
            old.index_copy(0, index, new) for old, new in zip(self._values(), by._values(), strict=True)
        )
        return _Regions(boxes_R4=boxes, query_RD=query, region_RF=region)

    def _values(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.boxes_R4, self.query_RD, self.region_RF


class TwoStageDetector(nn.Module):
    """A composition of given parts; `build_detector` makes one from a `DetectorConfig`.

    Training uses the parts through `training.objectives`; `forward` is not defined.
    """

    def __init__(
        self,
        *,
        config: DetectorConfig,
        pixels: PixelNormalizer,
        backbone: nn.Module,
        rpn: RegionProposalNetwork,
        roi_head: RoIHead,
        mask_head: MaskHead | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.pixels = pixels
        self.backbone = backbone
        self.rpn = rpn
        self.roi_head = roi_head
        self.mask_head = mask_head

    @property
    def num_classes(self) -> int:
        """K, the size of the vocabulary now set."""
        return self.roi_head.classifier.num_classes

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pixels.mean.device

    def set_text_bank(self, embeddings_KD: Tensor) -> None:
        """Make [K, D] text embeddings (rows of any length) the vocabulary; raises ValueError for another width."""
        self.roi_head.classifier.set_text_bank(embeddings_KD)

    def encode(self, images: Sequence[Tensor], least_hw: tuple[int, int] | None = None) -> EncodedImages:
        """Pictures [3, H, W] uint8 RGB → feature maps, padded to at least `least_hw` if given."""
        batch, sizes = self.pixels(images, least_hw)
        return EncodedImages(features=self.backbone(batch), sizes=sizes)

    def _proposals(self, encoded: EncodedImages, count: int | None = None) -> list[BoxProposals]:
        limits = self.config.rpn
        post_nms = limits.post_nms_test if count is None else count
        return self.rpn.select(
            self.rpn(encoded.features), encoded.sizes, pre_nms=max(limits.pre_nms_test, post_nms), post_nms=post_nms
        )

    @torch.inference_mode()
    def propose(self, images: Sequence[Tensor], count: int) -> list[Proposals]:
        """The `count` best boxes of the region proposal network for each image (uint8 RGB, resized), its pixels."""
        return [
            Proposals(boxes_xyxy=found.boxes_xyxy, scores=found.logits.sigmoid())
            for found in self._proposals(self.encode(images), count)
        ]

    @torch.inference_mode()
    def region_embeddings(self, images: Sequence[Tensor], boxes_per_image: Sequence[Tensor]) -> list[Tensor]:
        """Unit embeddings [N, D] of given boxes [N, 4] (pixels of the images given), as classification sees them."""
        encoded = self.encode(images)
        rois = batch_rois([boxes.to(self.device, torch.float32) for boxes in boxes_per_image])
        embeddings = self.roi_head.unit_embeddings(self.roi_head.in_chunks(encoded.features, rois))
        return list(torch.split(embeddings, [len(boxes) for boxes in boxes_per_image]))

    @torch.inference_mode()
    def detect(
        self,
        images: Sequence[Tensor],
        *,
        postprocess: PostprocessConfig | None = None,
        text_bank_KD: Tensor | None = None,
        example_ED: Tensor | None = None,
        rows: RowClasses | None = None,
        mixed: bool = False,
    ) -> list[RawDetections]:
        """Detections of pictures [3, H, W] uint8 RGB, already resized, in their pixels.

        `text_bank_KD` (rows of any length) stands in for the stored vocabulary during this call alone, followed by
        `example_ED`, CLIP embeddings of example pictures; `rows` says which of all these make one class together.
        `mixed` uses autocast's half precision for the search alone: maps and proposals are computed in fp32, and the
        regions that lead among all are computed in fp32 again before detections are chosen.
        """
        search = Search(text_bank_KD=text_bank_KD, example_ED=example_ED, rows=rows, postprocess=postprocess)
        return self.detect_each(images, [search] * len(images), mixed=mixed)

    @torch.inference_mode()
    def detect_each(
        self, images: Sequence[Tensor], searches: Sequence[Search], *, mixed: bool = False
    ) -> list[RawDetections]:
        """`detect` with a search of its own for each image: requests of different people in one pass."""
        # In fp32 alone every convolution is computed as the official code does.
        with by_points() if torch.is_autocast_enabled(self.device.type) else nullcontext():
            return self._detect_each(images, searches, mixed)

    def _detect_each(self, images: Sequence[Tensor], searches: Sequence[Search], mixed: bool) -> list[RawDetections]:
        in_full = torch.autocast(self.device.type, enabled=False)
        with in_full if mixed else nullcontext():
            encoded = self.encode(images)
            proposals = [found.boxes_xyxy for found in self._proposals(encoded)]
        rois = batch_rois(proposals)
        with by_points(rough=True) if mixed else nullcontext():
            regions = self._regions(encoded, rois)
        counts = [len(boxes) for boxes in proposals]
        # Class scores decide the order of detections: never in half precision.
        with in_full:
            if mixed:
                leading = [
                    leading_regions(*self._named(part, search))
                    for part, search in zip(regions.split(counts), searches, strict=True)
                ]
                first = itertools.accumulate(counts, initial=0)
                chosen = torch.cat([index + start for index, start in zip(leading, first, strict=False)])
                regions = regions.replaced(chosen, self._regions(encoded, rois[chosen]))
            parts = zip(regions.split(counts), encoded.sizes, searches, strict=True)
            found = [self._select(part, image_hw, search) for part, image_hw, search in parts]
        return self._with_masks(encoded, found)

    def _regions(self, encoded: EncodedImages, rois: Tensor) -> _Regions:
        """What the region head says of `rois` [R, 5]."""
        head = self.roi_head
        region_RF = head.in_chunks(encoded.features, rois)
        return _Regions(
            boxes_R4=decode_boxes(rois[:, 1:], head.box_regressor(region_RF), self.config.roi.box_weights),
            query_RD=head.classifier.query(head.projection(region_RF)),
            region_RF=region_RF.float(),
        )

    def _named(self, regions: _Regions, search: Search) -> tuple[Tensor, Tensor]:
        """The query of each region and the rows that it is compared with."""
        classifier = self.roi_head.classifier
        query_RD, text_KD = regions.query_RD, classifier.text_KD
        if search.text_bank_KD is not None:
            text_KD = F.normalize(search.text_bank_KD.to(text_KD.device, torch.float32), dim=1)
        if search.example_ED is not None:
            example_ED = F.normalize(search.example_ED.to(text_KD.device, torch.float32), dim=1)
            distilled_RD = self.roi_head.distilled_unit_embeddings(regions.region_RF)
            query_RD, text_KD = with_examples(query_RD, distilled_RD, text_KD, example_ED, classifier.bias)
        return query_RD, text_KD

    def _select(self, regions: _Regions, image_hw: tuple[int, int], search: Search) -> RawDetections:
        """The detections of one image."""
        query_RD, text_KD = self._named(regions, search)
        config, bias = search.postprocess or self.config.postprocess, self.roi_head.classifier.bias
        return select_detections(regions.boxes_R4, query_RD, text_KD, bias, image_hw, config, search.rows)

    def _with_masks(self, encoded: EncodedImages, found: list[RawDetections]) -> list[RawDetections]:
        if self.mask_head is None:
            return found
        probabilities = self.mask_head(encoded.features, batch_rois([d.boxes_xyxy for d in found])).sigmoid()
        parts = torch.split(probabilities, [len(d.boxes_xyxy) for d in found])
        return [replace(d, mask_probabilities=part) for d, part in zip(found, parts, strict=True)]
