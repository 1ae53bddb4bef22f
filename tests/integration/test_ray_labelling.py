"""The labelling commands on a local Ray cluster: the same store, row for row, and the same errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import pytest
import torch

from ovbridge.cli.main import run
from ovbridge.errors import ConfigError, TeacherError
from ovbridge.images import read_image
from ovbridge.label_run import LabellingPlan, TeacherChoice
from ovbridge.label_store import LabelStore
from ovbridge.labeling.ray_engine import RayConfig, RayEngine, connect
from ovbridge.labeling.run import RunSettings, label_images
from ovbridge.labeling.sources import image_keys_in
from ovbridge.world.write import write_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayConfig]:
    """Two cores of this machine; skips where Ray cannot start one."""
    config = RayConfig(teachers=2)
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    except Exception as error:  # too slow a machine, too small a shared memory
        pytest.skip(f"no local Ray cluster here: {' '.join(str(error).split())[:100]}")
    yield config
    ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, train=10, val=1, seed=5, image_labels_per_class=0)
    (folder / "train2017" / "broken.jpg").write_bytes(b"no picture")
    return folder / "train2017"


def rows(store: Path, table: str) -> list[dict[str, Any]]:
    return list(lance.dataset(str(store / f"{table}.lance")).to_table().to_pylist())


def test_a_cluster_makes_the_store_that_one_machine_makes(cluster: RayConfig, images: Path, tmp_path: Path) -> None:
    keys = image_keys_in(images)
    names_of = dict.fromkeys(keys[::2], ("cat", "umbrella"))
    plan = LabellingPlan(teachers=TeacherChoice(device="cpu"), regions=True, names_of=names_of, threshold=0.0)
    settings = RunSettings(unit_images=4, batch_images=2, max_failed=0.2)
    engine = RayEngine(
        make_labeller=plan.build, image_root=images, read_image=read_image, settings=settings, config=cluster
    )
    labeller = plan.build()
    threads = torch.get_num_threads()
    # As many as Ray gives a teacher with one core: sums in fp32 depend on how they are divided.
    torch.set_num_threads(1)
    label_images(tmp_path / "local", images, keys, labeller, read_image=read_image, settings=settings)
    torch.set_num_threads(threads)
    summary = label_images(
        tmp_path / "ray", images, keys, labeller, read_image=read_image, settings=settings, engine=engine
    )
    assert (summary.images, summary.labelled, list(summary.failures)) == (11, 10, ["broken.jpg"])
    for table in ("regions", "tags"):
        assert rows(tmp_path / "ray", table) == rows(tmp_path / "local", table)
    again = label_images(
        tmp_path / "ray", images, keys, labeller, read_image=read_image, settings=settings, engine=engine
    )
    assert (again.done_before, again.labelled) == (11, 0)


def test_the_command_line_on_a_cluster(cluster: RayConfig, images: Path, tmp_path: Path, capsys) -> None:
    words = ["label", "regions", "--images", str(images), "--store", str(tmp_path / "s"), "--engine", "ray"]
    assert run([*words, "--max-failed", "0.2", "--teachers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labelled"] == 10
    assert len(LabelStore.open(tmp_path / "s").regions(image_keys_in(images))) == 10


def test_what_a_worker_raises_reaches_the_user_as_it_is(cluster: RayConfig, images: Path) -> None:
    plan = LabellingPlan(teachers=TeacherChoice(proposer="absent.safetensors"), regions=True)
    engine = RayEngine(
        make_labeller=plan.build, image_root=images, read_image=read_image, settings=RunSettings(), config=cluster
    )
    with pytest.raises(TeacherError, match=r"absent\.safetensors"):
        list(engine(image_keys_in(images)))


def test_no_cluster_at_an_address_is_said(cluster: RayConfig) -> None:
    ray.shutdown()
    with pytest.raises(ConfigError, match="does not answer"):
        connect(RayConfig(address="127.0.0.1:1"))
