import numpy as np
import pytest
from PIL import Image

from ovbridge.data.image_reading import image_hw, read_image
from ovbridge.errors import DataError

RED = (200, 10, 20)


def _saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "RGBA", "LA", "1", "YCbCr"])
def test_every_mode_becomes_rgb_bytes(tmp_path, mode):
    image = Image.new("RGB", (7, 5), RED).convert(mode)
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    # Pillow before 13 cannot read the YCbCr file that it writes without compression.
    options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {}
    pixels = read_image(_saved(tmp_path, image, f"{mode}.{suffix}", **options))
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8
    if mode in ("RGB", "RGBA"):
        assert pixels[2, 3].tolist() == list(RED)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    image = Image.fromarray(np.full((4, 6), 128 * 257, dtype=np.uint16))
    assert read_image(_saved(tmp_path, image, "deep.png")).tolist() == np.full((4, 6, 3), 128).tolist()


def test_transparent_pixels_lie_on_white(tmp_path):
    image = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    assert read_image(_saved(tmp_path, image, "clear.png")).min() == 255


def _turned(tmp_path):
    """A 6 x 4 picture, left half black, whose EXIF says: turn by 90 degrees."""
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:, 3:] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    return _saved(tmp_path, image, "turned.png", exif=exif), pixels


def test_exif_orientation_is_followed(tmp_path):
    path, pixels = _turned(tmp_path)
    expected = np.rot90(pixels, k=-1)
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_image(path, expected_hw=(6, 4)), expected)
    assert image_hw(path) == (6, 4)


def test_pixels_as_stored_where_the_annotation_file_has_their_size(tmp_path):
    path, pixels = _turned(tmp_path)
    np.testing.assert_array_equal(read_image(path, expected_hw=(4, 6)), pixels)


def test_a_size_that_fits_neither_way_is_refused(tmp_path):
    path, _ = _turned(tmp_path)
    with pytest.raises(DataError, match=r"turned.png is 4x6, its annotation file says 9x9"):
        read_image(path, expected_hw=(9, 9))
    upright = _saved(tmp_path, Image.new("RGB", (6, 4)), "upright.png")
    with pytest.raises(DataError, match=r"upright.png is 6x4"):
        read_image(upright, expected_hw=(6, 4))
