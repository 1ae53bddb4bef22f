"""A service around an untrained detector of three names, and pictures to send to it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from ovbridge.detector import DetectorMetadata, build_detector, world_r18_fpn
from ovbridge.errors import TeacherError
from ovbridge.inference import Detector
from ovbridge.serve.app import Service, create_app
from ovbridge.serve.engine import Engine
from ovbridge.serve.limits import Limits
from ovbridge.vocabulary import TextBank, Vocabulary

NAMES = ("mug", "kite", "bell")
DIM = 16
LIMITS = Limits(body_bytes=200_000, bodies_bytes=400_000, pixels=100_000, names=20, requests=8, request_seconds=20.0)


class FakeClip:
    """Embeds names by their letters and crops by their mean colour; knows no name that holds "unknown"."""

    name = "fake"

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> TextBank:
        if any("unknown" in name for name in names):
            raise TeacherError("no text encoder for 'unknown': use names of the stored vocabulary")
        rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(sum(map(ord, n)))) for n in names]
        return TextBank(names=tuple(names), embeddings_KD=torch.stack(rows), encoder="fake", templates=tuple(templates))

    def embed_crop(self, crop_HW3: np.ndarray) -> torch.Tensor:
        colour = torch.from_numpy(crop_HW3.reshape(-1, 3).mean(axis=0)).float()
        return torch.nn.functional.normalize(torch.cat([colour, torch.ones(DIM - 3)]), dim=0)

    def load(self) -> FakeClip:
        return self


def _make_engine(limits: Limits = LIMITS) -> Engine:
    clip = FakeClip()
    bank = clip.embed_names(NAMES, ("a photo of a {}",))
    model = build_detector(world_r18_fpn(embedding_dim=DIM, channels=(8, 8, 16, 16)), bank.embeddings_KD, seed=1)
    metadata = DetectorMetadata(
        stage="base",
        vocabulary=tuple(Vocabulary.of_names(NAMES).to_json()),
        text_encoder="fake",
        extra={"test_size": [96, 160]},
    )
    detector = Detector(model, metadata, device="cpu", text_encoder=clip)
    return Engine(detector, clip, limits, checkpoint="tiny.safetensors")  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The detector behind small limits; its CLIP is faked."""
    return _make_engine()


@pytest.fixture
def make_engine() -> Callable[..., Engine]:
    """`make_engine(request_seconds=0.2)` → an engine of its own, under those limits."""
    return lambda **limits: _make_engine(replace(LIMITS, **limits))


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """`encoded(pixels, "PNG")` → the file's bytes."""

    def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    """`noise(seed, 120, 200)` → a picture of random pixels."""

    def make(seed: int, height: int = 120, width: int = 200) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture(scope="session")
def picture(encoded: Callable[..., bytes], noise: Callable[..., np.ndarray]) -> bytes:
    """200 x 120 random pixels as PNG."""
    return encoded(noise(0))


@pytest.fixture(scope="module")
def app(engine: Engine) -> FastAPI:
    return create_app(Service(engine, workers=1))


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
