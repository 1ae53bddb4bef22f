"""Pretraining of a detector's backbone: name the object in a window of a picture.

It stands where ImageNet weights stand for the full-size detectors: supervised classification, before any box is
regressed. As the C4 head brings its fifth stage from ImageNet, this one brings the pyramid and the trunk of the region
head: the window's object is named from the region that it fills. A window costs a tenth of a scene and carries one
label at full weight.
Legend: B windows, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import tyro
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.console import Ticker, stdout, track
from ovbridge.data.coco import CocoDataset
from ovbridge.detector import build_detector, world_r18_fpn
from ovbridge.detector.backbone import PyramidBackbone
from ovbridge.detector.config import DetectorConfig
from ovbridge.detector.pooling import batch_rois
from ovbridge.errors import ConfigError
from ovbridge.images import read_image
from ovbridge.training.start import copy_pretrained
from ovbridge.vocabulary import Role


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How a backbone is pretrained."""

    steps: int = 1500
    """Optimiser steps."""
    batch_size: int = 64
    """Windows a step."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule of AdamW."""
    weight_decay: float = 0.02
    """AdamW's."""
    short_side: int = 128
    """Pictures are resized to this short side first, as the detector will see them."""
    window: int = 64
    """Side of the square input in pixels."""
    stage_weight: float = 0.3
    """Weight of naming the object from each output stage of the body, beside naming it from its region."""
    seed: int = 0
    """Of initialisation, sampling and augmentation."""
    init: str = ""
    """Tensors of an earlier run to start from (safetensors); empty starts anew."""


@dataclass(frozen=True, kw_only=True)
class LabelledObjects:
    """Pictures in memory and the objects on them."""

    pictures: tuple[Image.Image, ...]
    owners: np.ndarray
    """[N] picture of each object."""
    boxes_xyxy: np.ndarray
    """[N, 4] pixels of the resized picture."""
    class_ids: np.ndarray
    """[N] in 0..K-1, counted over the classes that occur."""

    @classmethod
    def load(cls, annotations: Path, images: Path, short_side: int, exclude_roles: Sequence[Role]) -> LabelledObjects:
        """Every object but those of the excluded roles; raises DataError for unreadable files."""
        dataset = CocoDataset.load(annotations)
        excluded = [c for role in exclude_roles for c in dataset.vocabulary.columns(role)]
        pictures: list[Image.Image] = []
        owners: list[int] = []
        boxes, class_ids = [], []
        for record in track(dataset.images, "read", len(dataset.images)):
            keep = ~np.isin(record.class_ids, excluded)
            if not keep.any():
                continue
            picture = Image.fromarray(read_image(images / record.file_name))
            scale = short_side / min(picture.size)
            owners += [len(pictures)] * int(keep.sum())
            pictures.append(picture.resize((round(picture.width * scale), round(picture.height * scale))))
            boxes.append(record.boxes_xyxy[keep] * scale)
            class_ids.append(record.class_ids[keep])
        if not pictures:
            raise ConfigError(f"{annotations} has no object outside the roles {', '.join(exclude_roles)}")
        _, dense = np.unique(np.concatenate(class_ids), return_inverse=True)
        return cls(
            pictures=tuple(pictures),
            owners=np.array(owners),
            boxes_xyxy=np.concatenate(boxes),
            class_ids=dense,
        )

    def window(self, index: int, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """[side, side, 3] uint8 around an object, at about the picture's own scale, moved and flipped at random.

        And the object's box [4] (x1, y1, x2, y2) in pixels of the window, as loose as a proposal.
        """
        picture = self.pictures[self.owners[index]]
        x1, y1, x2, y2 = self.boxes_xyxy[index]
        reach = max(side * np.exp(rng.uniform(-0.4, 0.3)), 1.05 * max(x2 - x1, y2 - y1))
        shift_x, shift_y = rng.uniform(-0.2, 0.2, 2) * reach
        left, top = (x1 + x2) / 2 + shift_x - reach / 2, (y1 + y2) / 2 + shift_y - reach / 2
        right, bottom = min(left + reach, picture.width), min(top + reach, picture.height)
        left, top = max(left, 0.0), max(top, 0.0)
        pixels = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))
        loose = np.array([x1, y1, x2, y2]) + rng.uniform(-0.12, 0.12, 4) * np.array([x2 - x1, y2 - y1] * 2)
        scale = side / np.array([right - left, bottom - top] * 2)
        box = np.clip((loose - np.array([left, top] * 2)) * scale, 0.0, float(side))
        if rng.random() < 0.5:
            return pixels[:, ::-1], np.array([side - box[2], box[1], side - box[0], box[3]])
        return pixels, box


def pretrain_backbone(detector: DetectorConfig, objects: LabelledObjects, config: PretrainConfig) -> dict[str, Tensor]:
    """Train the backbone and the trunk of the region head; returns their tensors by their names in the detector.

    Every output stage of the body gets its own classifier beside the region's, because the pyramid reads every stage.
    """
    model = build_detector(detector, torch.eye(detector.projection.embedding_dim), seed=config.seed)
    if config.init:
        copy_pretrained(model, Path(config.init))
    backbone, trunk, pixels = model.backbone, model.roi_head.trunk, detector.pixels
    if not isinstance(backbone, PyramidBackbone) or pixels.order != "rgb":
        raise ConfigError(f"detector {detector.name} has no RGB pyramid backbone to pretrain")
    torch.manual_seed(config.seed)
    classes = int(objects.class_ids.max()) + 1
    widths = (*cast(tuple[int, ...], backbone.body.channels), trunk.features)
    heads = nn.ModuleList(nn.Linear(width, classes) for width in widths)
    parameters = [*backbone.parameters(), *trunk.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=0.15
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (pixels.mean, pixels.std))
    backbone.to(memory_format=torch.channels_last).train()
    accuracy = 0.0
    with Ticker("pretrain backbone", config.steps) as tick:
        for windows, boxes, class_ids in _drawn_ahead(objects, config):
            batch = torch.from_numpy(windows).permute(0, 3, 1, 2).float()
            rois = batch_rois(list(torch.from_numpy(boxes)[:, None]))
            class_ids_B = torch.from_numpy(class_ids)
            staged = backbone.body((batch - mean) / std)
            described = [*(feature.mean(dim=(2, 3)) for feature in staged), trunk(backbone.merge(staged), rois)]
            logits = [head(x) for head, x in zip(heads, described, strict=True)]
            losses = [F.cross_entropy(each, class_ids_B, label_smoothing=0.1) for each in logits]
            loss = losses[-1] + config.stage_weight * torch.stack(losses[:-1]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            right = float((logits[-1].argmax(dim=1) == class_ids_B).float().mean())
            accuracy += 0.02 * (right - accuracy)
            tick(note=f"loss {losses[-1].item():.2f}, accuracy {accuracy:.2f}")
    return {
        name: value.detach().half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
        if name.startswith(("backbone.", "roi_head.trunk."))
    }


def _drawn_ahead(objects: LabelledObjects, config: PretrainConfig) -> Iterator[tuple[np.ndarray, ...]]:
    """Windows [B, side, side, 3], their boxes [B, 4] and class ids [B] of every step, each drawn during the one before.

    The thread holds no tensors: a second OpenMP team would put the training thread's to sleep.
    """
    rng = np.random.default_rng(config.seed)

    def draw() -> tuple[np.ndarray, ...]:
        chosen = rng.integers(len(objects.owners), size=config.batch_size)
        windows, boxes = zip(*(objects.window(int(i), config.window, rng) for i in chosen), strict=True)
        brightness = rng.uniform(0.85, 1.15)
        return np.stack(windows) * np.float32(brightness), np.stack(boxes).astype(np.float32), objects.class_ids[chosen]

    with ThreadPoolExecutor(max_workers=1) as thread:
        following = thread.submit(draw)
        for _ in range(config.steps):
            drawn, following = following.result(), thread.submit(draw)
            yield drawn


def backbone(
    data: Path,
    out: Path,
    split: str = "train2017",
    exclude_roles: Annotated[tuple[Role, ...], tyro.conf.arg(metavar="ROLE ...")] = ("novel",),
    steps: int = PretrainConfig.steps,
    init: str = "",
    seed: int = 0,
) -> None:
    """Pretrain the small detector's backbone to name single objects of a COCO-format folder.

    Example: ovbridge train backbone --data worlds/teachers --out backbone.safetensors

    Args:
        data: folder with annotations/instances_SPLIT.json and the folder SPLIT of images.
        out: the safetensors file to write; give it to 'ovbridge train world_base' with --init.
        split: which images to train on.
        exclude_roles: objects of these roles are not shown.
        steps: optimiser steps.
        init: a file that this command wrote before, to go on from.
        seed: of initialisation, sampling and augmentation.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already: give another --out or delete it")
    config = PretrainConfig(steps=steps, seed=seed, init=init)
    objects = LabelledObjects.load(
        data / "annotations" / f"instances_{split}.json", data / split, config.short_side, exclude_roles
    )
    tensors = pretrain_backbone(world_r18_fpn(embedding_dim=16), objects, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(out.name + ".part")
    trained_on = (
        f"{len(objects.owners)} objects of {data.name}/{split} without {'/'.join(exclude_roles) or 'exception'}"
    )
    save_file(tensors, aside, metadata={"trained_on": trained_on})
    aside.replace(out)
    stdout.print(f"{len(tensors)} tensors in {out}, trained on {trained_on}")


def run(argv: Sequence[str]) -> None:
    """`ovbridge train backbone …`."""
    tyro.cli(backbone, args=list(argv), prog="ovbridge train backbone")
