"""The page of `ovbridge serve` in a real headless Chromium."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn

from ovbridge.detector import DetectorMetadata, build_detector, save_detector, world_r18_fpn
from ovbridge.label_store import ImageSet, LabelledImage, LabelStore, Manifest
from ovbridge.serve.app import Service, create_app
from ovbridge.serve.engine import Engine
from ovbridge.serve.limits import Limits
from ovbridge.serve.regions import RegionSearch
from ovbridge.structures import RegionTargets
from ovbridge.vocabulary import TextBank, Vocabulary

webdriver = pytest.importorskip("selenium.webdriver")

NAMES = ("mug", "kite", "bell")
DIM = 16
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1200,900",
)  # fmt: skip
PATIENCE_SECONDS = 120
NAMES_FOUND = "return [...new Set([...document.querySelectorAll('#rows tr')].map(r => r.cells[0].innerText.trim()))]"


class FakeClip:
    """Stands in for the CLIP: an embedding for every name and crop."""

    name = "fake"
    digest = "0" * 64

    def load(self) -> FakeClip:
        return self

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> TextBank:
        rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(sum(map(ord, n)))) for n in names]
        return TextBank(names=tuple(names), embeddings_KD=torch.stack(rows), encoder="fake", templates=tuple(templates))

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self.embed_names(texts, ("{}",)).embeddings_KD

    def embed_crop(self, crop_HW3: np.ndarray) -> torch.Tensor:
        return torch.ones(DIM)


def _store(path: Path) -> LabelStore:
    manifest = Manifest(
        table="regions", proposer="fake", proposer_digest="0", proposer_trained_on="nothing", queries=("all objects",),
        selection={"top_k": 2}, encoder="fake", encoder_digest=FakeClip.digest, embedding_dim=DIM, crop_rule="tight",
        image_sets=(ImageSet.of(path, ["a.jpg"]),),
    )  # fmt: skip
    store = LabelStore.create_or_open(path / "labels", manifest)
    targets = RegionTargets(
        boxes_xyxy=torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0]]),
        embeddings=torch.stack([torch.ones(DIM), -torch.ones(DIM)]),
        scores=torch.tensor([0.9, 0.8]),
    )
    store.append("regions", [LabelledImage(image_key="a.jpg", labels=targets)])
    return store


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    clip = FakeClip()
    bank = clip.embed_names(NAMES, ("a photo of a {}",))
    model = build_detector(world_r18_fpn(embedding_dim=DIM, channels=(8, 8, 16, 16)), bank.embeddings_KD, seed=1)
    vocabulary = tuple(Vocabulary.of_names(NAMES).to_json())
    metadata = DetectorMetadata(
        stage="base", vocabulary=vocabulary, text_encoder="fake", extra={"test_size": [96, 160]}
    )
    save_detector(folder / "detector.safetensors", model, metadata)
    from ovbridge.inference import Detector

    detector = Detector.load(folder / "detector.safetensors", "cpu", text_encoder=clip)
    engine = Engine(detector, clip, Limits(), checkpoint="detector.safetensors")  # type: ignore[arg-type]
    search = RegionSearch(store=_store(folder), encoder=clip, roots=(folder,))  # type: ignore[arg-type]
    app = create_app(Service(engine, search=search, workers=1))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium.webdriver.chrome.service import Service as DriverService

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    downloads = tmp_path_factory.mktemp("downloads")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=DriverService(driver))
    started.set_page_load_timeout(PATIENCE_SECONDS)
    started.downloads = downloads
    yield started
    started.quit()


def _until(browser: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, PATIENCE_SECONDS).until(condition)


def _all(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def test_page_finds_draws_filters_searches_and_saves(browser: Any, address: str, tmp_path: Path) -> None:
    browser.get(address)
    _until(browser, lambda b: "3 stored names" in b.find_element("id", "facts").text)

    # A sample by keyboard alone.
    sample = _all(browser, "[data-sample=snow]")[0]
    sample.send_keys("\n")
    _until(browser, lambda b: _all(b, "#drop[aria-busy=false] .box"))
    boxes = _all(browser, ".box")
    rows = _all(browser, "#rows tr")
    assert len(boxes) == len(rows) > 0
    assert "things" in browser.find_element("id", "status").text
    label = boxes[0].get_attribute("aria-label")
    assert any(name in label for name in NAMES)
    assert "percent" in label
    # Boxes lie over the picture.
    frame, box = _all(browser, "#picture")[0].rect, boxes[-1].rect
    assert frame["x"] - 5 <= box["x"] <= frame["x"] + frame["width"]

    # The slider filters without asking the server again.
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').filter(e => e.name.includes('detect')).length"
    )
    slider = browser.find_element("id", "threshold")
    browser.execute_script("arguments[0].value = 0.95; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert len(_all(browser, "#rows tr")) < len(rows)
    browser.execute_script("arguments[0].value = 0.05; arguments[0].dispatchEvent(new Event('input'))", slider)
    assert len(_all(browser, "#rows tr")) >= len(rows)
    assert asked == browser.execute_script(
        "return performance.getEntriesByType('resource').filter(e => e.name.includes('detect')).length"
    )

    # Names become chips, and only they are found.
    name = browser.find_element("id", "name")
    name.send_keys("kite\n")
    assert [chip.text.split("\n")[0].rstrip("×") for chip in _all(browser, ".chip")] == ["kite"]
    _until(browser, lambda b: b.execute_script(NAMES_FOUND) == ["kite"])

    # Similar regions of the store.
    _until(browser, lambda b: _all(b, "#drop[aria-busy=false]"))
    _all(browser, "#rows button")[0].click()
    found = _until(browser, lambda b: _all(b, "#regions li"))
    assert found[0].text.startswith("1.00")
    assert "kite" in browser.find_element("id", "similar-title").text

    # Both downloads.
    browser.find_element("id", "save-json").click()
    browser.find_element("id", "save-picture").click()
    _until(browser, lambda b: {p.name for p in b.downloads.iterdir()} == {"snow.json", "snow-found.png"})
    saved = json.loads((browser.downloads / "snow.json").read_text())
    assert (saved["width"], saved["height"], saved["names"]) == (480, 640, ["kite"])
    assert {found["name"] for found in saved["detections"]} == {"kite"}

    # A broken file is told, not swallowed.
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    browser.find_element("id", "file").send_keys(str(tmp_path / "broken.jpg"))
    _until(browser, lambda b: "not a whole picture" in b.find_element("id", "problem").text)
    complaints = [line for line in browser.get_log("browser") if "422" not in line["message"]]
    assert complaints == []


def test_page_fits_a_phone(browser: Any, address: str) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)
    _until(browser, lambda b: b.find_element("id", "facts").text)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('button, input, a')].filter(e => !(e.innerText || e.ariaLabel || "
        "e.labels?.length || e.getAttribute('aria-labelledby') || e.querySelector('img')?.alt)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_docs_page_shows_every_operation(browser: Any, address: str) -> None:
    browser.get(f"{address}/docs")
    cards = _until(browser, lambda b: _all(b, "article"))
    assert len(cards) == 7
    assert any("/v1/detect" in card.text and "image/png" in card.text for card in cards)
