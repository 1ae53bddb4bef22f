"""From words on a command line to pictures: files, folders, globs, and frames of videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovbridge.errors import ConfigError, DataError
from ovbridge.images import SUFFIXES, read_image

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
"""What counts as a video."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to detect in, or why there is none."""

    path: Path
    """The file that it comes from."""
    frame: int | None = None
    """Its number in a video, from 0; None for a picture of its own."""
    pixels: np.ndarray[Any, Any] | None = None
    """[H, W, 3] uint8 RGB, or None if it cannot be read."""
    fault: str = ""
    """One line that says why there are no pixels."""

    @property
    def label(self) -> str:
        """The path, with the frame's number where there is one."""
        return str(self.path) if self.frame is None else f"{self.path}#{self.frame}"


def image_paths(given: Sequence[str]) -> list[Path]:
    """The files that were meant: folders give the pictures and videos below them, globs what they match, in order.

    Raises ConfigError if nothing is given, DataError if a word holds no picture.
    """
    if not given:
        raise ConfigError("no image given: name files, folders or globs, e.g. 'ovbridge detect photo.jpg ...'")
    paths: list[Path] = []
    for word in given:
        path = Path(word)
        if os.path.isdir(word):  # Path.is_dir raises where a name is too long for the file system.
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES)
        elif not os.path.exists(word) and glob.has_magic(word):
            found = _matches(word) or _matches(_with_literal_folder(word))
        else:
            found = [path]
        if not found:
            raise DataError(f"{word} holds no image ({', '.join(sorted(SUFFIXES))}): check the path")
        paths += found
    return list(dict.fromkeys(paths))


def is_video(path: Path) -> bool:
    """True if the file's ending is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def pictures(paths: Sequence[Path], *, every: int) -> Iterator[Picture]:
    """Every picture, and of videos every `every`-th frame, in order; what cannot be read comes with its fault."""
    for path in paths:
        if is_video(path):
            yield from _frames(path, every)
            continue
        try:
            yield Picture(path=path, pixels=read_image(path))
        except DataError as error:
            yield Picture(path=path, fault=str(error))


def count_pictures(paths: Sequence[Path], *, every: int) -> int:
    """How many `pictures` will give, as far as the videos' headers tell."""
    return sum(_frame_count(path, every) if is_video(path) else 1 for path in paths)


def _frames(path: Path, every: int) -> Iterator[Picture]:
    import cv2

    if not os.path.isfile(path):
        yield Picture(path=path, fault=f"video {path} does not exist: check the path")
        return
    capture = cv2.VideoCapture(str(path))
    try:
        number = 0
        # Frames between are grabbed without being converted.
        while capture.isOpened() and capture.grab():
            if number % every == 0:
                readable, bgr = capture.retrieve()
                if not readable:
                    yield Picture(path=path, frame=number, fault=f"video {path}: frame {number} cannot be decoded")
                else:
                    yield Picture(path=path, frame=number, pixels=np.ascontiguousarray(bgr[:, :, ::-1]))
            number += 1
        announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()
    if number == 0:
        yield Picture(path=path, fault=f"video {path} cannot be read: check the file, or convert it to MP4 (H.264)")
    elif announced > 0 and number < 0.9 * announced:
        yield Picture(path=path, frame=number, fault=f"video {path} breaks off after {number} of {announced} frames")


def _frame_count(path: Path, every: int) -> int:
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
    return max(1, -(-announced // every))


def _matches(pattern: str) -> list[Path]:
    return sorted(Path(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))


def _with_literal_folder(pattern: str) -> str:
    """The pattern with the folder that it begins with taken as it is spelt: "x[1]/*.png" where there is an x[1]."""
    path = Path(pattern)
    folder = next(parent for parent in path.parents if os.path.isdir(parent))
    return os.path.join(glob.escape(str(folder)), path.relative_to(folder))
