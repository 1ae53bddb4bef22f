"""The CLIP teacher: preprocessing, text rules, files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovbridge.errors import TeacherError
from ovbridge.teachers.clip import BUILTIN_CLIP, ClipConfig, build_clip, load_clip, save_clip
from ovbridge.teachers.digest import state_digest
from ovbridge.teachers.tokenizer import ByteBpeTokenizer
from ovbridge.teachers.train_clip import _pair_masks, contrastive_loss

TINY = ClipConfig(embed_dim=16, image_size=32, vision_layers=(1, 1, 1, 1), vision_width=8, text_width=32, text_layers=1)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = ByteBpeTokenizer.train(["a photo of a red mug", "a kite"], 300)
    path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    save_clip(path, build_clip(TINY, tokenizer.vocab_size), tokenizer, TINY, "two sentences")
    return path


def test_contrastive_loss_matches_hand_value() -> None:
    image = torch.eye(2)
    text = torch.eye(2)
    diagonal = torch.eye(2, dtype=torch.bool)
    loss = contrastive_loss(image, text, torch.tensor(1.0), diagonal, torch.zeros(2, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.0)), abs=1e-6)


def test_ignored_pairs_do_not_count() -> None:
    image = torch.eye(2)
    everything_else = ~torch.eye(2, dtype=torch.bool)
    loss = contrastive_loss(image, image, torch.tensor(5.0), ~everything_else, everything_else)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_names_fit_every_crop_of_their_class_and_phrases_only_their_own() -> None:
    texts = ["a mug", "a red mug", "a blue mug", "a kite"]
    positive, ignore = _pair_masks(texts, np.array([0, 0, 0, 1]), np.array([True, False, False, True]))
    assert positive[1].tolist() == [True, True, False, False]
    assert not ignore[1, 2], "two phrases of one class stay negatives of each other: colours differ"
    assert ignore[0, 1], "a bare name's crop against a phrase is neither right nor wrong"
    assert not positive[0, 3]
    assert not ignore[0, 3]


def test_saved_clip_embeds_the_same_after_loading(tiny_clip: Path) -> None:
    first, second = load_clip(str(tiny_clip)), load_clip(str(tiny_clip))
    crops = [np.full((20, 30, 3), 90, dtype=np.uint8), np.full((50, 10, 3), 9, dtype=np.uint8)]
    assert first.embed_crops(crops).shape == (2, 16)
    assert torch.equal(first.embed_crops(crops), second.embed_crops(crops))
    bank = first.embed_names(["red mug", "kite"])
    assert bank.names == ("red mug", "kite")
    assert bank.digest() == second.embed_names(["red mug", "kite"]).digest()


def test_prompt_ensemble_is_the_mean_of_unit_vectors(tiny_clip: Path) -> None:
    teacher = load_clip(str(tiny_clip))
    bank = teacher.embed_names(["kite"], ("a {}", "the {}"))
    parts = torch.nn.functional.normalize(teacher.embed_texts(["a kite", "the kite"]), dim=1)
    torch.testing.assert_close(bank.embeddings_KD[0], parts.mean(dim=0))


def test_braces_in_a_template_are_letters(tiny_clip: Path) -> None:
    teacher = load_clip(str(tiny_clip))
    bank = teacher.embed_names(["kite"], ("a {} {0} }",))
    assert torch.equal(bank.embeddings_KD, teacher.embed_texts(["a kite {0} }"]))


def test_no_crops_give_an_empty_matrix(tiny_clip: Path) -> None:
    assert load_clip(str(tiny_clip)).embed_crops([]).shape == (0, 16)


def test_tokenizer_cuts_long_texts_and_keeps_the_end_mark() -> None:
    tokenizer = ByteBpeTokenizer.train(["a b c"], 300)
    ids = tokenizer(["a " * 50, "ü 漢"], 8)
    assert ids.shape == (2, 8)
    assert ids[0, -1] == tokenizer.end_id == ids.max()
    assert tokenizer.end_id == tokenizer.vocab_size - 1


@pytest.mark.parametrize("name", ["no-such-model", "ViT-B-32-quickgelu:/no/such/file.pt", "missing.safetensors"])
def test_unknown_clip_is_named(name: str) -> None:
    with pytest.raises(TeacherError, match=name.split(":")[0].split(".")[0]):
        load_clip(name)


def test_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(TeacherError, match="not a CLIP"):
        load_clip(str(tmp_path / "other.safetensors"))


def test_builtin_clip_ships_and_knows_its_words() -> None:
    assert BUILTIN_CLIP.is_file()
    teacher = load_clip("builtin")
    bank = torch.nn.functional.normalize(teacher.embed_names(["umbrella", "cat"]).embeddings_KD, dim=1)
    assert float(bank[0] @ bank[1]) < 0.9


def open_clip_of(monkeypatch: pytest.MonkeyPatch, tag: str, **published: Any) -> None:
    """Let open_clip have one tiny model, of one set of tensors, whose published weights `tag` are as said."""
    import open_clip
    from open_clip import factory, pretrained

    config = TINY.open_clip_config(49408)
    models = {"Tiny": config, "Tiny-quickgelu": config | {"quick_gelu": True}}
    torch.manual_seed(0)
    state = open_clip.model.CLIP(**config).state_dict()
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", models)
    monkeypatch.setattr(pretrained, "_PRETRAINED", {name: {tag: {"url": "x"} | published} for name in models})
    monkeypatch.setattr(factory, "download_pretrained", lambda *a, **k: "x")
    monkeypatch.setattr(factory, "load_checkpoint", lambda model, *a, **k: model.load_state_dict(state))


def test_published_weights_get_the_activation_they_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip_of(monkeypatch, "openai", quick_gelu=True)
    plain, named = load_clip("Tiny/openai"), load_clip("Tiny-quickgelu/openai")
    assert torch.equal(plain.embed_texts(["a cat"]), named.embed_texts(["a cat"]))
    assert plain.digest == named.digest == state_digest(named.model)


@pytest.mark.parametrize("published", [{}, {"quick_gelu": True, "mean": (0.5,) * 3}, {"quick_gelu": True}])
def test_the_digest_tells_networks_of_the_same_tensors_apart(
    monkeypatch: pytest.MonkeyPatch, published: dict[str, Any]
) -> None:
    open_clip_of(monkeypatch, "web", **published)
    teacher = load_clip("Tiny/web")
    assert (teacher.digest == state_digest(teacher.model)) == (published == {"quick_gelu": True})


def test_an_open_clip_model_is_shown_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip_of(monkeypatch, "web", mean=(0.5,) * 3, std=(0.25,) * 3, resize_mode="squash")
    half = np.zeros((8, 64, 3), dtype=np.uint8)
    half[:, 32:] = 255
    pixels = load_clip("Tiny/web")._pixels([half])
    assert pixels[0, :, 0, [0, -1]].tolist() == [[-2.0, 2.0]] * 3
    open_clip_of(monkeypatch, "web", resize_mode="longest")
    with pytest.raises(TeacherError, match=r"Tiny/web is shown .* 'longest': use one"):
        load_clip("Tiny/web")
