from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ovbridge.errors import ConfigError, DataError
from ovbridge.inference.inputs import count_pictures, image_paths, pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "sub/b.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Ten frames, the i-th of red 20 i."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(10):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:, :, 2] = 20 * i
        writer.write(frame)
    writer.release()
    return path


def test_folders_and_globs_are_expanded_in_order(folder: Path) -> None:
    everything = [folder / "a.png", folder / "b.jpg", folder / "sub/b.jpg"]
    assert image_paths([str(folder)]) == everything
    assert image_paths([str(folder / "*.jpg")]) == [folder / "b.jpg"]
    assert image_paths([str(folder / "b.jpg"), str(folder)]) == [everything[1], everything[0], everything[2]]


def test_folders_with_glob_characters_are_taken_as_they_are_spelt(folder: Path) -> None:
    odd = folder / "x[1]"
    odd.mkdir()
    (folder / "a.png").rename(odd / "a.png")
    assert image_paths([str(odd / "*.png")]) == [odd / "a.png"]
    (folder / "x1").mkdir()
    (odd / "a.png").rename(folder / "x1" / "a.png")
    assert image_paths([str(odd / "*.png")]) == [folder / "x1" / "a.png"]


def test_nothing_to_detect_in_is_said(folder: Path) -> None:
    (folder / "empty").mkdir()
    for words in ([str(folder / "empty")], [str(folder / "*.webp")]):
        with pytest.raises(DataError, match="holds no image"):
            image_paths(words)
    with pytest.raises(ConfigError, match="no image given"):
        image_paths([])


def test_every_third_frame_in_rgb(video: Path) -> None:
    frames = list(pictures([video], every=3))
    assert [frame.frame for frame in frames] == [0, 3, 6, 9]
    assert count_pictures([video], every=3) == 4
    assert frames[1].label.endswith("clip.avi#3")
    reds = [float(frame.pixels[:, :, 0].mean()) for frame in frames if frame.pixels is not None]
    assert reds == pytest.approx([0, 60, 120, 180], abs=6)
    assert float(frames[3].pixels[:, :, 2].mean()) < 6  # type: ignore[index]


def test_broken_videos_are_one_line_each(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    found = list(pictures([broken, tmp_path / "gone.mp4"], every=1))
    assert [picture.pixels for picture in found] == [None, None]
    assert "broken.mp4 cannot be read" in found[0].fault
    assert "gone.mp4 does not exist" in found[1].fault


def test_names_too_long_for_the_file_system_are_files_that_do_not_exist() -> None:
    paths = image_paths(["a" * 300, "a" * 300 + ".mp4"])
    assert all("does not exist" in picture.fault for picture in pictures(paths, every=1))
