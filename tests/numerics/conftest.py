"""The official detectors with their regenerated weights, as ours."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ovbridge.detector.checkpoint_map import FREQUENCY, TEXT, MappedCheckpoint, map_official

BANKS = {"coco": "coco_clip_a+photo+cname.npy", "lvis": "lvis_v1_clip_a+photo+cname.npy"}


@pytest.fixture(scope="session")
def weight_rules(goldens: Path) -> ModuleType:
    """The golden data's own weight generator: `value(name, shape)`."""
    spec = importlib.util.spec_from_file_location("golden_weights", goldens / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def frequency_weights(goldens: Path) -> Callable[[str], Tensor]:
    """`case` → sqrt(image_count) of each class, as the goldens' stand-in files give them."""
    counts = json.loads((goldens / "cat_info_standin.json").read_text())

    def weights(case: str) -> Tensor:
        records = next(v for k, v in counts.items() if k.startswith(case[:4]))
        ordered = [record["image_count"] for record in sorted(records, key=lambda record: record["id"])]
        return torch.tensor(ordered, dtype=torch.float32) ** 0.5

    return weights


@pytest.fixture(scope="session")
def official_text(shared_data: Path) -> Callable[[str], Tensor]:
    """`case` → the official `zs_weight` [D, K + 1]: unit columns, the last one zero."""

    def text(case: str) -> Tensor:
        bank = torch.from_numpy(np.load(shared_data / "embeddings" / BANKS[case[:4]]).astype(np.float32))
        return torch.nn.functional.normalize(torch.cat([bank.T, torch.zeros(bank.shape[1], 1)], dim=1), dim=0)

    return text


@pytest.fixture(scope="session")
def official_tensors(
    goldens: Path,
    weight_rules: ModuleType,
    official_text: Callable[[str], Tensor],
    frequency_weights: Callable[[str], Tensor],
) -> Callable[[str], dict[str, Tensor]]:
    """`case` → the official state dictionary with regenerated weights."""

    def tensors(case: str) -> dict[str, Tensor]:
        shapes = json.loads((goldens / f"{case}_state_dict.json").read_text())
        made = {
            name: torch.from_numpy(weight_rules.value(name, record["shape"]))
            for name, record in shapes.items()
            if not weight_rules.KEEP.search(name)
        }
        return made | {TEXT: official_text(case), FREQUENCY: frequency_weights(case)}

    return tensors


@pytest.fixture(scope="session")
def golden_detector(official_tensors: Callable[[str], dict[str, Tensor]]) -> Callable[[str], MappedCheckpoint]:
    """`case` → our detector with the golden weights; the latest one is kept."""
    return functools.lru_cache(maxsize=1)(lambda case: map_official(official_tensors(case)))


@pytest.fixture(scope="session")
def golden_image(goldens: Path) -> Callable[[str], Tensor]:
    """File stem in the goldens' image folder → [3, H, W] uint8 RGB."""

    def read(stem: str) -> Tensor:
        (path,) = (goldens / "images").glob(f"{stem}.png")
        return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).contiguous()

    return read


@pytest.fixture(scope="session")
def share_found() -> Callable[..., float]:
    """`share_found(boxes, logits, golden_boxes, golden_logits)`: the share of golden proposals that are among ours.

    Near-equal logits swap places between any two float computations, so proposals are matched, not aligned.
    """

    def share(boxes: Tensor, logits: Tensor, golden_boxes: np.ndarray, golden_logits: np.ndarray) -> float:
        distance = torch.cdist(torch.from_numpy(golden_boxes), boxes, p=float("inf"))
        near = (distance < 2e-2) & ((torch.from_numpy(golden_logits)[:, None] - logits).abs() < 1e-4)
        return near.any(dim=1).float().mean().item()

    return share
