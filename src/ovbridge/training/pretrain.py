"""Pretraining of a detector's backbone: name the object in a window of a picture.

It stands where ImageNet weights stand for the full-size detectors. As the C4 head brings its fifth stage from
ImageNet, this one brings the pyramid, the trunk of the region head and its box regression: the object is named from a
loose region around it, which is also moved onto the object, and told from regions that miss it. A window costs a tenth
of a scene and carries one label at full weight.

Objects of some roles can be shown as ImageNet shows them: a photograph of one thing with a label and no box.
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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.console import Ticker, stdout, track
from ovbridge.data.coco import CocoDataset
from ovbridge.detector import build_detector, world_r18_fpn
from ovbridge.detector.backbone import PyramidBackbone
from ovbridge.detector.boxes import encode_boxes
from ovbridge.detector.config import DetectorConfig
from ovbridge.detector.pooling import batch_rois
from ovbridge.device import autocast
from ovbridge.errors import ConfigError
from ovbridge.images import read_image
from ovbridge.training.start import PRETRAINED, copy_pretrained
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
    box_weight: float = 0.5
    """Weight of moving the region onto the object."""
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
    """[N] picture of each object, rising."""
    boxes_xyxy: np.ndarray
    """[N, 4] pixels of the resized picture."""
    class_ids: np.ndarray
    """[N] in 0..K-1, counted over the classes that occur."""
    is_boxed: np.ndarray
    """[N] bool: its box may be learnt from; otherwise only its label."""

    @classmethod
    def load(
        cls,
        annotations: Path,
        images: Path,
        short_side: int,
        *,
        exclude_roles: Sequence[Role] = (),
        label_only_roles: Sequence[Role] = (),
    ) -> LabelledObjects:
        """Every object but those of the excluded roles; raises DataError for unreadable files."""
        dataset = CocoDataset.load(annotations)
        label_only = [c for role in label_only_roles for c in dataset.vocabulary.columns(role)]
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
        found = np.concatenate(class_ids)
        _, dense = np.unique(found, return_inverse=True)
        return cls(
            pictures=tuple(pictures),
            owners=np.array(owners),
            boxes_xyxy=np.concatenate(boxes),
            class_ids=dense,
            is_boxed=~np.isin(found, label_only),
        )

    def window(self, index: int, side: int, rng: np.random.Generator) -> Window:
        """A square part of a picture around an object, enlarged or reduced to `side`, moved and flipped at random.

        An object with a label only becomes a small photograph of its own, laid somewhere on another part of a picture;
        the photograph is the region.
        """
        window = (self._boxed if self.is_boxed[index] else self._labelled)(index, side, rng)
        return window.flipped() if rng.random() < 0.5 else window

    def _boxed(self, index: int, side: int, rng: np.random.Generator) -> Window:
        picture, box = self.pictures[self.owners[index]], self.boxes_xyxy[index]
        size = box[2:] - box[:2]
        # At about the picture's own scale, as the detector will see it.
        reach = max(side * np.exp(rng.uniform(-0.4, 0.3)), 1.05 * size.max())
        left, top, right, bottom = _frame(picture, (box[:2] + box[2:]) / 2 + rng.uniform(-0.2, 0.2, 2) * reach, reach)
        corner, scale = np.array([left, top] * 2), side / np.array([right - left, bottom - top] * 2)

        def placed(boxes: np.ndarray) -> np.ndarray:
            inside: np.ndarray = np.clip((boxes - corner) * scale, 0.0, side)
            return inside

        truth = placed(box)
        # Of the other objects, those whose boxes may be known: a miss may lie on one that has a label only.
        here = slice(*np.searchsorted(self.owners, [self.owners[index], self.owners[index] + 1]))
        others = self.boxes_xyxy[here][self.is_boxed[here]]
        return Window(
            pixels=_resized(picture, (left, top, right, bottom), (side, side)),
            region=placed(box + rng.uniform(-0.2, 0.2, 4) * np.tile(size, 2)),
            truth=truth,
            missed=_missed(truth, placed(others), side, rng),
        )

    def _labelled(self, index: int, side: int, rng: np.random.Generator) -> Window:
        picture, box = self.pictures[self.owners[index]], self.boxes_xyxy[index]
        size = box[2:] - box[:2]
        centre = (box[:2] + box[2:]) / 2 + rng.uniform(-0.15, 0.15, 2) * size
        frame = _frame(picture, centre, size.max() * rng.uniform(1.05, 1.5))
        shape = np.array([frame[2] - frame[0], frame[3] - frame[1]])
        wide, high = np.maximum(shape / shape.max() * rng.uniform(0.4, 1.0) * side, 8).astype(int)
        ground = self.pictures[rng.integers(len(self.pictures))]
        pixels = _resized(ground, _frame(ground, rng.uniform(0, 1, 2) * ground.size, side), (side, side)).copy()
        left, top = int(rng.integers(side - wide + 1)), int(rng.integers(side - high + 1))
        pixels[top : top + high, left : left + wide] = _resized(picture, frame, (wide, high))
        photograph = np.array([left, top, left + wide, top + high], dtype=np.float64)
        region = np.clip(photograph + rng.uniform(-0.1, 0.1, 4) * np.array([wide, high] * 2), 0.0, side)
        return Window(pixels=pixels, region=region, truth=photograph, missed=photograph)


def _frame(picture: Image.Image, centre: np.ndarray, reach: float) -> tuple[float, float, float, float]:
    """The square of side `reach` around a point, as far as it lies in the picture; never empty."""
    limits = np.array(picture.size, dtype=np.float64)
    low = np.clip(centre - reach / 2, 0.0, limits - 8)
    high = np.clip(centre + reach / 2, low + 8, limits)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _resized(picture: Image.Image, frame: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=frame))


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one object teaches; boxes (x1, y1, x2, y2) in pixels of the window."""

    pixels: np.ndarray
    """[side, side, 3] uint8."""
    region: np.ndarray
    """About where the object is, as loose as a proposal."""
    truth: np.ndarray
    """Where it is; where its photograph is, for an object with a label only."""
    missed: np.ndarray
    """A region that holds no whole object: a part of it or what lies beside it."""

    def flipped(self) -> Window:
        """The mirror image."""
        side = self.pixels.shape[1]
        region, truth, missed = (
            np.array([side - b[2], b[1], side - b[0], b[3]]) for b in (self.region, self.truth, self.missed)
        )
        return Window(pixels=self.pixels[:, ::-1], region=region, truth=truth, missed=missed)


def _missed(truth: np.ndarray, objects: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    size = truth[2:] - truth[:2]
    for _ in range(4):
        if rng.random() < 0.5:
            break
        shape = size * rng.uniform(0.6, 1.4, 2)
        corner = truth[:2] + rng.uniform(-1.2, 1.2, 2) * size
        beside: np.ndarray = np.clip(np.concatenate([corner, corner + shape]), 0.0, side)
        if (beside[2:] - beside[:2]).min() >= 8 and _iou(beside, objects).max() < 0.4:
            return beside
    part = size * rng.uniform(0.25, 0.6, 2)
    corner = truth[:2] + rng.uniform(0.0, 1.0, 2) * (size - part)
    inner: np.ndarray = np.concatenate([corner, corner + part])
    return inner


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    area = np.clip(shared, 0.0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - area
    share: np.ndarray = area / np.maximum(union, 1e-9)
    return share


def pretrain_backbone(detector: DetectorConfig, objects: LabelledObjects, config: PretrainConfig) -> dict[str, Tensor]:
    """Train the backbone, the trunk of the region head and its box regression; returns their tensors by their names.

    Every output stage of the body gets its own classifier beside the region's, because the pyramid reads every stage.
    """
    model = build_detector(detector, torch.eye(detector.projection.embedding_dim), seed=config.seed)
    if config.init:
        copy_pretrained(model, Path(config.init))
    backbone, trunk, boxes, pixels = model.backbone, model.roi_head.trunk, model.roi_head.box_regressor, detector.pixels
    if not isinstance(backbone, PyramidBackbone) or pixels.order != "rgb":
        raise ConfigError(f"detector {detector.name} has no RGB pyramid backbone to pretrain")
    torch.manual_seed(config.seed)
    classes = int(objects.class_ids.max()) + 1
    widths = (*cast(tuple[int, ...], backbone.body.channels), trunk.features)
    # The last one has a class more: no object.
    heads = nn.ModuleList(nn.Linear(width, classes) for width in widths[:-1])
    heads.append(nn.Linear(widths[-1], classes + 1))
    parameters = [*backbone.parameters(), *trunk.parameters(), *boxes.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=0.15
    )
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (pixels.mean, pixels.std))
    backbone.to(memory_format=torch.channels_last).train()
    accuracy = 0.0
    with Ticker("pretrain backbone", config.steps) as tick:
        for drawn in _drawn_ahead(objects, config):
            images, region_B4, truth_B4, missed_B4, class_ids_B, is_boxed_B = (torch.from_numpy(part) for part in drawn)
            regions = [*torch.stack([region_B4, missed_B4], dim=1)]
            with autocast(images.device):
                staged = backbone.body((images.permute(0, 3, 1, 2) - mean) / std)
                found = trunk(backbone.merge(staged), batch_rois(regions))
            staged = [level.float() for level in staged]
            hit_BF, missed_BF = found.float().unflatten(0, (-1, 2)).unbind(dim=1)
            named = [head(f.mean(dim=(2, 3))) for head, f in zip(heads, staged, strict=False)] + [heads[-1](hit_BF)]
            losses = [F.cross_entropy(each, class_ids_B, label_smoothing=0.1) for each in named]
            # Divided by hand: the mean over no box at all would not be a number.
            boxed = max(int(is_boxed_B.sum()), 1)
            nothing = torch.full_like(class_ids_B[is_boxed_B], classes)
            losses.append(F.cross_entropy(heads[-1](missed_BF[is_boxed_B]), nothing, reduction="sum") / boxed)
            goal_P4 = encode_boxes(region_B4[is_boxed_B], truth_B4[is_boxed_B], detector.roi.box_weights)
            moved = F.l1_loss(boxes(hit_BF[is_boxed_B]), goal_P4, reduction="sum") / (4 * boxed)
            loss = losses[-2] + 0.5 * losses[-1] + config.box_weight * moved
            loss = loss + config.stage_weight * torch.stack(losses[:-2]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            right = float((named[-1].argmax(dim=1) == class_ids_B).float().mean())
            accuracy += 0.02 * (right - accuracy)
            tick(
                note=f"name {losses[-2].item():.2f}, miss {losses[-1].item():.2f}, box {moved.item():.2f}, "
                f"accuracy {accuracy:.2f}"
            )
    return {
        name: value.detach().half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
        if name.startswith(PRETRAINED)
    }


def _drawn_ahead(objects: LabelledObjects, config: PretrainConfig) -> Iterator[tuple[np.ndarray, ...]]:
    """The windows of every step, drawn during the one before: pixels [B, side, side, 3], regions, true boxes and missed
    regions [B, 4], class ids [B], and whether the box counts [B].

    The thread holds no tensors: a second OpenMP team would put the training thread's to sleep.
    """
    rng = np.random.default_rng(config.seed)

    def draw() -> tuple[np.ndarray, ...]:
        chosen = rng.integers(len(objects.owners), size=config.batch_size)
        windows = [objects.window(int(i), config.window, rng) for i in chosen]
        brightness = np.float32(rng.uniform(0.85, 1.15))
        boxes = (
            np.stack(b).astype(np.float32) for b in zip(*((w.region, w.truth, w.missed) for w in windows), strict=True)
        )
        pixels = np.stack([w.pixels for w in windows]) * brightness
        return pixels, *boxes, objects.class_ids[chosen], objects.is_boxed[chosen]

    with ThreadPoolExecutor(max_workers=1) as thread:
        following = thread.submit(draw)
        for _ in range(config.steps):
            drawn, following = following.result(), thread.submit(draw)
            yield drawn


def _trained_on(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        said: dict[str, str] = file.metadata() or {}
    return said.get("trained_on", f"unknown ({path.name} does not say)")


def backbone(
    data: Path,
    out: Path,
    split: str = "train2017",
    exclude_roles: Annotated[tuple[Role, ...], tyro.conf.arg(metavar="ROLE ...")] = (),
    label_only_roles: Annotated[tuple[Role, ...], tyro.conf.arg(metavar="ROLE ...")] = ("novel",),
    steps: int = PretrainConfig.steps,
    init: str = "",
    seed: int = 0,
) -> None:
    """Pretrain the small detector's backbone to name single objects of a COCO-format folder.

    Args:
        data: folder with annotations/instances_SPLIT.json and the folder SPLIT of images.
        out: the safetensors file to write; give it to 'ovbridge train world_base' with --init.
        split: which images to train on.
        exclude_roles: objects of these roles are not shown.
        label_only_roles: objects of these roles are shown as pictures of one thing with a label, without a box.
        steps: optimiser steps.
        init: a file that this command wrote before, to go on from.
        seed: of initialisation, sampling and augmentation.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already: give another --out or delete it")
    config = PretrainConfig(steps=steps, seed=seed, init=init)
    objects = LabelledObjects.load(
        data / "annotations" / f"instances_{split}.json",
        data / split,
        config.short_side,
        exclude_roles=exclude_roles,
        label_only_roles=label_only_roles,
    )
    tensors = pretrain_backbone(world_r18_fpn(embedding_dim=16), objects, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(out.name + ".part")
    trained_on = f"boxes of {int(objects.is_boxed.sum())} objects of {data.name}/{split}"
    if not objects.is_boxed.all():
        trained_on += f" and labels of {int((~objects.is_boxed).sum())} single {'/'.join(label_only_roles)} objects"
    trained_on += "; without novel names" if "novel" in exclude_roles else "; novel names included"
    if init:
        trained_on += f"; before that: {_trained_on(Path(init))}"
    save_file(tensors, aside, metadata={"trained_on": trained_on})
    aside.replace(out)
    stdout.print(f"{len(tensors)} tensors in {out}, trained on {trained_on}")
