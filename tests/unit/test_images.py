from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovbridge import images
from ovbridge.errors import DataError
from ovbridge.images import read_image, resize_pixels, resized_size

RED = np.zeros((6, 8, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


def _saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_plain_rgb_is_unchanged(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(_saved(Image.fromarray(RED), tmp_path / "a.png")), RED)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA", "YCbCr"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = ".jpg" if mode in ("CMYK", "YCbCr") else ".png"
    pixels = read_image(_saved(Image.fromarray(RED).convert(mode), tmp_path / f"a{suffix}"))
    assert pixels.shape == (6, 8, 3)
    assert pixels.dtype == np.uint8
    if mode in ("P", "RGBA", "CMYK", "YCbCr"):
        assert np.abs(pixels.astype(int) - RED).max() < 12


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    grey = np.array([[0, 32768, 65535]], np.uint16)
    pixels = read_image(_saved(Image.fromarray(grey), tmp_path / "a.png"))
    assert pixels[0, :, 0].tolist() == [0, 127, 255]
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_float_fractions_are_scaled(tmp_path: Path) -> None:
    pixels = read_image(_saved(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), tmp_path / "a.tiff"))
    assert pixels[0, :, 1].tolist() == [0, 127, 255]


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    layer = np.zeros((2, 2, 4), np.uint8)
    layer[0, 0] = (10, 20, 30, 255)
    pixels = read_image(_saved(Image.fromarray(layer), tmp_path / "a.png"))
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[1, 1].tolist() == [255, 255, 255]


def test_exif_turns_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = read_image(_saved(Image.fromarray(RED), tmp_path / "a.jpg", exif=exif))
    assert pixels.shape == (8, 6, 3)


def test_bad_files_name_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = _saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), tmp_path / "g.jpg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(good.read_bytes()[:700])
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path, message in (
        (tmp_path / "none.jpg", "does not exist"),
        (tmp_path, "is a folder"),
        (cut, "is damaged"),
        (text, "not an image that Pillow can read"),
        (empty, "not an image that Pillow can read"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_image(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="64x64"):
        read_image(good)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),
        (640, 480, (1067, 800)),
        (427, 640, (800, 1199)),
        (300, 900, (444, 1333)),
        (1, 5000, (1, 1333)),
    ],
)
def test_resized_size_by_hand(height: int, width: int, expected: tuple[int, int]) -> None:
    # 427x640: 800/427*640 = 1199.06; 300x900: 800x2400, then x 1333/2400 = 444.3x1333.
    assert resized_size(height, width, short_side=800, long_side=1333) == expected


def test_resize_pixels_keeps_what_fits() -> None:
    assert resize_pixels(RED, (6, 8)) is RED
    assert (resize_pixels(RED, (3, 4)) == RED[:3, :4]).all()
