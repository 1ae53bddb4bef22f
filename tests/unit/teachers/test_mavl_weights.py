"""Weight files: ours and the official ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ovbridge.errors import CheckpointError, TeacherError
from ovbridge.teachers.mavl import weights
from ovbridge.teachers.mavl.config import BackboneConfig, MavlConfig, TextConfig, mavl_full
from ovbridge.teachers.mavl.model import Mavl
from ovbridge.teachers.mavl.proposer import load_mavl
from ovbridge.teachers.mavl.text import train_tokenizer
from ovbridge.teachers.mavl.weights import (
    build_mavl,
    convert_official_mavl,
    official_names,
    our_name,
    read_mavl,
    save_mavl,
)

TINY = MavlConfig(
    backbone=BackboneConfig(block="basic", blocks=(1, 1, 1, 1), widths=(8, 8, 16, 16), norm="batch"),
    text=TextConfig(vocabulary_size=40, hidden=16, layers=1, heads=2, feedforward=32, positions=20, dropout=0.0),
    d_model=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    fusion_layers=1,
    feedforward=32,
    levels=3,
    points=2,
    queries=12,
    token_positions=10,
    image_short_side=64,
)


def write(path: Path, half: bool = False) -> Mavl:
    torch.manual_seed(0)
    model = Mavl(TINY).eval()
    tokenizer = train_tokenizer(["every mug", "all objects"], vocabulary_size=40)
    state = model.state_dict()
    save_mavl(path, config=TINY, state=state, tokenizer=tokenizer, trained_on="two mugs", half=half)
    return model


def test_a_file_gives_back_the_model(tmp_path: Path) -> None:
    model = write(tmp_path / "m.safetensors")
    file = read_mavl(tmp_path / "m.safetensors")
    assert file.config == TINY
    assert file.trained_on == "two mugs"
    assert file.tokenizer.encode("every mug kite").tokens == ["<s>", "every", "mug", "<unk>", "</s>"]
    again = build_mavl(file, tmp_path / "m.safetensors")
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not any(t.is_meta for t in [*again.parameters(), *again.buffers()])


def test_half_files_are_half_as_big_and_read_as_fp32(tmp_path: Path) -> None:
    write(tmp_path / "full.safetensors")
    write(tmp_path / "half.safetensors", half=True)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.62 * sizes[0]
    state = read_mavl(tmp_path / "half.safetensors").state
    assert {t.dtype for t in state.values()} <= {torch.float32, torch.int64}


def test_loading_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="nowhere"):
        load_mavl("nowhere")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match="broken"):
        load_mavl(tmp_path / "broken.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not hold MAVL"):
        load_mavl(tmp_path / "other.safetensors")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = write(path)
    state = model.state_dict()
    del state["level_embed"]
    tokenizer = train_tokenizer(["every mug"], vocabulary_size=40)
    save_mavl(path, config=TINY, state=state, tokenizer=tokenizer, trained_on="", half=False)
    with pytest.raises(CheckpointError, match="level_embed"):
        load_mavl(path)


def test_an_absent_tokenizer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "m.safetensors")
    with pytest.raises(TeacherError, match="no-such-folder"):
        load_mavl(tmp_path / "m.safetensors", tokenizer=str(tmp_path / "no-such-folder"))


def test_every_official_tensor_has_its_place(goldens: Path) -> None:
    shapes = json.loads((goldens / "mavl_state_dict.json").read_text())
    with torch.device("meta"):
        state = Mavl(mavl_full()).state_dict()
    mapped = {name: tuple(record["shape"]) for o, record in shapes.items() if (name := our_name(o)) is not None}
    assert mapped == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert all(our_name(theirs) == ours for ours, theirs in official_names(state).items())


def official(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {theirs: tensors[ours] for ours, theirs in official_names(tensors).items()}


def test_conversion_of_an_official_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = replace(TINY, backbone=replace(TINY.backbone, norm="frozen"))
    monkeypatch.setattr(weights, "mavl_full", lambda: frozen)
    state = Mavl(frozen).state_dict()
    content = official(state)
    content["class_embed.3.weight"] = content["class_embed.0.weight"]
    content["transformer.text_encoder.embeddings.position_ids"] = torch.arange(3)
    content["transformer.text_encoder.pooler.dense.weight"] = torch.zeros(2, 2)
    used = convert_official_mavl(content, tmp_path / "m.safetensors", source="m.pth")
    assert used.keys() == state.keys()
    assert torch.equal(used["class_head.weight"], state["class_head.weight"])
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        record = json.loads(file.metadata()[weights.FORMAT])
        assert torch.equal(file.get_tensor("level_embed"), state["level_embed"])
    assert record["tokenizer_name"] == "roberta-base"
    assert "LMDet" in record["trained_on"]
    target = tmp_path / "n.safetensors"
    with pytest.raises(CheckpointError, match=r"module\.head\.weight"):
        convert_official_mavl(content | {"module.head.weight": torch.zeros(1)}, target, source="m.pth")
    del content["transformer.level_embed"]
    with pytest.raises(CheckpointError, match=r"m\.pth .*level_embed"):
        convert_official_mavl(content, target, source="m.pth")
    assert not target.exists()


@pytest.mark.parametrize("place", ["/proc/x.safetensors", "{file}/x.safetensors"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be written"):
        write(Path(place.format(file=tmp_path / "notes.txt")))
