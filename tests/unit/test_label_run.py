"""Teachers by the names that a user gives them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ovbridge.detector import DetectorMetadata, build_detector, save_detector, world_r18_fpn
from ovbridge.errors import CheckpointError, ConfigError, TeacherError
from ovbridge.inference import Detector
from ovbridge.label_run import LabellingPlan, TeacherChoice, device_named, load_proposer
from ovbridge.structures import Proposals
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES
from ovbridge.teachers.rpn import RpnProposer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    model = build_detector(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), torch.eye(8)[:3], seed=0)
    vocabulary = tuple(
        {"name": name, "role": role, "category_id": i}
        for i, (name, role) in enumerate([("cat", "base"), ("dog", "base"), ("mug", "novel")])
    )
    metadata = DetectorMetadata(
        stage="base", vocabulary=vocabulary, text_encoder="x", recipe="world", extra={"test_size": (64, 96)}
    )
    save_detector(path, model, metadata)
    return path


def test_the_proposal_network_of_a_detector(checkpoint: Path) -> None:
    proposer = load_proposer(TeacherChoice(proposer=f"rpn:{checkpoint}"), CPU, for_names=False)
    assert proposer.name == f"rpn:{checkpoint}"
    assert proposer.trained_on == "the boxes of its 2 base classes, stage base, recipe world"
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    assert isinstance(proposer, RpnProposer)
    (found,) = proposer.propose([image], [CLASS_AGNOSTIC_QUERIES])
    expected = Detector.load(checkpoint, CPU).propose(image, 300)
    assert len(expected) > 0
    assert len(found) == 4
    for answer in found:
        assert torch.equal(answer.boxes_xyxy, expected.boxes_xyxy)
        assert torch.equal(answer.scores, expected.scores)
    with pytest.raises(TeacherError, match="label regions"):
        load_proposer(TeacherChoice(proposer=f"rpn:{checkpoint}"), CPU, for_names=True)
    with pytest.raises(CheckpointError, match="absent"):
        load_proposer(TeacherChoice(proposer="rpn:absent.safetensors"), CPU, for_names=False)


def test_a_proposal_network_works_once_an_image_and_knows_no_names() -> None:
    asked: list[int] = []

    def propose(image: np.ndarray, count: int) -> Proposals:
        asked.append(count)
        return Proposals(boxes_xyxy=torch.ones(1, 4), scores=torch.ones(1))

    proposer = RpnProposer(propose, name="rpn:x", trained_on="boxes", digest="0")
    image = np.zeros((4, 4, 3), np.uint8)
    found = proposer.propose([image, image], [["all objects", "all entities"], []])
    assert [len(f) for f in found] == [2, 0]
    assert asked == [300]
    with pytest.raises(TeacherError, match="every mug"):
        proposer.propose([image], [["every mug"]])


def test_boxes_without_names_cannot_make_tags(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"images": {"a.jpg": {"boxes": [[0, 0, 1, 1]]}}}))
    choice = TeacherChoice(proposer=f"boxes:{file}", trained_on="guesses")
    assert load_proposer(choice, CPU, for_names=False).trained_on == "guesses"
    with pytest.raises(TeacherError, match=r"instances\.json"):
        load_proposer(choice, CPU, for_names=True)


def test_builtin_and_unknown_names() -> None:
    plan = LabellingPlan(teachers=TeacherChoice(device="cpu", trained_on="my own"), names_of={"a": ("cat",)})
    (manifest,) = pickle.loads(pickle.dumps(plan)).build().manifests
    assert (manifest.table, manifest.proposer, manifest.proposer_trained_on) == ("tags", "builtin", "my own")
    with pytest.raises(TeacherError, match="no-such"):
        load_proposer(TeacherChoice(proposer="no-such"), CPU, for_names=False)
    with pytest.raises(ConfigError, match="abacus"):
        device_named("abacus")
    with pytest.raises(ConfigError, match="regions or names"):
        LabellingPlan(teachers=TeacherChoice(device="cpu")).build()
