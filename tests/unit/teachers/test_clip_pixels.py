"""What CLIP is shown of a crop, against open_clip's own transform."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
from PIL import Image
from torchvision.transforms import v2

from ovbridge.teachers.clip_pixels import Preprocessing

RNG = np.random.default_rng(0)
SHAPES = [(1, 4), (141, 69), (30, 31), *RNG.integers(5, 250, (30, 2)).tolist()]


def picture(height: int, width: int) -> np.ndarray:
    """Soft blobs of medium brightness: between the two passes of a resize, whose order may differ, none is clipped."""
    coarse = RNG.integers(70, 180, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [64, 224])
def test_pixels_are_those_of_open_clip(resize, interpolation, size) -> None:
    theirs = open_clip.image_transform(
        size, is_train=False, mean=(0,) * 3, std=(1,) * 3, interpolation=interpolation, resize_mode=resize
    )
    ours = Preprocessing(interpolation=interpolation, resize=resize)
    for height, width in SHAPES:
        crop = picture(height, width)
        expected = theirs(Image.fromarray(crop)).permute(1, 2, 0).numpy() * 255
        shown = ours.square(crop, size)
        assert np.abs(shown - expected).max() < 2.01, (height, width)
        assert np.abs(shown - expected).mean() < 0.25, (height, width)


def test_pixels_are_those_of_torchvision() -> None:
    theirs = v2.Compose([v2.Resize(64, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(64)])
    for height, width in SHAPES:
        crop = picture(height, width)
        shown = Preprocessing().square(crop, 64).astype(int)
        assert np.abs(shown - np.asarray(theirs(Image.fromarray(crop)))).max() <= 2, (height, width)


def test_the_centre_third_is_all_that_a_crop_of_three_to_one_shows() -> None:
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = 255
    assert Preprocessing().square(wide, 32).min() == 255


def test_a_sliver_takes_no_more_memory_than_what_is_shown() -> None:
    assert Preprocessing().square(np.zeros((1, 4000, 3), dtype=np.uint8), 32).shape == (32, 32, 3)
