"""Every kind of picture that people have, in one run: what can be read is, the rest is listed with its cause."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.errors import DataError
from ovbridge.images import read_image
from ovbridge.label_store import LabelStore
from ovbridge.labeling.labellers import RegionLabeller
from ovbridge.labeling.run import RunSettings, label_images
from ovbridge.labeling.sources import image_keys_in
from ovbridge.structures import Proposals


class WholeImage:
    """One box a picture: all of it."""

    name, digest, trained_on = "whole", "0" * 64, "nothing"

    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        boxes = [torch.tensor([[0.0, 0.0, i.shape[1], i.shape[0]]]) for i in images]
        return [
            [Proposals(boxes_xyxy=b, scores=torch.tensor([0.5]))] * len(q) for b, q in zip(boxes, queries, strict=True)
        ]


class MeanColour:
    name, digest, embedding_dim = "mean", "1" * 64, 3

    def embed_crops(self, crops: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.tensor(np.stack([c.reshape(-1, 3).mean(axis=0) for c in crops]), dtype=torch.float32)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures that can be read (30 x 20, reddish) and seven that cannot."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    red = Image.fromarray(pixels)
    red.save(folder / "plain.jpg", quality=95)
    red.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    red.convert("L").save(folder / "grey.png")
    red.convert("P").save(folder / "palette.gif")
    Image.fromarray(np.full((20, 30), 40_000, dtype=np.uint16)).save(folder / "sixteen.png")
    clear = red.convert("RGBA")
    clear.putalpha(0)
    clear.save(folder / "clear.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    red.save(folder / "turned.jpg", exif=turned, quality=95)

    whole = (folder / "plain.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "bomb.png").write_bytes(bomb(20_000, 20_000))
    (folder / "large.png").write_bytes(bomb(12_000, 9_000))
    (folder / "folder.png").mkdir()
    (folder / "zeros.jpg").write_bytes(whole[:20] + bytes(len(whole) - 20))
    return folder


BAD = {"truncated.jpg", "empty.jpg", "text.jpg", "bomb.png", "large.png", "folder.png", "zeros.jpg"}


def test_good_ones_are_labelled_and_bad_ones_listed(folder: Path, tmp_path: Path) -> None:
    keys, labeller = image_keys_in(folder), RegionLabeller(proposer=WholeImage(), encoder=MeanColour())
    with pytest.raises(DataError, match="7 of 14 images failed"):
        label_images(tmp_path / "s", folder, keys, labeller, read_image=read_image)
    tolerant = RunSettings(max_failed=0.5)
    summary = label_images(tmp_path / "s", folder, keys, labeller, read_image=read_image, settings=tolerant)
    assert (summary.done_before, summary.labelled) == (14, 0)
    assert set(summary.failures) == BAD
    status = LabelStore.open(tmp_path / "s").status()["regions"]
    assert (status["images"], status["failed"]) == (7, 7)
    assert status["failures"] == summary.failures
    assert sum(status["causes"].values()) == 7
    assert all(str(folder) not in cause and "\n" not in cause for cause in status["causes"])
    for key, said in {"bomb.png": "megapixels", "large.png": "megapixels", "truncated.jpg": "damaged"}.items():
        assert said in summary.failures[key]
    found = LabelStore.open(tmp_path / "s").regions(keys)
    assert set(found) == set(keys) - BAD
    for key, targets in found.items():
        assert targets.boxes_xyxy.tolist() == [[0, 0, 20, 30] if key == "turned.jpg" else [0, 0, 30, 20]]
    for key in ("plain.jpg", "palette.gif", "turned.jpg"):
        assert found[key].embeddings[0].tolist() == pytest.approx([200, 0, 0], abs=6)
    assert found["cmyk.jpg"].embeddings[0, 0] > 150 > found["cmyk.jpg"].embeddings[0, 1]
    assert found["sixteen.png"].embeddings[0].tolist() == pytest.approx([155.6] * 3, abs=1)
    assert found["clear.png"].embeddings[0].tolist() == [255, 255, 255]
