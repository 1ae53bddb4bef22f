import numpy as np
import torch

from ovbridge.data.transforms import PhotometricJitter, TrainTransform
from ovbridge.structures import BoxLabels, ImageLabels, RegionTargets


def _pixels(height=20, width=40):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _boxes(*rows, masks=None):
    return BoxLabels(boxes_xyxy=torch.tensor(rows, dtype=torch.float32), class_ids=torch.arange(len(rows)), masks=masks)


def test_boxes_are_scaled_per_axis_then_mirrored(generator):
    transform = TrainTransform(short_sides=(10,), max_long_side=100, flip_probability=1.0)
    image = transform(_pixels(), image_id=3, generator=generator, boxes=_boxes([4.0, 2.0, 13.0, 10.0]))
    assert image.image_id == 3
    assert tuple(image.pixels.shape) == (3, 10, 20)
    # Half size: [2, 1, 6.5, 5]; mirrored in 20 pixels: [13.5, 1, 18, 5].
    assert image.boxes.boxes_xyxy.tolist() == [[13.5, 1.0, 18.0, 5.0]]


def test_pixels_and_boxes_move_together(generator):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[5:10, 2:12] = 255
    for flip in (0.0, 1.0):
        transform = TrainTransform(short_sides=(40,), max_long_side=400, flip_probability=flip)
        image = transform(pixels, image_id=1, generator=generator, boxes=_boxes([2, 5, 12, 10]))
        x1, y1, x2, y2 = image.boxes.boxes_xyxy[0].int().tolist()
        assert image.pixels[0, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() > 180
        outside = image.pixels[0].clone()
        outside[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = 0
        assert outside.max() == 0


def test_pseudo_boxes_are_cut_to_whole_pixels_and_human_ones_not(generator):
    given = torch.tensor([[1.0, 1.0, 15.0, 15.0]])
    labels = ImageLabels(boxes_xyxy=given, class_ids=torch.tensor([4]), scores=torch.tensor([0.99]))
    regions = RegionTargets(boxes_xyxy=given, embeddings=torch.ones(1, 3), scores=torch.ones(1))
    kwargs = {"short_sides": (10,), "max_long_side": 100, "flip_probability": 0.0}
    whole = TrainTransform(**kwargs)(
        _pixels(), image_id=1, generator=generator, boxes=_boxes([1, 1, 15, 15]), labels=labels, regions=regions
    )
    assert whole.labels.boxes_xyxy.tolist() == [[0.0, 0.0, 7.0, 7.0]]
    assert whole.regions.boxes_xyxy.tolist() == [[0.0, 0.0, 7.0, 7.0]]
    assert whole.boxes.boxes_xyxy.tolist() == [[0.5, 0.5, 7.5, 7.5]]
    exact = TrainTransform(**kwargs, truncate_pseudo_boxes=False)(
        _pixels(), image_id=1, generator=generator, labels=labels
    )
    assert exact.labels.boxes_xyxy.tolist() == [[0.5, 0.5, 7.5, 7.5]]


def test_truncation_is_not_fooled_by_rounding(generator):
    # 60 * 800 / 480 is 100, in float32 arithmetic a hair less.
    regions = RegionTargets(
        boxes_xyxy=torch.tensor([[60.0, 60.0, 120.0, 120.0]]), embeddings=torch.ones(1, 3), scores=torch.ones(1)
    )
    transform = TrainTransform(short_sides=(800,), max_long_side=9999, flip_probability=0.0)
    image = transform(_pixels(480, 480), image_id=1, generator=generator, regions=regions)
    assert image.regions.boxes_xyxy.tolist() == [[100.0, 100.0, 200.0, 200.0]]


def test_boxes_without_area_go_with_all_their_rows(generator):
    regions = RegionTargets(
        boxes_xyxy=torch.tensor([[0.0, 0.0, 20.0, 20.0], [4.0, 4.0, 5.0, 5.0], [-9.0, 2.0, -1.0, 8.0]]),
        embeddings=torch.tensor([[1.0], [2.0], [3.0]]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
    )
    transform = TrainTransform(short_sides=(10,), max_long_side=100, flip_probability=0.0)
    image = transform(_pixels(), image_id=1, generator=generator, regions=regions)
    assert image.regions.embeddings.tolist() == [[1.0]]
    assert len(image.regions.scores) == 1


def test_masks_follow_their_boxes(generator):
    masks = torch.zeros(2, 20, 40, dtype=torch.bool)
    masks[0, :, :8] = True
    masks[1, 10:, 20:] = True
    transform = TrainTransform(short_sides=(40,), max_long_side=400, flip_probability=1.0)
    boxes = _boxes([0, 0, 8, 20], [20, 10, 40, 20], masks=masks)
    out = transform(_pixels(), image_id=1, generator=generator, boxes=boxes).boxes.masks
    assert out.shape == (2, 40, 80)
    assert out[0, :, 64:].all()
    assert not out[0, :, :64].any()
    assert out[1, 20:, :40].all()
    assert int(out[1].sum()) == 20 * 40


def test_the_same_generator_state_gives_the_same_image():
    transform = TrainTransform(short_sides=(8, 12, 16), max_long_side=99, jitter=PhotometricJitter())
    draws = [
        transform(_pixels(), image_id=1, generator=torch.Generator().manual_seed(s)).pixels for s in (1, 1, 2, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(d.shape) for d in draws}) > 1


def test_jitter_of_no_strength_changes_nothing(generator):
    still = PhotometricJitter(brightness=0, contrast=0, saturation=0)
    np.testing.assert_array_equal(still(_pixels(), generator), _pixels())
    assert not np.array_equal(PhotometricJitter()(_pixels(), generator), _pixels())


def test_the_long_side_is_bounded(generator):
    transform = TrainTransform(short_sides=(800,), max_long_side=1333, flip_probability=0.0)
    image = transform(_pixels(100, 300), image_id=1, generator=generator)
    assert tuple(image.pixels.shape) == (3, 444, 1333)


def test_an_image_has_so_many_versions_and_always_the_same(generator):
    transform = TrainTransform(
        short_sides=(20, 24, 28), max_long_side=100, jitter=PhotometricJitter(brightness=0.9), versions=4
    )

    def seen(image_id, draws):
        made = [transform(_pixels(), image_id=image_id, generator=generator).pixels for _ in range(draws)]
        return {(tuple(p.shape), p.numpy().tobytes()) for p in made}

    first = seen(7, 80)
    assert len(first) == 4
    assert seen(7, 10) <= first
    assert not seen(8, 80) & first, "another image has versions of its own"
    made_anew = TrainTransform(short_sides=(20, 24, 28), max_long_side=100, jitter=PhotometricJitter(brightness=0.9))
    assert len({made_anew(_pixels(), image_id=7, generator=generator).pixels.numpy().tobytes() for _ in range(20)}) > 10
