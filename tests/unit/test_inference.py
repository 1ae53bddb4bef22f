from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ovbridge
from ovbridge import inference
from ovbridge.detector import DetectorMetadata, build_detector, save_detector, world_r18_fpn
from ovbridge.errors import CheckpointError, ConfigError, DataError, TeacherError, VocabularyError
from ovbridge.inference import Detector
from ovbridge.vocabulary import TextBank, Vocabulary

NAMES = ("mug", "kite", "bell")
DIM = 16


class FakeEncoder:
    """Embeds a name by a hash of its letters; remembers what it was asked."""

    def __init__(self, salt: int = 0) -> None:
        self.salt, self.asked = salt, []

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> TextBank:
        self.asked.append(tuple(names))
        rows = [torch.randn(DIM, generator=torch.Generator().manual_seed(sum(map(ord, n)) + self.salt)) for n in names]
        return TextBank(names=tuple(names), embeddings_KD=torch.stack(rows), encoder="fake", templates=tuple(templates))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bank = FakeEncoder().embed_names(NAMES, ("a photo of a {}",))
    model = build_detector(world_r18_fpn(embedding_dim=DIM, channels=(8, 8, 16, 16)), bank.embeddings_KD, seed=1)
    metadata = DetectorMetadata(
        stage="base",
        vocabulary=tuple(Vocabulary.of_names(NAMES).to_json()),
        text_encoder="no-such-encoder",
        extra={"test_size": [96, 160]},
    )
    path = tmp_path_factory.mktemp("run") / "detector.safetensors"
    save_detector(path, model, metadata)
    return path


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)


@pytest.fixture
def detector(checkpoint: Path) -> Detector:
    return Detector.load(checkpoint, "cpu", text_encoder=FakeEncoder())


def test_public_names_are_lazy_and_complete() -> None:
    assert ovbridge.Detector is Detector
    assert ovbridge.Detections.__name__ == "Detections"
    with pytest.raises(AttributeError, match="Detectr"):
        ovbridge.Detectr  # noqa: B018


def test_boxes_are_in_pixels_of_the_image_given(detector: Detector, picture: np.ndarray) -> None:
    small = detector.detect(picture, score_threshold=0.0)
    large = detector.detect(
        np.asarray(Image.fromarray(picture).resize((800, 480), Image.Resampling.NEAREST)), score_threshold=0.0
    )
    assert len(small) == 100
    assert small.names == NAMES
    assert small.boxes_xyxy[:, 2].max() <= 200
    assert small.boxes_xyxy[:, 3].max() <= 120
    # Random weights fill the picture with boxes, so the largest coordinates come close to its edges.
    assert large.boxes_xyxy[:, 2].max() > 600
    assert bool((small.scores[:-1] >= small.scores[1:]).all())


def test_resize_follows_the_checkpoint(detector: Detector, picture: np.ndarray) -> None:
    assert detector.resize(picture).shape == (96, 160, 3)
    assert detector.resize(np.zeros((100, 1000, 3), np.uint8)).shape == (16, 160, 3)


def test_every_way_to_give_a_picture_agrees(detector: Detector, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(picture).save(path)
    results = [detector.detect(image) for image in (picture, path, str(path), Image.open(path))]
    for result in results[1:]:
        assert torch.equal(result.boxes_xyxy, results[0].boxes_xyxy)


def test_batch_agrees_with_one_at_a_time(detector: Detector, picture: np.ndarray) -> None:
    together = detector.detect_batch([picture, picture[:, :90]], score_threshold=0.3)
    assert detector.detect_batch([]) == []
    alone = detector.detect(picture, score_threshold=0.3)
    assert len(together) == 2
    torch.testing.assert_close(together[0].scores, alone.scores, atol=1e-3, rtol=1e-3)


def test_proposals_and_embeddings_are_in_pixels_of_the_image_given(detector: Detector, picture: np.ndarray) -> None:
    found = detector.propose(picture, 20)
    assert len(found) == 20
    assert found.boxes_xyxy[:, 2].max() <= 200.01
    assert found.boxes_xyxy[:, 2].max() > 160  # wider than the 160 px that the network saw
    whole = torch.tensor([[0.0, 0.0, 200.0, 120.0]])
    rows = detector.embed_regions(picture, whole)
    assert rows.shape == (1, DIM)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(1))
    # The same region of a copy at the network's own size has the same embedding.
    small = detector.resize(picture)
    torch.testing.assert_close(detector.embed_regions(small, torch.tensor([[0.0, 0.0, 160.0, 96.0]])), rows)


def test_stored_names_need_no_encoder_and_keep_their_order(checkpoint: Path, picture: np.ndarray) -> None:
    detector = Detector.load(checkpoint.parent, "cpu")
    swapped = detector.detect(picture, ["bell", "mug"], score_threshold=0.0, max_detections=300)
    full = detector.detect(picture, score_threshold=0.0, max_detections=300)
    assert swapped.names == ("bell", "mug")
    best_bell = full.scores[full.class_ids == 2].max()
    torch.testing.assert_close(swapped.scores[swapped.class_ids == 0].max(), best_bell)


def test_new_name_asks_the_encoder_once(checkpoint: Path, picture: np.ndarray) -> None:
    encoder = FakeEncoder()
    detector = Detector.load(checkpoint, "cpu", text_encoder=encoder)
    found = detector.detect(picture, ["mug", "teapot"], score_threshold=0.0)
    detector.detect(picture, ["teapot"])
    assert ("teapot",) in encoder.asked
    assert sum("teapot" in asked for asked in encoder.asked) == 1
    assert set(found.class_names) <= {"mug", "teapot"}


def test_many_new_names_do_not_fill_the_memory(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_REMEMBERED_NAMES", 2)
    first = detector.text_rows(["a", "b", "mug"])
    assert detector.text_rows(["c", "a"]).shape == (2, DIM)
    torch.testing.assert_close(detector.text_rows(["a"])[0], first[0])


def test_foreign_encoder_is_refused(checkpoint: Path) -> None:
    detector = Detector.load(checkpoint, "cpu", text_encoder=FakeEncoder(salt=7))
    with pytest.raises(VocabularyError, match="does not agree with the checkpoint on 'mug'"):
        detector.text_rows(["teapot"])


def test_missing_encoder_names_the_new_names(checkpoint: Path, picture: np.ndarray) -> None:
    with pytest.raises(TeacherError, match=r"'teapot', 'lute'.*'no-such-encoder'.*give a text encoder"):
        Detector.load(checkpoint, "cpu").detect(picture, ["mug", "teapot", "lute"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mug", " mug "], "'mug' is given twice"),
        ([], "no name"),
        (["  "], "no name"),
        ("mug,kite", r"\['mug', 'kite'\]"),
    ],
)
def test_bad_names(detector: Detector, picture: np.ndarray, names: list[str], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        detector.detect(picture, names)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_bad_arrays(detector: Detector, array: np.ndarray) -> None:
    with pytest.raises(DataError, match="image array"):
        detector.detect(array)


def test_bad_sources(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no detector\.safetensors"):
        Detector.load(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        Detector.load(tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="cannot be used"):
        Detector.load(checkpoint, "no-such-device")
