"""First steps of a backbone from scratch: name the object in a crop.

A crop costs a fifth of a scene and carries one label at full weight, so the backbone learns to tell nouns apart
several times faster here than through the transformer. It stands for the ImageNet weights of the full-size model.

Legend: B crops, K nouns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from ovbridge.console import Ticker
from ovbridge.teachers.mavl.backbone import ResNet
from ovbridge.teachers.mavl.samples import IMAGENET_MEAN, IMAGENET_STD, GroundedData

CROP_PIXELS = 64
"""Side of a crop: two cells at stride 32."""


def pretrain_backbone(
    backbone: ResNet,
    data: GroundedData,
    pixels: Callable[[int], np.ndarray],
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """Train `backbone` in place to name the nouns of crops; returns the accuracy over the last tenth of the steps.

    Square windows around an object, 1 to 2.5 times its longer side, moved and flipped at random. Every stage gets
    its own classifier, because the transformer reads every stage.
    """
    owners = np.array([(i, g) for i, image in enumerate(data.images) for g in range(len(image.nouns))])
    heads = nn.ModuleList(nn.Linear(channels, len(data.nouns)) for channels in backbone.out_channels)
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1, pct_start=0.15)
    random = np.random.default_rng((seed, 3))
    backbone.train()
    right: list[float] = []
    with Ticker("train backbone on crops", steps) as tick:
        for _ in range(steps):
            chosen = owners[random.integers(len(owners), size=batch_size)]
            crops_B3HW = torch.cat([_crop(data, pixels, int(i), int(g), random) for i, g in chosen])
            nouns_B = torch.tensor([data.images[i].nouns[g] for i, g in chosen])
            pooled = [feature.mean(dim=(2, 3)) for feature in backbone(crops_B3HW)]
            logits = [head(x) for head, x in zip(heads, pooled, strict=True)]
            loss = torch.stack([F.cross_entropy(each, nouns_B, label_smoothing=0.1) for each in logits]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            right.append(float((logits[-1].argmax(dim=1) == nouns_B).float().mean()))
            tick(note=f"loss {loss.item():.2f}, accuracy {np.mean(right[-20:]):.2f}")
    return float(np.mean(right[-max(1, steps // 10) :]))


def _crop(
    data: GroundedData, pixels: Callable[[int], np.ndarray], image: int, box: int, random: np.random.Generator
) -> Tensor:
    """One normalised crop [1, 3, CROP_PIXELS, CROP_PIXELS]; outside the image it is grey."""
    source = pixels(image)
    height, width = source.shape[:2]
    cx, cy, w, h = data.images[image].boxes_cxcywh[box] * (width, height, width, height)
    side = max(w, h, 8.0) * random.uniform(1.0, 2.5)
    cx, cy = cx + side * random.uniform(-0.15, 0.15), cy + side * random.uniform(-0.15, 0.15)
    window = torch.tensor([[0.0, cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2]], dtype=torch.float32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255.0 for v in (IMAGENET_MEAN, IMAGENET_STD))
    # Only the part that the window touches is converted: whole scenes would cost more than the network.
    left, top = max(0, int(cx - side / 2) - 1), max(0, int(cy - side / 2) - 1)
    right, bottom = int(cx + side / 2) + 2, int(cy + side / 2) + 2
    part = torch.tensor(source[top:bottom, left:right]).permute(2, 0, 1)[None].float()
    offset = torch.tensor([0.0, left, top, left, top])
    crop = roi_align((part - mean) / std, window - offset, CROP_PIXELS, sampling_ratio=1, aligned=True)
    crop = crop * random.uniform(0.75, 1.25)
    varied: Tensor = crop.flip(3) if random.random() < 0.5 else crop
    return varied
