"""The official RKD label path: NMS, choice of the five boxes, and what CLIP is shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ovbridge.labeling.pseudo_boxes import SelectionConfig, class_agnostic, suppress
from ovbridge.labeling.region_embeddings import crops_of
from ovbridge.structures import Proposals
from ovbridge.teachers.clip_pixels import CLIP_MEAN, CLIP_STD, Preprocessing


@pytest.fixture(scope="module")
def golden(goldens: Path) -> dict[str, np.ndarray]:
    with np.load(goldens / "rkd_path.npz") as file:
        return dict(file)


def load_rgb(goldens: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(goldens / "images" / f"{name}.png").convert("RGB"))


@pytest.mark.parametrize("iou", [0.5, 0.7])
def test_nms_with_the_old_pixel_convention(golden: dict[str, Any], iou: float) -> None:
    boxes, scores = torch.from_numpy(golden["nms/boxes"]), torch.from_numpy(golden["nms/scores"])
    kept = suppress(boxes, scores, iou, last_pixel_inside=True)
    np.testing.assert_array_equal(scores[kept].numpy(), golden[f"nms/keep_scores_iou{iou}"])
    if iou == 0.5:
        np.testing.assert_array_equal(boxes[kept].numpy(), golden["nms/keep_boxes_iou0.5"])


@pytest.mark.parametrize("image", ["img0", "img1"])
def test_four_queries_become_the_official_five_boxes(golden: dict[str, Any], goldens: Path, image: str) -> None:
    height, width = load_rgb(goldens, image).shape[:2]
    per_query = [
        Proposals(
            boxes_xyxy=torch.from_numpy(golden[f"{image}/query{q}/top50_boxes"]).float(),
            scores=torch.from_numpy(golden[f"{image}/query{q}/top50_scores"]),
        )
        for q in range(4)
    ]
    chosen = class_agnostic(per_query, height, width, SelectionConfig(paper_exact=True))
    np.testing.assert_array_equal(chosen.boxes_xyxy.numpy(), golden[f"{image}/boxes"])
    np.testing.assert_allclose(chosen.scores.numpy(), golden[f"{image}/scores"], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("image", "key"), [("img0", "img0"), ("img1", "img1"), ("img0", "fixed")])
def test_tight_crops_are_what_clip_was_shown(golden: dict[str, Any], goldens: Path, image: str, key: str) -> None:
    clip_input = v2.Compose(
        [
            v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(224),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    pixels = load_rgb(goldens, image)
    for i, box in enumerate(golden[f"{key}/boxes"].tolist()):
        (crop,) = crops_of(pixels, box, "tight")
        shown = clip_input(Image.fromarray(crop))
        if key == "fixed":
            figures = [float(shown.double().sum()), float(shown.double().abs().sum())]
            np.testing.assert_allclose(figures, golden["fixed/clip_input_sum_abssum"][i], rtol=1e-5)
        else:
            d = shown.double()
            figures = [float(d.mean()), float(d.std()), float(d.sum()), float(d.abs().sum())]
            np.testing.assert_allclose(figures, golden[f"{key}/clip_input_stats"][i], rtol=1e-4)
        slices = [s for s in _eight_by_eight(shown) if np.allclose(s, golden[f"{key}/clip_input_slice"][i], atol=1e-5)]
        assert slices, f"box {i} of {key}"
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        ours = torch.tensor(Preprocessing().square(crop, 224)).permute(2, 0, 1)
        # Resampling only what is shown rounds some pixels to the next level.
        assert (ours - (shown * std + mean) * 255).abs().mean() < 0.25


def _eight_by_eight(shown: torch.Tensor) -> list[np.ndarray]:
    """The stored window is 8 x 8 pixels on the diagonal; where it lies is not part of the figures."""
    return [shown[:, k : k + 8, k : k + 8].numpy() for k in range(217)]
