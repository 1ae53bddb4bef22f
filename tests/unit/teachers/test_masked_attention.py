"""What the class token reads when its attention is confined to a box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn

from ovbridge.errors import ConfigError, TeacherError
from ovbridge.labeling.region_embeddings import embed_boxes, masked_crop
from ovbridge.teachers.clip import ClipTeacher
from ovbridge.teachers.masked_attention import encode_masked, patches_inside

SIZE = 32


class Towers(nn.Module):
    """An open_clip model without its text side."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.visual(pixels)
        return embeddings


def transformer(layers: int) -> Towers:
    torch.manual_seed(0)
    tower = VisionTransformer(
        image_size=SIZE, patch_size=8, width=16, layers=layers, heads=2, mlp_ratio=2.0, output_dim=6
    )
    return Towers(tower).eval().requires_grad_(False)


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


WHOLE = torch.tensor([[0.0, 0, SIZE, SIZE]])


@pytest.mark.parametrize(
    ("box", "patches"),
    [
        ((8, 8, 16, 16), [5]),
        ((7.9, 8, 16, 16.1), [4, 5, 8, 9]),
        ((0, 0, 32, 32), list(range(16))),
        ((10, 10, 10, 10), [5]),
        ((40, 40, 50, 50), [15]),
        ((-9, 24, 1, 90), [12]),
    ],
)
def test_patches_that_touch_the_box(box: tuple[float, ...], patches: list[int]) -> None:
    inside = patches_inside(torch.tensor([box]), (4, 4), SIZE)
    assert inside[0].nonzero().flatten().tolist() == patches


def test_patches_of_an_uneven_grid_are_counted_row_by_row() -> None:
    # Two rows of 16 pixels, four columns of 8.
    assert patches_inside(torch.tensor([[9.0, 17, 20, 20]]), (2, 4), SIZE)[0].nonzero().flatten().tolist() == [5, 6]


@pytest.mark.parametrize("layers", [1, 3])
def test_a_box_over_everything_is_plain_clip(layers: int) -> None:
    model, images = transformer(layers), pixels()
    masked = encode_masked(model, images, WHOLE.expand(2, 4), name="tiny")
    torch.testing.assert_close(masked, model.encode_image(images), rtol=1e-5, atol=1e-5)


def test_one_layer_equals_a_sequence_of_the_inner_patches_alone() -> None:
    model, images = transformer(1), pixels(1)
    tower = model.visual
    masked = encode_masked(model, images, torch.tensor([[8.0, 0, 24, 8]]), name="tiny")
    tokens = tower._embeds(images)[:, [0, 2, 3]]
    pooled, _ = tower._pool(tower.transformer(tokens))
    torch.testing.assert_close(masked, pooled @ tower.proj, rtol=1e-5, atol=1e-5)


def test_each_crop_has_its_own_box() -> None:
    model, images = transformer(2), pixels(1).expand(2, -1, -1, -1)
    boxes = torch.tensor([[0.0, 0, 8, 8], [16.0, 16, 32, 32]])
    both = encode_masked(model, images, boxes, name="tiny")
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], encode_masked(model, images[:1], boxes[i : i + 1], name="tiny"))
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_context_reaches_the_embedding_only_through_the_inner_patches() -> None:
    images, box = pixels(1), torch.tensor([[8.0, 8, 16, 16]])
    changed = images.clone()
    changed[:, :, 24:, 24:] += 1.0
    one, two = transformer(1), transformer(2)
    torch.testing.assert_close(
        encode_masked(one, images, box, name="tiny"), encode_masked(one, changed, box, name="tiny")
    )
    assert not torch.allclose(
        encode_masked(two, images, box, name="tiny"), encode_masked(two, changed, box, name="tiny"), atol=1e-4
    )


def resnet() -> Towers:
    torch.manual_seed(0)
    return Towers(ModifiedResNet(layers=[1, 1, 1, 1], output_dim=6, heads=2, image_size=64, width=4)).eval()


@torch.no_grad()
def test_resnet_pools_inside_the_box() -> None:
    model = resnet()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    whole = torch.tensor([[0.0, 0, 64, 64]]).expand(2, 4)
    torch.testing.assert_close(
        encode_masked(model, images, whole, name="tiny"), model.encode_image(images), rtol=1e-4, atol=1e-5
    )
    # The convolutions replaced by nothing: the input is what is pooled, 2 x 2 patches of 128 channels.
    tower = model.visual
    tower.__dict__["stem"] = tower.layer1 = tower.layer2 = tower.layer3 = tower.layer4 = nn.Identity()
    features = torch.randn(1, 128, 2, 2, generator=torch.Generator().manual_seed(3))
    box = torch.tensor([[0.0, 0, 1, 1]])
    found = encode_masked(model, features, box, name="tiny")
    elsewhere = features.clone()
    elsewhere[:, :, 1, 1] += 5.0
    torch.testing.assert_close(encode_masked(model, elsewhere, box, name="tiny"), found)
    elsewhere[:, :, 0, 0] += 5.0
    assert not torch.allclose(encode_masked(model, elsewhere, box, name="tiny"), found, atol=1e-3)


def test_a_tower_without_a_class_token_is_refused() -> None:
    with pytest.raises(TeacherError, match="no class token"):
        encode_masked(Towers(nn.Identity()), pixels(1), WHOLE, name="tiny")


@pytest.mark.parametrize(
    ("box", "window", "inner"),
    [
        ((10, 10, 30, 20), (5, 0, 35, 30), (5, 10, 25, 20)),
        ((0, 0, 20, 10), (0, 0, 30, 30), (0, 0, 20, 10)),  # moved into the image
        ((1.5, 2.5, 5.5, 4.5), (0, 0, 7, 7), (1.5, 2.5, 5.5, 4.5)),
        ((40, 30, 60, 40), (30, 10, 60, 40), (10, 20, 30, 30)),
    ],
)
def test_the_crop_is_a_square_of_one_and_a_half_long_sides(box, window, inner) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    shown, where = masked_crop(image, box)
    np.testing.assert_array_equal(shown, image[window[1] : window[3], window[0] : window[2]])
    assert where == inner


def teacher() -> ClipTeacher:
    return ClipTeacher(
        transformer(1),
        lambda texts: torch.zeros(len(texts), 1),
        name="tiny",
        digest="0",
        image_size=SIZE,
        embedding_dim=6,
        device=torch.device("cpu"),
        batch_size=2,
    )


def test_boxes_are_embedded_in_batches_and_in_their_order() -> None:
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    boxes = [torch.tensor([[0.0, 0, 30, 30], [40, 10, 90, 80]]), torch.zeros(0, 4), torch.tensor([[5.0, 5, 90, 90]])]
    together = embed_boxes([image] * 3, boxes, teacher(), "masked")
    assert [tuple(e.shape) for e in together] == [(2, 6), (0, 6), (1, 6)]
    (alone,) = embed_boxes([image], [boxes[0][1:]], teacher(), "masked")
    torch.testing.assert_close(together[0][1:], alone)


def test_an_encoder_that_cannot_mask_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        name, digest, embedding_dim = "plain", "0", 3

        def embed_crops(self, crops):
            return torch.zeros(len(crops), 3)

    with pytest.raises(ConfigError, match="plain cannot mask"):
        embed_boxes([np.zeros((4, 4, 3), np.uint8)], [torch.tensor([[0.0, 0, 2, 2]])], Plain(), "masked")
