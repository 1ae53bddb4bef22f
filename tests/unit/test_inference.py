from __future__ import annotations

import io
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

import ovbridge
from ovbridge.detector import DetectorMetadata, build_detector, save_detector, world_r18_fpn
from ovbridge.detector.example_matching import EXAMPLE_MIDPOINT, EXAMPLE_SCALE
from ovbridge.errors import CheckpointError, ConfigError, DataError, TeacherError, VocabularyError
from ovbridge.inference import Detector, Tiling
from ovbridge.inference import detector as detector_module
from ovbridge.structures import Detections
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

    def embed_crops(self, crops: Sequence[np.ndarray]) -> torch.Tensor:
        """As long as the crop's mean is high, in a direction that its parity decides."""
        rows = torch.zeros(len(crops), DIM)
        for row, crop in zip(rows, crops, strict=True):
            row[int(crop.mean()) % DIM] = float(crop.mean())
        return rows


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


@pytest.mark.parametrize("tiling", [None, Tiling(size=96, overlap=0)])
def test_mirrored_and_read_only_arrays_are_pictures_too(
    detector: Detector, tiling: Tiling | None, recwarn: pytest.WarningsRecorder
) -> None:
    own_size = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)
    locked = own_size.copy()
    locked.flags.writeable = False
    for given in (own_size[:, ::-1, ::-1], locked):
        found = detector.detect(given, tiling=tiling)
        assert torch.equal(found.boxes_xyxy, detector.detect(given.copy(), tiling=tiling).boxes_xyxy)
    assert not recwarn.list


def _cut_png(picture: np.ndarray) -> Image.Image:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return Image.open(io.BytesIO(content.getvalue()[:500]))


def test_pictures_that_are_none_are_named(detector: Detector, picture: np.ndarray) -> None:
    for image, message in (
        (Image.new("RGB", (0, 5)), "is empty"),
        (_cut_png(picture), "cannot be decoded"),
        ("x" * 300, "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            detector.detect(image)
    with pytest.raises(DataError, match="images is one picture, not several"):
        detector.detect_batch("x.png")
    for crop in ("crop.png", picture, Image.fromarray(picture)):
        with pytest.raises(DataError, match="example of 'cup' is one picture"):
            detector.detect(picture, like={"cup": crop})
    with pytest.raises(VocabularyError, match="no example crop"):
        detector.example_row([])


def test_batch_agrees_with_one_at_a_time(detector: Detector, picture: np.ndarray) -> None:
    # Of three shapes, so that two would be padded to a size that they do not have alone.
    pictures = [picture, picture[:, :90], picture[:40], picture[::-1].copy()]
    together = detector.detect_batch(pictures, score_threshold=0.3)
    assert detector.detect_batch([]) == []
    stacked = detector.detect_batch(np.stack([picture, picture[::-1]]), score_threshold=0.3)  # type: ignore[arg-type]
    assert [len(found) for found in stacked] == [len(together[0]), len(together[3])]
    for found, given in zip(together, pictures, strict=True):
        alone = detector.detect(given, score_threshold=0.3)
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-3, rtol=0)


def test_numbers_that_ask_for_nothing_are_named(detector: Detector, picture: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"score_threshold is nan: give a number from 0 to 1"):
        detector.detect(picture, score_threshold=float("nan"))
    with pytest.raises(ConfigError, match="max_detections is -3: give at least 1"):
        detector.detect(picture, max_detections=-3)
    with pytest.raises(ConfigError, match="count is 0"):
        detector.propose(picture, 0)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([90.0, 10, 20, 60], "box 1 is .* no area inside the picture of 200 x 120 pixels"),
        ([900.0, 10, 920, 60], "box 1"),
        ([float("nan"), 0, 9, 9], "box 1"),
    ],
)
def test_regions_without_area_have_no_embedding(
    detector: Detector, picture: np.ndarray, box: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        detector.embed_regions(picture, torch.tensor([[0.0, 0, 9, 9], box]))
    with pytest.raises(DataError, match=r"boxes must be \[N, 4\]"):
        detector.embed_regions(picture, torch.tensor(box))


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
    monkeypatch.setattr(detector_module, "_REMEMBERED_NAMES", 2)
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
        ([None], "None is a NoneType: give a text"),
        (["mug", "\udcff"], "no UTF-8 text"),
    ],
)
def test_bad_names(detector: Detector, picture: np.ndarray, names: list[str], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        detector.detect(picture, names)


def test_names_come_in_any_sequence(detector: Detector, picture: np.ndarray) -> None:
    assert detector.detect(picture, np.array(["bell", "mug"])).names == ("bell", "mug")
    assert detector.text_rows([]).shape == (0, DIM)


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
    for device in ("no-such-device", "meta"):
        with pytest.raises(ConfigError, match="cannot be used"):
            Detector.load(checkpoint, device)


def test_synonyms_score_as_the_best_of_them(detector: Detector, picture: np.ndarray) -> None:
    together = detector.detect(picture, ["mug|kite", "bell"], score_threshold=0.0, max_detections=300)
    apart = detector.detect(picture, ["mug", "kite"], score_threshold=0.0, max_detections=300)
    assert together.names == ("mug", "bell")
    first = together.select(together.class_ids == 0)
    # Greedy suppression over all of "mug" and "kite" together, done by hand.
    kept: list[int] = []
    for i in range(len(apart)):
        if not kept or float(box_iou(apart.boxes_xyxy[[i]], apart.boxes_xyxy[kept]).max()) <= 0.5:
            kept.append(i)
    n = min(10, len(kept), len(first))
    torch.testing.assert_close(first.scores[:n], apart.scores[kept[:n]])
    torch.testing.assert_close(first.boxes_xyxy[:n], apart.boxes_xyxy[kept[:n]])


def test_a_class_may_have_its_own_threshold(detector: Detector, picture: np.ndarray) -> None:
    free = detector.detect(picture, ["mug", "kite"], score_threshold=0.0, max_detections=300)
    cut = float(free.scores[free.class_ids == 1].median())
    found = detector.detect(picture, ["mug", f"kite={cut}"], score_threshold=0.0, max_detections=300)
    assert float(found.scores[found.class_ids == 1].min()) > cut
    torch.testing.assert_close(found.scores[found.class_ids == 1].max(), free.scores[free.class_ids == 1].max())
    none = detector.detect(picture, ["mug=1", "kite=1"], score_threshold=0.0)
    assert len(none) == 0


def test_example_scores_follow_the_cosine_with_the_distilled_embedding(
    detector: Detector, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = [np.full((5, 5, 3), 19, np.uint8), np.full((5, 9, 3), 20, np.uint8)]
    row_D = torch.zeros(DIM)
    row_D[3] = row_D[4] = 0.5**0.5
    torch.testing.assert_close(detector.example_row(crops), row_D)
    found = detector.detect(picture, like={"cup": crops}, score_threshold=0.0, max_detections=5)
    assert found.names == ("cup",)
    pooled_from: list[torch.Tensor] = []
    head = detector.model.roi_head
    distilled = type(head).distilled_unit_embeddings
    monkeypatch.setattr(
        type(head),
        "distilled_unit_embeddings",
        lambda self, x: pooled_from.append(distilled(self, x)) or pooled_from[0],
    )
    detector.detect(picture, like={"cup": crops}, score_threshold=0.0, max_detections=5)
    best = torch.sigmoid(EXAMPLE_SCALE * ((pooled_from[0] @ row_D).max() - EXAMPLE_MIDPOINT))
    torch.testing.assert_close(found.scores[0], best)


def test_examples_mix_with_names(detector: Detector, picture: np.ndarray) -> None:
    crops = [np.full((5, 5, 3), 19, np.uint8)]
    text = detector.detect(picture, ["mug", "kite"], score_threshold=0.0, max_detections=300)
    mixed = detector.detect(
        picture, ["mug", "kite"], like={"cup": crops, "kite": crops}, score_threshold=0.0, max_detections=300
    )
    assert mixed.names == ("mug", "kite", "cup")
    torch.testing.assert_close(mixed.scores[mixed.class_ids == 0].max(), text.scores[text.class_ids == 0].max())
    with pytest.raises(VocabularyError, match="no example crop for 'cup'"):
        detector.detect(picture, like={"cup": []})


def test_changed_examples_are_seen_and_the_same_are_embedded_once(
    checkpoint: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = FakeEncoder()
    detector = Detector.load(checkpoint, "cpu", text_encoder=encoder)
    embedded: list[int] = []
    embed = encoder.embed_crops
    monkeypatch.setattr(
        FakeEncoder, "embed_crops", lambda self, crops: embedded.append(len(crops)) or embed(crops), raising=True
    )
    first, second = np.full((5, 5, 3), 19, np.uint8), np.full((5, 5, 3), 20, np.uint8)

    def best(crops: list[np.ndarray], **options: object) -> float:
        return float(detector.detect(picture, like={"cup": crops}, score_threshold=0.0, **options).scores.max())

    crops = [first.copy()]
    before = best(crops)
    assert best([first], tiling=Tiling(size=100)) >= before
    assert embedded == [1]
    crops[0] = second
    after = best(crops)
    assert after != before
    crops[0][:] = 19
    assert best(crops) == before
    assert embedded == [1, 1]


def test_text_encoder_without_pictures_is_refused(checkpoint: Path, picture: np.ndarray) -> None:
    class TextOnly:
        embed_names = FakeEncoder().embed_names

    detector = Detector.load(checkpoint, "cpu", text_encoder=TextOnly())
    with pytest.raises(TeacherError, match="embeds no pictures"):
        detector.detect(picture, like={"cup": [picture]})


def test_tiles_of_the_whole_size_change_nothing(detector: Detector, picture: np.ndarray) -> None:
    plain = detector.detect(picture, score_threshold=0.2)
    tiled = detector.detect(picture, score_threshold=0.2, tiling=Tiling(size=400))
    torch.testing.assert_close(tiled.boxes_xyxy, plain.boxes_xyxy)


def test_detections_as_other_libraries_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Detections(
        boxes_xyxy=torch.tensor([[10.0, 20.0, 30.6, 60.0]]),
        scores=torch.tensor([0.75]),
        class_ids=torch.tensor([1]),
        names=("mug", "kite"),
    )
    assert found.to_transformers() == [
        {"score": 0.75, "label": "kite", "box": {"xmin": 10, "ymin": 20, "xmax": 30, "ymax": 60}}
    ]
    assert found.to_yolo(width=100, height=80) == ["1 0.203000 0.500000 0.206000 0.500000 0.750000"]
    assert found.to_supervision().data["class_name"].tolist() == ["kite"]
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ConfigError, match="pip install fiftyone"):
        found.to_fiftyone(width=100, height=80)
    fake = types.SimpleNamespace(Detections=lambda detections: detections, Detection=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "fiftyone", fake)
    [record] = found.to_fiftyone(width=100, height=80)
    assert record["label"] == "kite"
    assert record["bounding_box"] == pytest.approx([0.1, 0.25, 0.206, 0.5])
