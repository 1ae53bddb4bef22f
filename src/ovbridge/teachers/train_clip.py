"""Training of a small CLIP on captioned object crops (Radford et al. 2021, arXiv 2103.00020, §2.3).

Legend: B pairs a batch, D embedding width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ovbridge.console import Ticker, stderr, stdout
from ovbridge.device import default_device
from ovbridge.errors import ConfigError
from ovbridge.teachers.clip import ClipConfig, ClipTeacher, build_clip, load_clip, save_clip
from ovbridge.teachers.clip_crops import BACKGROUND, PATCH_SIZE, CropSet, load_crops
from ovbridge.teachers.clip_pixels import CLIP_MEAN, CLIP_STD
from ovbridge.teachers.tokenizer import ByteBpeTokenizer

NAME_TEMPLATES = ("a photo of a {}", "a picture of a {}", "a {}", "{}", "every {}")
PHRASE_TEMPLATES = ("a photo of {}", "a picture of {}", "{}")
BACKGROUND_TEXTS = ("a photo of the background", "background", "an empty place", "nothing", "a wall", "the ground")


@dataclass(frozen=True, kw_only=True)
class ClipTrainConfig:
    """How a small CLIP is trained."""

    steps: int = 1400
    """Optimiser steps."""
    batch_size: int = 128
    """Pairs a step."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule of AdamW."""
    weight_decay: float = 0.02
    """AdamW's, on matrices only."""
    vocab_size: int = 1200
    """Ids of the tokenizer."""
    seed: int = 0
    """Of initialisation, sampling and augmentation."""


DEFAULT_TRAINING = ClipTrainConfig()
DEFAULT_MODEL = ClipConfig()


def contrastive_loss(
    image_BD: Tensor, text_BD: Tensor, scale: Tensor, positive_BB: Tensor, ignore_BB: Tensor
) -> Tensor:
    """Symmetric cross-entropy over a batch where several texts may fit an image.

    Args:
        image_BD, text_BD: unit-length embeddings of the pairs.
        scale: factor on the cosine (the inverse temperature).
        positive_BB: bool, text j is right for image i; true on the diagonal.
        ignore_BB: bool, neither right nor wrong (the same class in other words); left out of the softmax.

    Returns:
        Scalar mean over images and texts; equal targets share the probability. With one positive a row and
        nothing ignored it is CLIP's loss (arXiv 2103.00020, Fig. 3).
    """
    logits_BB = scale * image_BD @ text_BD.T
    logits_BB = logits_BB.masked_fill(ignore_BB & ~positive_BB, -torch.inf)
    target_BB = positive_BB.to(logits_BB.dtype)

    def one_way(logits: Tensor, target: Tensor) -> Tensor:
        log_probability = F.log_softmax(logits, dim=1).masked_fill(target == 0, 0.0)
        return -(log_probability * target).sum(dim=1).div(target.sum(dim=1)).mean()

    return (one_way(logits_BB, target_BB) + one_way(logits_BB.T, target_BB.T)) / 2


def train_clip(
    crops: CropSet, out: Path, model_config: ClipConfig, config: ClipTrainConfig, *, trained_on: str
) -> Path:
    """Train from scratch on `crops` and write `out` (safetensors); the same arguments give the same file."""
    device = default_device()
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    tokenizer = ByteBpeTokenizer.train(_corpus(crops), config.vocab_size)
    model = build_clip(model_config, tokenizer.vocab_size).to(device).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.learning_rate, total_steps=config.steps, pct_start=0.1
    )
    with Ticker("train CLIP", config.steps) as tick:
        for _ in range(config.steps):
            chosen = rng.integers(len(crops), size=config.batch_size)
            texts, is_name = _sample_texts(crops, chosen, rng)
            pixels = _sample_pixels(crops, chosen, rng, model_config.image_size).to(device)
            tokens = tokenizer(texts, model_config.context_length).to(device)
            positive, ignore = _pair_masks(texts, crops.class_ids[chosen], is_name)
            image = F.normalize(model.encode_image(pixels), dim=1)  # type: ignore[operator]
            text = F.normalize(model.encode_text(tokens), dim=1)  # type: ignore[operator]
            scale = model.logit_scale.exp().clamp(max=100.0)  # type: ignore[operator]
            loss = contrastive_loss(image, text, scale, positive.to(device), ignore.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            tick(note=f"loss {loss.item():.3f}")
    save_clip(out, model.eval(), tokenizer, model_config, trained_on)
    return out


def zero_shot_accuracy(teacher: ClipTeacher, crops: CropSet) -> dict[str, float]:
    """Top-1 accuracy in percent of tight object crops among all class names, by role.

    The crop is the paper's: the box itself, then CLIP's own preprocessing.
    """
    keep = np.flatnonzero(crops.class_ids != BACKGROUND)
    cut = []
    for i in keep:
        x1, y1, x2, y2 = np.clip(crops.boxes_xyxy[i], 0, PATCH_SIZE).round().astype(int)
        cut.append(crops.patches[i, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)])
    image = F.normalize(teacher.embed_crops(cut), dim=1)
    text = F.normalize(teacher.embed_names(crops.names).embeddings_KD, dim=1)
    right = ((image @ text.T).argmax(dim=1).numpy() == crops.class_ids[keep]).astype(float)
    roles = np.array(crops.roles)[crops.class_ids[keep]]
    return {role: 100 * float(right[roles == role].mean()) for role in sorted(set(roles.tolist()))}


def _corpus(crops: CropSet) -> list[str]:
    names = [*crops.names, *(s for group in crops.synonyms for s in group)]
    return [*crops.phrases, *BACKGROUND_TEXTS, *(t.format(n) for n in names for t in NAME_TEMPLATES)]


def _sample_texts(crops: CropSet, chosen: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """One text a crop, and whether it is a bare name (then it fits every crop of the class)."""
    texts, is_name = [], np.zeros(len(chosen), dtype=bool)
    for i, index in enumerate(chosen):
        class_id = int(crops.class_ids[index])
        if class_id == BACKGROUND:
            texts.append(BACKGROUND_TEXTS[rng.integers(len(BACKGROUND_TEXTS))])
        elif crops.phrases[index] and rng.random() < 0.5:
            texts.append(PHRASE_TEMPLATES[rng.integers(len(PHRASE_TEMPLATES))].format(crops.phrases[index]))
        else:
            words = (crops.names[class_id], *crops.synonyms[class_id])
            word = words[0] if rng.random() < 0.7 else words[rng.integers(len(words))]
            texts.append(NAME_TEMPLATES[rng.integers(len(NAME_TEMPLATES))].format(word))
            is_name[i] = True
    return texts, is_name


def _pair_masks(texts: list[str], class_ids: np.ndarray, is_name: np.ndarray) -> tuple[Tensor, Tensor]:
    same_class = class_ids[:, None] == class_ids[None, :]
    # A bare name and any background text fit every crop of their class.
    fits_all = is_name | (class_ids == BACKGROUND)
    text_ids = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids = np.array([text_ids[text] for text in texts])
    same_text = ids[:, None] == ids[None, :]
    positive = same_text | (same_class & fits_all[None, :])
    np.fill_diagonal(positive, True)
    ignore = same_class & (fits_all[:, None] | fits_all[None, :])
    return torch.from_numpy(positive), torch.from_numpy(ignore)


def _sample_pixels(crops: CropSet, chosen: np.ndarray, rng: np.random.Generator, size: int) -> Tensor:
    """[B, 3, size, size] normalised: jittered boxes, cut tight (the paper's crop) or square with context."""
    count = len(chosen)
    boxes = crops.boxes_xyxy[chosen]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    centre = centre + sides * rng.uniform(-0.1, 0.1, (count, 2))
    sides = sides * np.exp(rng.uniform(-0.2, 0.2, (count, 2)))
    tight = rng.random(count) < 0.6
    square = np.where(tight, sides.min(axis=1), sides.max(axis=1) * rng.uniform(0.9, 1.2, count))
    half = np.maximum(square, 4.0)[:, None] / 2
    windows = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    pixels = torch.from_numpy(crops.patches[chosen]).permute(0, 3, 1, 2).float()
    rois = torch.cat([torch.arange(count, dtype=torch.float32)[:, None], torch.from_numpy(windows)], dim=1)
    cut = roi_align(pixels, rois, (size, size), sampling_ratio=1, aligned=True)
    flip = torch.from_numpy(rng.random(count) < 0.5)
    cut = torch.where(flip[:, None, None, None], cut.flip(3), cut)
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (count, 1, 1, 1)).astype(np.float32))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (CLIP_MEAN, CLIP_STD))
    return (cut * gain - mean) / std


def clip(
    data: Path,
    out: Path,
    split: str = "train2017",
    holdout: str | None = "val2017",
    train: ClipTrainConfig = DEFAULT_TRAINING,
    model: ClipConfig = DEFAULT_MODEL,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Train a small CLIP on the object crops of a COCO-format folder.

    Args:
        data: folder with annotations/instances_SPLIT.json and the folder SPLIT of images.
        out: the safetensors file to write.
        split: which images to train on.
        holdout: which images to measure zero-shot accuracy on; none to skip.
        train: how to train.
        model: the shape of the model.
        json_output: print the accuracies as JSON.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already: give another --out or delete it")
    annotations = data / "annotations" / f"instances_{split}.json"
    crops = load_crops(annotations, data / split)
    stderr.print(f"{len(crops)} crops of {len(crops.names)} classes")
    train_clip(
        crops,
        out,
        model,
        train,
        trained_on=f"{len(crops)} captioned crops of all {len(crops.names)} classes of {data.name}/{split}",
    )
    if holdout is None:
        return
    held_out = load_crops(data / "annotations" / f"instances_{holdout}.json", data / holdout, background_per_image=0)
    accuracy = zero_shot_accuracy(load_clip(str(out), default_device()), held_out)
    if json_output:
        stdout.print_json(json.dumps({"zero_shot_accuracy": accuracy, "crops": len(held_out)}))
    else:
        stdout.print(f"zero-shot accuracy on {len(held_out)} held-out crops (%): {accuracy}")
