"""A step's batch when several processes, or several passes of one, compute it together.

Losses are means over regions or images, and the parts differ in how many they have: each part's mean is weighted so
that the average over processes, summed over passes, is the loss of the whole batch and has its gradient.
Legend: R regions, D embedding, K classes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovbridge.detector.sampling import SampledRegions
from ovbridge.structures import TrainingImage
from ovbridge.training.loss_weights import LossWeights
from ovbridge.training.ranks import Peers


@dataclass(frozen=True, kw_only=True)
class BatchShare:
    """The part of a step's batch that one process computes in one pass."""

    peers: Peers
    passes: int
    """Passes a process makes in this step (gradient accumulation)."""
    images: int
    """Images of the whole step."""
    distilled: int
    """Regions with a teacher's embedding in the whole step."""
    labelled: int
    """Images with labels in the whole step."""
    labels: int
    """Labels of all images in the whole step, each of which has one region."""
    padded_hw: tuple[int, int]
    """Least height and width of the padded input: padding takes part in anchor sampling, so all pad alike."""
    generators: tuple[torch.Generator, ...]
    """One source of randomness an image, the same wherever the image is computed."""

    def proposal_weights(self, weights: LossWeights, images: Sequence[TrainingImage]) -> LossWeights:
        """Loss weights of the proposal network for this part of a boxed batch."""
        anchors = self._factor(len(images), self.images)
        return replace(weights, rpn_objectness=weights.rpn_objectness * anchors, rpn_box=weights.rpn_box * anchors)

    def region_weights(
        self,
        weights: LossWeights,
        images: Sequence[TrainingImage],
        sampled: Sequence[SampledRegions],
        masked: int,
    ) -> LossWeights:
        """Loss weights of the region head for this part of a boxed batch, given the regions sampled from each image
        and how many of them learn a mask.

        How many regions the other passes will sample is not known yet; they are taken to be as many as in this one,
        which is exact where the sampler fills its quota.
        """
        count = sum(len(regions) for regions in sampled)
        everyone = self.peers.gather([count, masked])
        regions_factor = self._factor(count, self.passes * sum(row[0] for row in everyone))
        return replace(
            self._distillation_weights(weights, images),
            classification=weights.classification * regions_factor,
            box=weights.box * regions_factor,
            mask=weights.mask * self._factor(masked, self.passes * sum(row[1] for row in everyone)),
        )

    def label_weights(self, weights: LossWeights, images: Sequence[TrainingImage]) -> LossWeights:
        """Loss weights of this part of a batch of images with labels."""
        # The label loss is a mean over images, the other two are means over regions.
        per_region = self._factor(count_labels(images), self.labels)
        return replace(
            self._distillation_weights(weights, images),
            image_label=weights.image_label * self._factor(labelled_images(images), self.labelled),
            image_label_parts=weights.image_label_parts * per_region,
            image_label_refine=weights.image_label_refine * per_region,
        )

    def everyones_ids(self, class_ids_R: Tensor, num_classes: int) -> Tensor:
        """Ascending ids (background, `num_classes`, too) that occur in this pass of any process."""
        here = torch.zeros(num_classes + 1, dtype=torch.uint8)
        here[class_ids_R.cpu()] = 1
        present = torch.stack(self.peers.gather_rows(here)).amax(dim=0)
        return present.nonzero().flatten().to(class_ids_R.device)

    def everyones_rows(self, own_RD: Tensor) -> Tensor:
        """The rows of all processes in this pass; only this one's have a gradient."""
        parts = self.peers.gather_rows(own_RD)
        parts[self.peers.ranks.rank] = own_RD
        return torch.cat(parts)

    def for_all(self, loss: Tensor) -> Tensor:
        """A loss that every process computes in full, each with the gradient of its own rows alone: averaging the
        gradients over the processes must then give their sum."""
        return loss + (self.peers.ranks.world_size - 1) * (loss - loss.detach())

    def _distillation_weights(self, weights: LossWeights, images: Sequence[TrainingImage]) -> LossWeights:
        return replace(
            weights,
            rkd_l1=weights.rkd_l1 * self._factor(distilled_regions(images), self.distilled),
            # A matrix a pass: these are averaged, as the released code averages those of its GPUs.
            rkd_relation=weights.rkd_relation / self.passes,
            rkd_barlow=weights.rkd_barlow / self.passes,
            rkd_info_nce=weights.rkd_info_nce / self.passes,
        )

    def _factor(self, own: float, total: float) -> float:
        return own * self.peers.ranks.world_size / total if total else 0.0


def shares_of_step(
    images: Sequence[TrainingImage], *, passes: int, peers: Peers, seed: int, step: int
) -> list[tuple[list[TrainingImage], BatchShare]]:
    """This process's images of a step in up to `passes` groups, each with its place in the whole batch.

    `images` must be every world_size-th image of the batch, from the rank-th on (`MixedBatches` deals them so).
    """
    rank, world_size = peers.ranks.rank, peers.ranks.world_size
    height, width = (max(image.pixels.shape[axis] for image in images) for axis in (1, 2))
    own = [len(images), distilled_regions(images), labelled_images(images), count_labels(images)]
    everyone = peers.gather([height, width, *own])
    columns = list(zip(*everyone, strict=True))
    passes = min(passes, len(images))
    bounds = [len(images) * i // passes for i in range(passes + 1)]
    return [
        (
            list(images[first:last]),
            BatchShare(
                peers=peers,
                passes=passes,
                images=int(sum(columns[2])),
                distilled=int(sum(columns[3])),
                labelled=int(sum(columns[4])),
                labels=int(sum(columns[5])),
                padded_hw=(int(max(columns[0])), int(max(columns[1]))),
                generators=tuple(_image_generator(seed, step, rank + i * world_size) for i in range(first, last)),
            ),
        )
        for first, last in itertools.pairwise(bounds)
    ]


def distilled_regions(images: Sequence[TrainingImage]) -> int:
    """Regions with a teacher's embedding."""
    return sum(len(image.regions) for image in images if image.regions is not None)


def labelled_images(images: Sequence[TrainingImage]) -> int:
    """Images with at least one label."""
    return sum(image.labels is not None and len(image.labels) > 0 for image in images)


def count_labels(images: Sequence[TrainingImage]) -> int:
    """Labels of all images together."""
    return sum(len(image.labels) for image in images if image.labels is not None)


def _image_generator(seed: int, step: int, position: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{step}:{position}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
