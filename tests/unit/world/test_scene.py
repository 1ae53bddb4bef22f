from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ovbridge.world import scene as scene_module
from ovbridge.world.nouns import NOUNS
from ovbridge.world.render import render_scene
from ovbridge.world.scene import SIZES, Scene, compose_label_scene, compose_scene, noun_odds
from ovbridge.world.silhouette import (
    InstanceCanvas,
    Silhouette,
    coco_geometry,
    outlines,
    run_lengths,
    silhouette,
    simplify,
    tight_box,
    trace_contours,
)


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    return [compose_scene(np.random.default_rng([seed, 0, index])) for index in range(count)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return _scenes(200, seed=1)


def _square(left: int, top: int, side: int) -> Silhouette:
    return Silhouette(Image.new("L", (side, side), 255), left, top)


def _canvas_of(scene: Scene) -> np.ndarray:
    """The instance ids painted anew, without any of the layout's bookkeeping."""
    ids = np.zeros((scene.height * 2, scene.width * 2), dtype=int)
    for number, instance in enumerate(scene.instances, start=1):
        for thing in instance.members:
            shape = silhouette(outlines(thing.noun_index, thing.pose))
            for row, column in np.argwhere(shape.pixels):
                y, x = row + shape.top, column + shape.left
                if 0 <= y < ids.shape[0] and 0 <= x < ids.shape[1]:
                    ids[y, x] = number
    return ids


def test_same_source_gives_the_same_scene_and_picture():
    one, two = (compose_scene(np.random.default_rng([5, 1, 3])) for _ in range(2))
    assert one == two
    assert np.array_equal(render_scene(one), render_scene(two))
    assert one != compose_scene(np.random.default_rng([6, 1, 3]))


def test_picture_has_the_scenes_size():
    scene = _scenes(1)[0]
    picture = render_scene(scene)
    assert picture.shape == (scene.height, scene.width, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10


def test_boxes_and_areas_agree_with_the_pixels_in_front():
    for scene in _scenes(6, seed=3):
        ids = _canvas_of(scene)
        for number, instance in enumerate(scene.instances, start=1):
            rows, columns = np.nonzero(ids == number)
            left, top, width, height = instance.geometry["bbox"]
            assert (left, top) == (columns.min() / 2, rows.min() / 2)
            assert (left + width, top + height) == ((columns.max() + 1) / 2, (rows.max() + 1) / 2)
            assert instance.geometry["area"] == len(rows) / 4


def test_boxes_lie_inside_the_picture_and_no_object_is_nearly_hidden(scenes):
    for scene in scenes:
        assert (scene.width, scene.height) in SIZES
        for instance in scene.instances:
            left, top, width, height = instance.geometry["bbox"]
            assert left >= 0
            assert top >= 0
            assert left + width <= scene.width
            assert top + height <= scene.height
            assert instance.geometry["area"] >= scene_module.MIN_AREA
            if not instance.is_crowd:
                thing = instance.members[0]
                whole = silhouette(outlines(thing.noun_index, thing.pose)).pixels.sum() / 4
                assert instance.geometry["area"] >= scene_module.MIN_VISIBLE * whole


def test_polygons_cover_the_visible_mask():
    overlaps = []
    for scene in _scenes(20, seed=1):
        canvas = InstanceCanvas(scene.width, scene.height)
        for instance in scene.instances:
            shapes = [silhouette(outlines(thing.noun_index, thing.pose)) for thing in instance.members]
            canvas.add(shapes, min_visible=0, min_inside=0, min_area=0)
        for index, instance in enumerate(scene.instances):
            if instance.is_crowd or instance.members[0].pose.side < 40:
                continue
            polygons = [polygon for polygon in instance.geometry["segmentation"] if len(polygon) >= 6]
            rles = coco_mask.frPyObjects(polygons, scene.height, scene.width)
            drawn = coco_mask.decode(coco_mask.merge(rles)).astype(bool)
            truth = canvas.visible(index)[1::2, 1::2]
            # Holes are filled in the polygons, so only what the mask has is asked for.
            overlaps.append((drawn & truth).sum() / truth.sum())
    assert np.mean(overlaps) > 0.95
    assert min(overlaps) > 0.75


def test_the_mix_holds_the_awkward_cases(scenes):
    counts = [len(scene.instances) for scene in scenes]
    crowds = [instance for scene in scenes for instance in scene.instances if instance.is_crowd]
    sides = [instance.members[0].pose.side for scene in scenes for instance in scene.instances]
    assert 0 in counts
    assert 2.8 < np.mean(counts) < 4
    assert crowds
    assert all(8 <= len(crowd.members) <= 20 for crowd in crowds)
    assert all(len({member.noun_index for member in crowd.members}) == 1 for crowd in crowds)
    assert min(sides) < 24
    assert max(sides) > 120
    assert len({scene.background for scene in scenes}) == len(scene_module.BACKGROUND_KINDS)


def test_crowd_is_one_annotation_in_run_lengths(scenes):
    scene, crowd = next((scene, i) for scene in scenes for i in scene.instances if i.is_crowd)
    rle = crowd.geometry["segmentation"]
    assert rle["size"] == [scene.height, scene.width]
    assert sum(rle["counts"]) == scene.height * scene.width
    decoded = coco_mask.decode(coco_mask.frPyObjects(rle, *rle["size"]))
    assert decoded.sum() == pytest.approx(crowd.geometry["area"], rel=0.05)


def test_noun_odds_are_mildly_long_tailed_alike_for_base_and_novel():
    odds = noun_odds()
    roles = np.array([noun.role for noun in NOUNS])
    assert odds.sum() == pytest.approx(1)
    for role in ("base", "novel"):
        assert 2 < odds[roles == role].max() / odds[roles == role].min() <= 3
    assert odds[roles == "base"].mean() == pytest.approx(odds[roles == "novel"].mean(), rel=0.05)


def test_label_scene_shows_its_noun_large_and_in_front():
    for index in range(8):
        scene = compose_label_scene(np.random.default_rng([0, 2, 17, index]), 17)
        main = scene.instances[-1]
        assert main.noun_index == 17
        assert 0.45 <= main.members[0].pose.side / min(scene.width, scene.height) <= 0.9
        assert all(NOUNS[other.noun_index].role == "unused" for other in scene.instances[:-1])


def test_canvas_refuses_to_hide_an_instance():
    canvas = InstanceCanvas(50, 50)
    rule = {"min_visible": 0.35, "min_inside": 0.7, "min_area": 1.0}
    assert canvas.add([_square(10, 10, 20)], **rule)
    assert not canvas.add([_square(10, 10, 18)], **rule)  # would leave 19 %
    assert canvas.visible(0).sum() == 400
    assert canvas.add([_square(20, 10, 20)], **rule)  # leaves half
    assert canvas.visible(0).sum() == 200
    assert not canvas.add([_square(10, 20, 10)], **rule)  # would leave a quarter of the first
    assert not canvas.add([_square(92, 0, 20)], **rule)  # 40 % inside
    assert canvas.add([_square(86, 0, 20)], **rule)  # exactly 70 % inside


def test_contours_of_a_hand_drawn_mask():
    mask = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], dtype=bool)
    corners = sorted(sorted(map(tuple, simplify(contour, 0.1).tolist())) for contour in trace_contours(mask))
    assert corners == [[(0, 0), (0, 2), (2, 0), (2, 2)], [(2, 2), (2, 3), (3, 2), (3, 3)]]


def test_contours_leave_holes_out():
    mask = np.ones((5, 5), dtype=bool)
    mask[2, 2] = False
    (contour,) = trace_contours(mask)
    assert len(simplify(contour, 0.1)) == 4


def test_simplify_keeps_a_thin_spike():
    mask = np.zeros((9, 60), dtype=bool)
    mask[:, :6] = True
    mask[4, 6:] = True
    (contour,) = trace_contours(mask)
    simple = simplify(contour, 0.6)
    assert simple[:, 0].max() == 60
    assert len(simple) <= 12


def test_run_lengths_go_column_by_column_and_begin_with_zeros():
    mask = np.array([[1, 0], [1, 1]], dtype=bool)
    assert run_lengths(mask) == {"size": [2, 2], "counts": [0, 2, 1, 1]}
    assert run_lengths(~mask) == {"size": [2, 2], "counts": [2, 1, 1]}


def test_geometry_of_a_hand_drawn_mask_is_in_picture_pixels():
    mask = np.zeros((20, 20), dtype=bool)
    mask[4:10, 3:13] = True
    geometry = coco_geometry(mask, is_crowd=False)
    assert tight_box(mask) == (3, 4, 13, 10)
    assert geometry["bbox"] == [1.5, 2.0, 5.0, 3.0]
    assert geometry["area"] == 15.0
    points = np.array(geometry["segmentation"][0]).reshape(-1, 2)
    assert points.min(axis=0).tolist() == pytest.approx([1.5, 2.0], abs=0.5)
    assert points.max(axis=0).tolist() == pytest.approx([6.5, 5.0], abs=0.5)


def test_mirroring_swaps_left_and_right():
    pose = compose_label_scene(np.random.default_rng(0), 7).instances[-1].members[0].pose
    pose = replace(pose, angle=0.0, shear=0.0, centre_xy=(0.0, 0.0), mirrored=False)
    plain, mirrored = outlines(7, pose), outlines(7, replace(pose, mirrored=True))
    for one, two in zip(plain, mirrored, strict=True):
        np.testing.assert_allclose(one * [-1, 1], two)
