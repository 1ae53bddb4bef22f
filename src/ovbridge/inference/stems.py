"""What the results of each picture are called: file names without ending, no two alike in a run."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovbridge.inference.inputs import is_video

_STEM_BYTES = 251
"""A file name has at most 255 bytes on the usual file systems, and ".jpg" comes behind."""
_FRAME_BYTES = len("_000000")


def planned_stems(paths: Sequence[Path]) -> dict[Path, str]:
    """The stem of each path, made unique where two would have the same one, and cut where it is too long.

    Of a video it is what `frame_stem` begins with; no picture is called like a frame of it.
    """
    stems: dict[Path, str] = {}
    taken: set[str] = set()
    videos: set[str] = set()
    like_frames_of: set[str | None] = set()
    for path in paths:
        if is_video(path):
            stem = next(s for s in _candidates(path, _FRAME_BYTES) if s not in taken and s not in like_frames_of)
            videos.add(stem)
        else:
            stem = next(s for s in _candidates(path, 0) if s not in taken and _video_of(s) not in videos)
            like_frames_of.add(_video_of(stem))
        taken.add(stem)
        stems[path] = stem
    return stems


def frame_stem(stem: str, frame: int) -> str:
    """The stem of one frame of the video whose own is `stem`."""
    return f"{stem}_{frame:06d}"


def _video_of(stem: str) -> str | None:
    """The stem of the video of which `stem` could be a frame."""
    frame = re.fullmatch(r"(.*)_([0-9]{6}|[1-9][0-9]{6,})", stem, re.DOTALL)
    return frame[1] if frame else None


def _candidates(path: Path, reserved: int) -> Iterator[str]:
    """The path's own stem, then with 2, 3, ... behind it; each leaves `reserved` bytes."""
    for number in itertools.count(1):
        mark = f"_{number}" if number > 1 else ""
        yield _cut(path.stem, _STEM_BYTES - reserved - len(mark)) + mark


def _cut(stem: str, size: int) -> str:
    encoded = os.fsencode(stem)
    return stem if len(encoded) <= size else encoded[:size].decode(errors="ignore")
