"""Grounding DINO, MM-Grounding-DINO and OWLv2 as proposers: tiny models with random weights, saved and loaded as real
ones are, against the models' own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor

from ovbridge.errors import TeacherError
from ovbridge.structures import Proposals
from ovbridge.teachers import hf_proposer
from ovbridge.teachers.hf_proposer import load_hf_proposer
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES

WORDS = ("red", "mug", "kite", "dog", "cat", "sofa", "all", "objects", "entities", "visible", "obscure", "and")
WORDS += ("a", "photo", "of", "object")
CPU = torch.device("cpu")


def fast_tokenizer(vocabulary: dict[str, int], begin: str, end: str, padding: str, unknown: str, length: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel(vocabulary, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        cls_token=begin,
        sep_token=end,
        bos_token=begin,
        eos_token=end,
        pad_token=padding,
        unk_token=unknown,
        model_max_length=length,
    )


def save_grounding_dino(folder: Path, *, family: str, max_text_len: int) -> None:
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        MMGroundingDinoConfig,
        MMGroundingDinoForObjectDetection,
        SwinConfig,
    )

    make_config, make_model = {
        "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection),
        "mm-grounding-dino": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
    }[family]
    torch.manual_seed(0)
    config = make_config(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=12,
        max_text_len=max_text_len,
        disable_custom_kernels=True,
    )
    model = make_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    # The ids of BERT's special tokens are written into the model.
    vocabulary = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    vocabulary |= {word: 200 + i for i, word in enumerate(WORDS)}
    model.save_pretrained(folder)
    GroundingDinoProcessor(
        GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
        fast_tokenizer(vocabulary, "[CLS]", "[SEP]", "[PAD]", "[UNK]", 512),
    ).save_pretrained(folder)


def save_owlv2(folder: Path) -> None:
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = {"!": 0} | {word: 1 + i for i, word in enumerate(WORDS)} | {"<unk>": 40, "<s>": 41, "</s>": 42}
    config = Owlv2Config(
        text_config=tower | {"vocab_size": 43, "max_position_embeddings": 12, "pad_token_id": 0, "eos_token_id": 42},
        vision_config=tower | {"image_size": 64, "patch_size": 8},
        projection_dim=16,
    )
    model = Owlv2ForObjectDetection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    Owlv2Processor(
        Owlv2ImageProcessor(size={"height": 64, "width": 64}),
        fast_tokenizer(vocabulary, "<s>", "</s>", "!", "<unk>", 12),
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    for family in ("grounding-dino", "mm-grounding-dino"):
        save_grounding_dino(root / family, family=family, max_text_len=16)
    save_owlv2(root / "owlv2")
    return {family: root / family for family in ("grounding-dino", "mm-grounding-dino", "owlv2")}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, Any]:
    return {family: load_hf_proposer(str(folder), CPU) for family, folder in folders.items()}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_place(boxes_cxcywh: Tensor, scores: Tensor, sides: tuple[float, float]) -> Proposals:
    """What a proposer should answer, worked out plainly."""
    x, y, w, h = (boxes_cxcywh * torch.tensor([*sides, *sides])).unbind(-1)
    order = scores.argsort(descending=True, stable=True)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
    return Proposals(boxes_xyxy=corners[order], scores=scores[order])


def assert_same(found: Proposals, expected: Proposals) -> None:
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, rtol=1e-4, atol=1e-2)


DINOS = ["grounding-dino", "mm-grounding-dino"]
ALL = [*DINOS, "owlv2"]


@pytest.mark.parametrize("family", DINOS)
@torch.no_grad()
def test_grounding_dino_answers_as_its_own_forward_pass(loaded, folders, family: str) -> None:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    image = picture(60, 90)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folders[family]).eval()
    inputs = AutoProcessor.from_pretrained(folders[family])(images=image, text="red mug. kite.", return_tensors="pt")
    # [CLS] red mug . kite . [SEP]
    assert inputs["input_ids"].tolist() == [[101, 200, 201, 1012, 202, 1012, 102]]
    output = model(**inputs)
    probabilities = output.logits[0].sigmoid()
    (found,) = loaded[family].propose([image], [["every red mug", "every kite"]])
    assert_same(found[0], by_place(output.pred_boxes[0], probabilities[:, 1:3].mean(dim=1), (90.0, 60.0)))
    assert_same(found[1], by_place(output.pred_boxes[0], probabilities[:, 4], (90.0, 60.0)))


@torch.no_grad()
def test_owlv2_answers_as_its_own_forward_pass(loaded, folders) -> None:
    from transformers import AutoProcessor, Owlv2ForObjectDetection

    image = picture(50, 80)
    model = Owlv2ForObjectDetection.from_pretrained(folders["owlv2"]).eval()
    texts = [["a photo of a red mug", "a photo of a kite"]]
    output = model(**AutoProcessor.from_pretrained(folders["owlv2"])(images=image, text=texts, return_tensors="pt"))
    (found,) = loaded["owlv2"].propose([image], [["every red mug", "all objects", "every kite"]])
    boxes, side = output.pred_boxes[0], (80.0, 80.0)
    assert_same(found[0], by_place(boxes, output.logits[0, :, 0].sigmoid(), side))
    assert_same(found[1], by_place(boxes, output.objectness_logits[0].sigmoid(), side))
    assert_same(found[2], by_place(boxes, output.logits[0, :, 1].sigmoid(), side))


@pytest.mark.parametrize("family", ALL)
def test_a_batch_of_different_sizes_equals_its_parts(loaded, family: str) -> None:
    images = [picture(60, 90, 1), picture(90, 60, 2), picture(60, 90, 3)]
    queries: list[Sequence[str]] = [["every kite", "all objects"], [], ["every dog"]]
    together = loaded[family].propose(images, queries)
    assert [len(answers) for answers in together] == [2, 0, 1]
    for image, texts, answers in zip(images, queries, together, strict=True):
        for alone, answer in zip(loaded[family].propose([image], [texts])[0], answers, strict=True):
            assert_same(answer, alone)
    assert loaded[family].propose([], []) == []


@pytest.mark.parametrize("family", DINOS)
def test_class_agnostic_queries_and_names_do_not_touch_each_other(loaded, family: str) -> None:
    image = picture(60, 90, 4)
    agnostic, names = list(CLASS_AGNOSTIC_QUERIES[:2]), ["every red mug", "every dog"]
    mixed = loaded[family].propose([image], [[names[0], agnostic[0], names[1], agnostic[1]]])[0]
    for mine, alone in zip((mixed[1], mixed[3]), loaded[family].propose([image], [agnostic])[0], strict=True):
        assert_same(mine, alone)
    for mine, alone in zip((mixed[0], mixed[2]), loaded[family].propose([image], [names])[0], strict=True):
        assert_same(mine, alone)


@pytest.mark.parametrize("family", DINOS)
def test_long_vocabularies_are_cut_between_names(loaded, family: str) -> None:
    proposer = loaded[family]
    # 16 tokens: [CLS], four times "red mug .", and "kite ." fill 15; the next name begins a caption of its own.
    names = ["every red mug"] * 4 + ["every kite", "every dog", "every " + "sofa " * 40]
    captions = list(proposer._captions(names))
    assert [sorted(c.spans) for c in captions] == [[0, 1, 2, 3, 4], [5], [6]]
    assert max(len(c.token_ids) for c in captions) <= 16
    image = picture(60, 90, 5)
    (found,) = proposer.propose([image], [names])
    assert len(found) == 7
    assert_same(found[5], proposer.propose([image], [["every dog"]])[0][0])


def test_long_vocabularies_of_owlv2_are_worked_through_in_parts(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    image, names = picture(50, 80, 6), [f"every {word}" for word in WORDS]
    whole = loaded["owlv2"].propose([image], [names])[0]
    monkeypatch.setattr(hf_proposer, "_TEXTS_AT_ONCE", 3)
    loaded["owlv2"]._phrases.clear()
    for mine, expected in zip(loaded["owlv2"].propose([image], [names])[0], whole, strict=True):
        assert_same(mine, expected)


def test_full_stops_do_not_break_a_name_in_two(loaded) -> None:
    (caption,) = loaded["grounding-dino"]._captions(["every Red mug. kite?", "every ..."])
    assert caption.token_ids == [101, 200, 201, 202, 1012, 200 + WORDS.index("object"), 1012, 102]


@pytest.mark.parametrize("family", ALL)
def test_each_says_what_it_was_trained_on(loaded, folders, family: str) -> None:
    proposer = loaded[family]
    assert proposer.name == f"hf:{folders[family]}"
    assert "novel names" in proposer.trained_on
    assert len(proposer.digest) == 64
    own = load_hf_proposer(str(folders[family]), CPU, trained_on="my own pictures")
    assert (own.trained_on, own.digest) == ("my own pictures", proposer.digest)


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertConfig

    (tmp_path / "empty").mkdir()
    BertConfig().save_pretrained(tmp_path / "bert")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, said in (("empty", "local folder"), ("bert", "'bert' model"), ("nobody/nothing", "local folder")):
        source = str(tmp_path / name) if "/" not in name else name
        with pytest.raises(TeacherError, match=said) as caught:
            load_hf_proposer(source, CPU)
        assert len(str(caught.value).splitlines()) == 1
        assert source in str(caught.value)


def test_weights_that_could_run_code_are_not_read(folders, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(folders["owlv2"], folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"model\.safetensors"):
        load_hf_proposer(str(folder), CPU)
