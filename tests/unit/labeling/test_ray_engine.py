"""What of the Ray engine can be told without a cluster; `tests/integration/test_ray_labelling.py` runs one."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from ovbridge.errors import ConfigError, TeacherError
from ovbridge.labeling.labellers import RegionLabeller
from ovbridge.labeling.ray_engine import RayConfig, RayEngine, _plain, _reach, _UnitLabeller, _width, connect
from ovbridge.labeling.stages import RunSettings, label_in_order


@pytest.mark.parametrize(
    ("resources", "wanted", "units", "width"),
    [
        ({"CPU": 64.0, "GPU": 8.0}, None, 100, (8, 1, 1)),
        ({"CPU": 64.0, "GPU": 8.0}, 3, 100, (3, 1, 1)),
        ({"CPU": 64.0}, None, 100, (16, 4, 0)),
        ({"CPU": 64.0}, None, 5, (5, 4, 0)),
        ({"CPU": 2.0}, None, 100, (1, 2, 0)),
        ({"CPU": 2.0}, 2, 100, (2, 1, 0)),
    ],
)
def test_how_many_teachers_with_what(resources, wanted, units, width) -> None:
    assert _width(resources, wanted, units) == width


def test_a_cluster_that_nothing_listens_for_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _reach(f"127.0.0.1:{port}")
        _reach(f"ray://127.0.0.1:{port}")
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "ray://[::1]:1"):
        with pytest.raises(OSError, match=r"\[Errno"):
            _reach(address)
    for found_by_ray in (None, "", "auto", "local"):
        _reach(found_by_ray)


def test_a_worker_does_with_its_units_what_one_machine_does(image_root: Path, proposer, encoder, read_image) -> None:
    labeller = RegionLabeller(proposer=proposer, encoder=encoder)
    keys = [f"sub/{i:02d}.npy" for i in range(12)]
    settings = RunSettings(batch_images=3, unit_images=5)
    worker = _UnitLabeller(lambda: labeller, str(image_root), read_image, settings)
    found = []
    for start in range(0, 12, 5):
        found += worker({"image_keys": keys[start : start + 5]})["outcomes"].outcomes
    expected = list(label_in_order(keys, image_root, labeller, read_image, settings))
    assert [o.image_key for o in found] == [o.image_key for o in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.labels["regions"].boxes_xyxy.tolist() == theirs.labels["regions"].boxes_xyxy.tolist()
        assert mine.labels["regions"].embeddings.tolist() == theirs.labels["regions"].embeddings.tolist()


def test_no_images_need_no_cluster(tmp_path: Path, read_image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    engine = RayEngine(
        make_labeller=lambda: pytest.fail("not needed"),
        image_root=tmp_path,
        read_image=read_image,
        settings=RunSettings(),
    )
    assert list(engine([])) == []
    with pytest.raises(ConfigError, match="ovbridge\\[ray\\]"):
        connect(RayConfig())


def test_what_a_user_should_see_is_found_behind_what_ray_wraps_around_it() -> None:
    class WrappedError(Exception):
        cause = TeacherError("no file x")

    outer = RuntimeError("user code failed")
    outer.__cause__ = WrappedError("trace")
    assert _plain(outer) is WrappedError.cause
    line = str(_plain(RuntimeError("two\nlines")))
    assert "two lines" in line
    assert "goes on from here" in line
