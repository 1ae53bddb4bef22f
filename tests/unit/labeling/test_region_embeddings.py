from __future__ import annotations

import numpy as np
import pytest
import torch

from ovbridge.errors import ConfigError
from ovbridge.labeling.region_embeddings import crop, crops_of, embed_boxes, square_around, whole_pixels

IMAGE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def test_crop_inside_is_the_slice() -> None:
    np.testing.assert_array_equal(crop(IMAGE, (2, 1, 5, 4)), IMAGE[1:4, 2:5])


def test_crop_outside_is_black() -> None:
    window = crop(IMAGE, (-2, 4, 3, 9))
    assert window.shape == (5, 5, 3)
    np.testing.assert_array_equal(window[:2, 2:], IMAGE[4:6, 0:3])
    assert window[2:].sum() == 0
    assert window[:, :2].sum() == 0
    assert crop(IMAGE, (20, 20, 23, 22)).tolist() == np.zeros((2, 3, 3)).tolist()


def test_fractions_grow_to_whole_pixels() -> None:
    assert whole_pixels((1.2, -0.5, 3.0, 4.01)) == (1, -1, 3, 5)


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((2, 2, 4, 3), (2, 1.5, 4, 3.5)),
        ((1, 0, 5, 1), (1, 0, 5, 4)),  # moved down into the image
        ((0, 2, 8, 4), (0, -1, 8, 7)),  # wider than the image is high: stays centred
        ((7, 0, 8, 6), (2, 0, 8, 6)),  # moved left
    ],
)
def test_square_keeps_the_whole_box_and_stays_inside_where_it_fits(box, square) -> None:
    assert square_around(box, 6, 8) == square


def test_ensemble_takes_the_box_and_its_surroundings() -> None:
    tight, wide = crops_of(IMAGE, (2, 2, 6, 4), "ensemble-1.5")
    assert tight.shape == (2, 4, 3)
    assert wide.shape == (4, 6, 3)  # rows 1.5..4.5 and columns 1..7 in whole pixels
    np.testing.assert_array_equal(wide, IMAGE[1:5, 1:7])


def test_unknown_rule_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"tight, square, ensemble-1\.5, masked"):
        crops_of(IMAGE, (0, 0, 2, 2), "loose")  # type: ignore[arg-type]


def test_embeddings_go_to_their_own_boxes(encoder) -> None:
    boxes = [torch.tensor([[0.0, 0, 2, 3], [1, 1, 2, 2]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 4, 1]])]
    found = embed_boxes([IMAGE, IMAGE, IMAGE], boxes, encoder, "tight")
    assert [tuple(f.shape) for f in found] == [(2, 3), (0, 3), (1, 3)]
    assert found[0][:, 1:].tolist() == [[3, 2], [1, 1]]
    assert found[2][:, 1:].tolist() == [[1, 4]]
    assert [len(f) for f in embed_boxes([IMAGE], [torch.zeros(0, 4)], encoder, "tight")] == [0]


def test_ensemble_sums_unit_vectors(encoder) -> None:
    box = torch.tensor([[2.0, 2, 6, 4]])
    (found,) = embed_boxes([IMAGE], [box], encoder, "ensemble-1.5")
    parts = encoder.embed_crops(crops_of(IMAGE, (2, 2, 6, 4), "ensemble-1.5"))
    torch.testing.assert_close(found[0], (parts / parts.norm(dim=1, keepdim=True)).sum(dim=0))
