"""A disk that is full or read-only, and two labellers at once."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ovbridge.errors import StoreError
from ovbridge.label_store import LabelledImage, LabelStore, Manifest
from ovbridge.structures import RegionTargets

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ovbridge.labeling.run", "ovbridge.labeling.labellers"])
MANIFEST = Manifest(
    table="regions",
    proposer="fake",
    proposer_digest="p",
    proposer_trained_on="nothing",
    queries=("all objects",),
    selection={},
    encoder="fake",
    encoder_digest="c",
    embedding_dim=512,
    crop_rule="tight",
)


def labelled(first: int, count: int) -> list[LabelledImage]:
    generator = torch.Generator().manual_seed(first)
    return [
        LabelledImage(
            image_key=f"{i}.jpg",
            labels=RegionTargets(
                boxes_xyxy=torch.rand(5, 4, generator=generator),
                embeddings=torch.randn(5, 512, generator=generator),
                scores=torch.rand(5, generator=generator),
            ),
        )
        for i in range(first, first + count)
    ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; skips where this user may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_stops_with_one_line_and_old_rows_stay(small_disk: Path) -> None:
    store = LabelStore.create_or_open(small_disk / "s", MANIFEST)
    store.append("regions", labelled(0, 50))

    def fill() -> None:
        for first in range(50, 5000, 50):
            store.append("regions", labelled(first, 50))

    with pytest.raises(StoreError, match="free or unlock the disk") as caught:
        fill()
    assert len(str(caught.value).splitlines()) == 1
    again = LabelStore.open(small_disk / "s")
    done = again.done_keys("regions")
    assert {f"{i}.jpg" for i in range(50)} <= done
    assert len(again.regions(sorted(done))) == len(done)
    torch.testing.assert_close(
        again.regions(["7.jpg"])["7.jpg"].embeddings, labelled(0, 50)[7].labels.embeddings, rtol=1e-3, atol=1e-3
    )


def test_a_read_only_disk_stops_with_one_line_and_old_rows_stay(small_disk: Path) -> None:
    LabelStore.create_or_open(small_disk / "s", MANIFEST).append("regions", labelled(0, 3))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match="cannot write"):
        LabelStore.create_or_open(small_disk / "s", MANIFEST)
    with pytest.raises(StoreError, match="cannot write"):
        LabelStore.open(small_disk / "s").append("regions", labelled(3, 3))
    assert len(LabelStore.open(small_disk / "s").regions([f"{i}.jpg" for i in range(6)])) == 3


def test_two_labellers_of_the_same_images_lose_and_repeat_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from labelling_worker import main

    store, images = tmp_path / "store", 400
    workers = [CONTEXT.Process(target=main, args=(store, images, 0.002, tmp_path / f"{i}.memory")) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0
    opened = LabelStore.open(store)
    status = opened.status()["regions"]
    assert (status["images"], status["failed"]) == (396, 4)
    assert status["boxes"] == sum(len(t) for t in opened.regions([f"{i:06d}.jpg" for i in range(images)]).values())
