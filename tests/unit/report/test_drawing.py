from __future__ import annotations

import base64
import io
from itertools import pairwise

import numpy as np
import torch
from PIL import Image

from ovbridge.report.drawing import ROLE_COLOURS, class_colour, data_uri, draw_boxes, draw_detections
from ovbridge.structures import Detections

BLACK = np.zeros((60, 80, 3), np.uint8)


def _found(box: tuple[float, ...], name: str = "mug") -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([box]), scores=torch.tensor([0.5]), class_ids=torch.tensor([0]), names=(name,)
    )


def test_box_is_drawn_where_it_is_in_the_colour_of_its_role() -> None:
    image = draw_detections(BLACK, _found((20.0, 30.0, 60.0, 50.0)), roles={"mug": "novel"})
    assert image.size == (80, 60)
    assert image.getpixel((60, 45)) == ROLE_COLOURS["novel"]
    assert image.getpixel((20, 45)) == ROLE_COLOURS["novel"]
    assert image.getpixel((40, 40)) == (0, 0, 0)
    assert (BLACK == 0).all()


def test_magnified_boxes_move_with_the_pixels() -> None:
    image = draw_boxes(BLACK, np.array([[10, 10, 30, 30]]), [(255, 0, 0)], magnify=3)
    assert image.size == (240, 180)
    assert image.getpixel((90, 60)) == (255, 0, 0)
    assert image.getpixel((60, 60)) == (0, 0, 0)


def test_best_detection_is_on_top() -> None:
    image = draw_boxes(BLACK, np.array([[10, 10, 30, 30], [10, 10, 30, 30]]), [(255, 0, 0), (0, 0, 255)])
    assert image.getpixel((10, 20)) == (255, 0, 0)


def test_tags_of_one_corner_do_not_hide_each_other() -> None:
    wide = np.zeros((240, 320, 3), np.uint8)
    boxes, colours = np.array([[40, 100, 200, 220]] * 2), [(255, 0, 0), (0, 0, 255)]
    alone = np.asarray(draw_boxes(wide, boxes[:1], colours[:1], ["mug"]))
    both = np.asarray(draw_boxes(wide, boxes, colours, ["mug", "cup"]))
    assert np.array_equal(both[:98, :120], alone[:98, :120]), "the better one's stays where it was"
    assert ((both[..., 2] == 255) & (both[..., 0] == 0)).sum() > 100


def test_boxes_outside_the_picture_and_unknown_roles_survive() -> None:
    for box in ((-50.0, -40.0, 500.0, 400.0), (70.0, 0.0, 79.0, 4.0), (5.0, 5.0, 5.0, 5.0), (9.0, 9.0, 3.0, 3.0)):
        draw_detections(BLACK, _found(box, name="a very long name that is wider than the picture"), roles={})
    empty = Detections(boxes_xyxy=torch.zeros(0, 4), scores=torch.zeros(0), class_ids=torch.zeros(0).long(), names=())
    assert np.array_equal(np.asarray(draw_detections(BLACK, empty)), BLACK)


def test_neighbouring_classes_differ_in_colour() -> None:
    colours = [np.array(class_colour(i, 65), int) for i in range(65)]
    assert min(np.abs(a - b).max() for a, b in pairwise(colours)) > 60
    assert len({tuple(c) for c in colours}) == 65


def test_data_uri_decodes_to_the_picture() -> None:
    head, _, body = data_uri(Image.fromarray(BLACK)).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == (80, 60)
