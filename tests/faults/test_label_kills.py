"""SIGKILL at random moments, then one clean finish: every image once, nothing acknowledged is lost."""

from __future__ import annotations

import importlib
import multiprocessing
import random
import time
import zlib
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import lance
import pytest

from ovbridge.label_store import LabelStore

CONTEXT = multiprocessing.get_context("forkserver")
# The server imports torch once; every run is a fork of it, so a kill costs milliseconds.
CONTEXT.set_forkserver_preload(["ovbridge.labeling.run", "ovbridge.labeling.labellers"])


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("labelling_worker")


def start(store: Path, images: int, seconds: float) -> BaseProcess:
    from labelling_worker import main

    process = CONTEXT.Process(target=main, args=(store, images, seconds, store.with_suffix(".memory")))
    process.start()
    return process


def acknowledged(store: Path) -> Counter[str]:
    """Rows of rank 0 by image, read with plain Lance."""
    dataset = store / "regions.lance"
    if not (dataset / "_versions").is_dir() or not list((dataset / "_versions").iterdir()):
        return Counter()
    return Counter(
        lance.dataset(str(dataset)).to_table(columns=["image_key"], filter="rank = 0")["image_key"].to_pylist()
    )


def kill_and_finish(store: Path, *, images: int, kills: int, seconds: float, seed: int = 0) -> int:
    """Returns the resident memory in MB of the run that finished."""
    rng = random.Random(seed)
    before: Counter[str] = Counter()
    interrupted_work = 0
    for _ in range(kills):
        # A few kills hit the start; most wait until this process has begun to commit.
        patient, count = rng.random() < 0.8, sum(before.values())
        process = start(store, images, seconds)
        deadline = time.monotonic() + 60
        while patient and process.is_alive() and time.monotonic() < deadline:
            if sum(acknowledged(store).values()) > count:
                break
            time.sleep(0.02)
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.join()
        after = acknowledged(store)
        assert before.keys() <= after.keys(), "a kill lost acknowledged images"
        assert set(after.values()) <= {1}
        interrupted_work += 0 < len(after) < images
        before = after
    assert interrupted_work >= kills / 2, "most kills did not hit a run at work"
    process = start(store, images, 0.0)
    process.join(300)
    assert process.exitcode == 0
    return int(store.with_suffix(".memory").read_text())


def check_complete(store: Path, images: int) -> None:
    keys = [f"{i:06d}.jpg" for i in range(images)]
    assert acknowledged(store) == Counter(keys)
    opened = LabelStore.open(store)
    broken = {key for key in keys if int(key[:6]) % 100 == 37}
    assert set(opened.failures("regions")) == broken
    found = opened.regions(keys)
    assert set(found) == set(keys) - broken
    for key, targets in found.items():
        number = zlib.crc32(key.encode()) % 2**24
        assert len(targets) == number % 3
        assert all(value == number % 2048 for value in targets.embeddings[:, 0].tolist())
    rows = lance.dataset(str(store / "regions.lance")).to_table(columns=["image_key", "rank"]).to_pylist()
    assert max(Counter((r["image_key"], r["rank"]) for r in rows).values()) == 1
    data_files = {f.name for f in (store / "regions.lance" / "data").iterdir()}
    referred = {
        Path(f.path).name
        for fragment in lance.dataset(str(store / "regions.lance")).get_fragments()
        for f in fragment.data_files()
    }
    assert data_files == referred, "leftovers of killed writers remain"
    assert not list(store.rglob("*.part"))


def test_a_handful_of_kills(tmp_path: Path) -> None:
    kill_and_finish(tmp_path / "store", images=1000, kills=3, seconds=0.03)
    check_complete(tmp_path / "store", 1000)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_kills_over_ten_thousand_images(tmp_path: Path) -> None:
    small = kill_and_finish(tmp_path / "small", images=200, kills=0, seconds=0.0)
    large = kill_and_finish(tmp_path / "store", images=10_000, kills=100, seconds=0.05)
    check_complete(tmp_path / "store", 10_000)
    assert large - small < 200, f"resident memory grew from {small} to {large} MB"


def test_worker_answers_follow_the_file_name(worker: ModuleType) -> None:
    assert worker.number_in(worker.read_image(Path("000123.jpg"))) == zlib.crc32(b"000123.jpg") % 2**24
