from __future__ import annotations

from pathlib import Path

import pytest

from ovbridge.inference.stems import frame_stem, planned_stems


@pytest.mark.parametrize(
    ("paths", "stems"),
    [
        (["x/b.jpg", "y/b.png", "y/c.png"], ["b", "b_2", "c"]),
        (["clip.mp4", "clip_000000.jpg", "clip.jpg"], ["clip", "clip_000000_2", "clip_2"]),
        (["clip_000000.jpg", "clip.mp4", "clip.avi"], ["clip_000000", "clip_2", "clip_3"]),
        (["clip.mp4", "clip_0000007.jpg", "clip_7.jpg"], ["clip", "clip_0000007", "clip_7"]),
    ],
)
def test_stems_never_collide(paths: list[str], stems: list[str]) -> None:
    assert list(planned_stems([Path(path) for path in paths]).values()) == stems


def test_long_stems_leave_room_for_what_comes_behind() -> None:
    for name in ("b" * 251, "\N{SNOWMAN}" * 83 + "bb"):
        first, second, video = planned_stems(
            [Path("x", f"{name}.png"), Path("y", f"{name}.png"), Path("z", f"{name}.mp4")]
        ).values()
        assert first == name
        assert len({first, second, video}) == 3
        for stem in (second, frame_stem(video, 3)):
            assert len(f"{stem}.jpg".encode()) <= 255
