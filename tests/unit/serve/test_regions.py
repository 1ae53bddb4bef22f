from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ovbridge.label_store.search import RegionHit
from ovbridge.serve.regions import RegionSearch, crop_of


def _hit(key: str) -> RegionHit:
    return RegionHit(image_key=key, box_xyxy=(2.0, 3.0, 12.0, 8.0), similarity=0.5, objectness=0.5)


@pytest.fixture
def search(tmp_path: Path) -> RegionSearch:
    (tmp_path / "images").mkdir()
    for name in ("images/a.png", "secret.png"):
        Image.fromarray(np.full((20, 30, 3), 9, np.uint8)).save(tmp_path / name)
    return RegionSearch(store=SimpleNamespace(), encoder=SimpleNamespace(), roots=(tmp_path / "images",))  # type: ignore[arg-type]


def test_thumbnail_is_a_small_jpeg(search: RegionSearch) -> None:
    address = search.thumbnail(_hit("a.png"))
    assert address is not None
    assert address.startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("key", ["../secret.png", "/etc/passwd", "absent.png", ".."])
def test_keys_do_not_lead_out_of_the_image_folder(search: RegionSearch, key: str) -> None:
    assert search.thumbnail(_hit(key)) is None


def test_crop_stays_in_the_picture() -> None:
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    assert np.array_equal(crop_of(pixels, (2.0, 3.0, 12.0, 8.0)), pixels[3:8, 2:12])
    assert crop_of(pixels, (28.5, 18.5, 99.0, 99.0)).shape == (2, 2, 3)
    assert crop_of(pixels, (50.0, 50.0, 60.0, 60.0)).shape == (1, 1, 3)
