import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.data.coco import CocoDataset, CocoImage
from ovbridge.data.image_labels import TaggedImage
from ovbridge.data.image_reading import read_image
from ovbridge.data.loading import (
    DetectionDataset,
    ImageLabelDataset,
    MemoryRegions,
    MixedBatches,
    _confident,
    sample_generator,
)
from ovbridge.data.transforms import PhotometricJitter, TrainTransform
from ovbridge.errors import ConfigError, DataError
from ovbridge.structures import ImageLabels, RegionTargets
from ovbridge.vocabulary import Vocabulary

TRANSFORM = TrainTransform(short_sides=(16, 24), max_long_side=80, jitter=PhotometricJitter())


def _labels(*scores):
    n = len(scores)
    return ImageLabels(
        boxes_xyxy=torch.tensor([[0.0, 0.0, 9.0, 9.0]]).expand(n, 4),
        class_ids=torch.arange(n),
        scores=torch.tensor(scores),
    )


class Regions:
    """Region targets whose embedding is the length of the key."""

    def __init__(self, *keys):
        self.keys = keys

    def regions(self, image_keys):
        return {
            key: RegionTargets(
                boxes_xyxy=torch.tensor([[1.0, 1.0, 15.0, 15.0]]),
                embeddings=torch.full((1, 2), float(len(key))),
                scores=torch.ones(1),
            )
            for key in image_keys
            if key in self.keys
        }


@pytest.fixture
def coco(payload, write_json):
    return CocoDataset.load(write_json(payload))


@pytest.fixture
def det(coco, image_dir):
    return DetectionDataset(coco, image_dir, TRANSFORM)


def test_an_image_without_boxes_has_masks_where_the_others_have(payload, write_json, image_dir):
    for annotation in payload["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    coco = CocoDataset.load(write_json(payload), with_masks=True)
    det = DetectionDataset(coco, image_dir, TRANSFORM, keep_empty=True)
    (empty,) = [i for i, image in enumerate(det.images) if not len(image.boxes_xyxy)]
    sample = det.sample(empty, torch.Generator().manual_seed(0))
    assert sample.boxes.masks.shape == (0, *sample.pixels.shape[1:])
    boxes_only = DetectionDataset(CocoDataset.load(write_json(payload)), image_dir, TRANSFORM, keep_empty=True)
    assert boxes_only.sample(empty, torch.Generator().manual_seed(0)).boxes.masks is None


@pytest.fixture
def tagged():
    sizes = {"a.jpg": (30, 40), "b.jpg": (50, 20), "c.jpg": (30, 30)}
    return [
        TaggedImage(image_id=100 + k, file_name=name, height=h, width=w, class_ids=(0,))
        for k, (name, (h, w)) in enumerate(sizes.items())
    ]


@pytest.fixture
def cls(tagged, image_dir):
    tags = {"a.jpg": _labels(0.99, 0.5), "b.jpg": _labels(0.97), "c.jpg": _labels(0.2)}
    return ImageLabelDataset(tagged, image_dir, TRANSFORM, tags=tags, min_score=0.95)


def _take(batches, n):
    return list(itertools.islice(iter(batches), n))


def _equal(left, right):
    return all(
        kind == other_kind
        and [i.image_id for i in images] == [i.image_id for i in others]
        and all(torch.equal(i.pixels, o.pixels) for i, o in zip(images, others, strict=True))
        for (kind, images), (other_kind, others) in zip(left, right, strict=True)
    )


def test_images_without_boxes_are_left_out_unless_kept(coco, image_dir, det):
    assert [i.image_id for i in det.images] == [10, 7]
    kept = DetectionDataset(coco, image_dir, TRANSFORM, keep_empty=True)
    assert [i.image_id for i in kept.images] == [10, 7, 900]
    assert len(kept.sample(2, torch.Generator()).boxes) == 0


def test_labels_at_or_below_the_threshold_go_and_images_without_any(cls):
    assert [i.file_name for i in cls.images] == ["a.jpg", "b.jpg"]
    assert cls.sample(0, torch.Generator()).labels.class_ids.tolist() == [0]


def test_no_label_left_is_an_error(tagged, image_dir):
    with pytest.raises(DataError, match="none of 3 tagged images"):
        ImageLabelDataset(tagged, image_dir, TRANSFORM, tags={"a.jpg": _labels(0.95)}, min_score=0.95)


@pytest.mark.parametrize("most", [0, -1])
def test_a_senseless_number_of_labels_is_refused(tagged, image_dir, most):
    with pytest.raises(ConfigError, match=f"data.max_tags is {most}"):
        ImageLabelDataset(tagged, image_dir, TRANSFORM, tags={"a.jpg": _labels(0.95, 0.9)}, max_labels=most)


def test_regions_travel_with_their_image_and_missing_ones_are_named(coco, image_dir):
    reader = MemoryRegions(Regions("a.jpg"), ["a.jpg", "b.jpg"])
    dataset = DetectionDataset(coco, image_dir, TRANSFORM, regions=reader)
    assert dataset.sample(0, torch.Generator()).regions.embeddings.tolist() == [[5.0, 5.0]]
    with pytest.raises(DataError, match=r"no regions of image 'b\.jpg'"):
        dataset.sample(1, torch.Generator())


@pytest.mark.parametrize("sized", ["as stored", "upright"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_boxes_lie_on_what_they_were_drawn_around(tmp_path, orientation, sized):
    stored = np.zeros((8, 12, 3), dtype=np.uint8)
    stored[1:3, 4:9] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    height, width = (stored if sized == "as stored" else upright).shape[:2]
    box = _bright_box(upright[..., 0])  # as a teacher sees it
    regions = RegionTargets(boxes_xyxy=box, embeddings=torch.ones(1, 2), scores=torch.ones(1))
    reader = Regions()
    reader.regions = lambda keys: dict.fromkeys(keys, regions)
    settings = {
        "image_dir": tmp_path,
        "transform": TrainTransform(short_sides=(8,), flip_probability=0.0),
        "regions": reader,
    }
    tagged = TaggedImage(image_id=1, file_name="a.png", height=height, width=width, class_ids=(0,))
    tags = ImageLabels(boxes_xyxy=box, class_ids=torch.tensor([0]), scores=torch.ones(1))
    cls = ImageLabelDataset([tagged], tags={"a.png": tags}, **settings).sample(0, torch.Generator())
    boxed = CocoImage(
        image_id=1, file_name="a.png", height=height, width=width,
        boxes_xyxy=np.array([[0, 0, 8, 8]], dtype=np.float32), class_ids=np.array([0]),
    )  # fmt: skip
    coco = CocoDataset(vocabulary=Vocabulary(names=("mug",), roles=("base",), category_ids=(1,)), images=(boxed,))
    det = DetectionDataset(coco, **settings).sample(0, torch.Generator())
    for sample in (cls, det):
        assert sample.pixels.shape[1:] == (height, width)
        assert torch.equal(sample.regions.boxes_xyxy, _bright_box(sample.pixels[0]))
    assert torch.equal(cls.labels.boxes_xyxy, _bright_box(cls.pixels[0]))
    assert det.boxes.boxes_xyxy.tolist() == [[0, 0, 8, 8]]


def _bright_box(pixels_HW):
    ys, xs = np.nonzero(np.asarray(pixels_HW))
    return torch.tensor([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], dtype=torch.float32)


def test_each_batch_is_of_one_kind_and_size(det, cls):
    taken = _take(MixedBatches(det, cls, det_batch=1, cls_batch=4, seed=0), 30)
    assert {kind for kind, _ in taken} == {"det", "cls"}
    for kind, images in taken:
        assert len(images) == (1 if kind == "det" else 4)
        assert all((i.boxes is None) == (kind == "cls") for i in images)
        shapes = {i.pixels.shape[2] > i.pixels.shape[1] for i in images}
        assert len(shapes) == 1


def test_a_restored_position_continues_with_the_very_next_batch(det, cls):
    straight = MixedBatches(det, cls, det_batch=2, cls_batch=3, seed=5)
    expected = _take(straight, 12)
    first = MixedBatches(det, cls, det_batch=2, cls_batch=3, seed=5)
    _take(first, 5)
    second = MixedBatches(det, cls, det_batch=2, cls_batch=3, seed=5)
    second.load_state_dict(first.state_dict())
    assert _equal(_take(second, 7), expected[5:])
    assert straight.position == second.position == 12


def test_another_seed_gives_another_order(det, cls):
    orders = [
        [[key[:2] for key in keys] for keys in itertools.islice(MixedBatches(det, cls, seed=seed).keys(), 6)]
        for seed in (0, 1)
    ]
    assert orders[0] != orders[1]


def test_state_of_other_batches_is_refused(det, cls):
    state = MixedBatches(det, cls, seed=5, cls_batch=4).state_dict()
    with pytest.raises(ConfigError, match="batch_sizes"):
        MixedBatches(det, cls, seed=5, cls_batch=8).load_state_dict(state)


def test_one_source_alone(det, cls):
    assert {kind for kind, _ in _take(MixedBatches(det, None, seed=0, det_batch=1), 4)} == {"det"}
    assert {kind for kind, _ in _take(MixedBatches(None, cls, seed=0, cls_batch=1), 4)} == {"cls"}
    with pytest.raises(ConfigError, match="nothing to train on"):
        MixedBatches(None, None, seed=0)


def test_ranks_share_each_batch(det, cls):
    whole = MixedBatches(det, cls, det_batch=2, cls_batch=4, seed=3).keys()
    parts = [MixedBatches(det, cls, det_batch=2, cls_batch=4, seed=3, rank=r, world_size=2).keys() for r in (0, 1)]
    for keys, left, right in itertools.islice(zip(whole, *parts, strict=False), 20):
        assert sorted(left + right) == sorted(keys)
        assert len(left) == len(right)
    with pytest.raises(ConfigError, match="cannot be shared by 3 processes"):
        MixedBatches(det, cls, det_batch=2, cls_batch=4, seed=3, world_size=3)


def test_worker_processes_load_the_same_batches(det, cls):
    torch.manual_seed(0)
    state_before = torch.get_rng_state()
    alone = _take(MixedBatches(det, cls, det_batch=2, cls_batch=3, seed=5), 6)
    loaded = _take(MixedBatches(det, cls, det_batch=2, cls_batch=3, seed=5, workers=1), 6)
    assert _equal(alone, loaded)
    assert torch.equal(torch.get_rng_state(), state_before), "loading must not touch the global generator"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line_naming_it(det, cls, image_dir, workers):
    (image_dir / "b.jpg").write_bytes((image_dir / "b.jpg").read_bytes()[:100])
    with pytest.raises(DataError, match=r"b\.jpg") as caught:
        _take(MixedBatches(det, cls, det_batch=1, cls_batch=1, seed=5, workers=workers), 50)
    assert "\n" not in str(caught.value)


def test_sample_randomness_depends_on_seed_and_draw_alone():
    draws = {tuple(torch.rand(3, generator=sample_generator(s, d)).tolist()) for s in (0, 1) for d in range(50)}
    assert len(draws) == 100
    again = torch.rand(3, generator=sample_generator(1, 7))
    assert tuple(again.tolist()) in draws


def test_repeat_factors_follow_the_classes(det):
    # Two images; mug in one, kite in both.
    np.testing.assert_allclose(det.repeat_factors(1.0), [2**0.5, 1.0])


def test_only_the_first_pseudo_boxes_of_an_image_count() -> None:
    labels = ImageLabels(
        boxes_xyxy=torch.tensor([[0.0, 0, 4, 4], [1, 1, 5, 5], [2, 2, 6, 6], [3, 3, 7, 7]]),
        class_ids=torch.tensor([4, 5, 6, 7]),
        scores=torch.tensor([0.99, 0.5, 0.97, 0.98]),
    )
    kept = _confident(labels, 0.95, 2)
    assert (kept.class_ids.tolist(), kept.boxes_xyxy[:, 0].tolist()) == ([4, 6], [0.0, 2.0])
    assert _confident(labels, 0.95, None).class_ids.tolist() == [4, 6, 7]
