"""Single losses and classifiers against the official implementation: values and gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from ovbridge.detector import losses
from ovbridge.detector.boxes import encode_boxes
from ovbridge.detector.checkpoint_map import TEXT
from ovbridge.detector.classifier import CosineClassifier
from ovbridge.detector.config import ProjectionConfig, TransferConfig
from ovbridge.detector.projection import build_projection

FACTORS = {"coco": (15.0, 15.0), "lvis": (25.0, 13.0)}
"""beta * 100 of the point-wise and the relation loss."""


@pytest.fixture(scope="module")
def golden(goldens: Path) -> dict[str, np.ndarray]:
    return dict(np.load(goldens / "losses.npz"))


def _leaf(golden: dict[str, np.ndarray], key: str) -> Tensor:
    return torch.from_numpy(golden[key]).requires_grad_()


def _check(value: Tensor, leaf: Tensor, golden: dict[str, np.ndarray], loss: str, grad: str) -> None:
    assert value.item() == pytest.approx(float(golden[loss]), rel=1e-5)
    value.backward()
    expected = golden[grad]
    np.testing.assert_allclose(leaf.grad, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", ["coco", "lvis"])
def test_distillation(golden: dict[str, np.ndarray], case: str) -> None:
    teacher = torch.from_numpy(golden["rkd/clip_features"])
    pointwise, relation = FACTORS[case]
    student = _leaf(golden, "rkd/image_features")
    value = pointwise * losses.pointwise_l1(student, teacher)
    _check(value, student, golden, f"rkd/{case}/distil_l1_loss", f"rkd/{case}/distil_l1_loss_grad")
    student = _leaf(golden, "rkd/image_features")
    value = relation * losses.relation_loss(student, teacher)
    _check(value, student, golden, f"rkd/{case}/irm_loss", f"rkd/{case}/irm_loss_grad")


def test_classification_without_untrained_columns(golden: dict[str, np.ndarray]) -> None:
    logits = _leaf(golden, "cls/coco/logits")
    trained = torch.from_numpy(golden["cls/coco/freq_weight"]) > 0
    value = losses.classification_loss(logits[:, :-1], torch.from_numpy(golden["cls/coco/gt_classes"]), trained)
    _check(value, logits, golden, "cls/coco/loss", "cls/coco/loss_grad")


def test_classification_federated(golden: dict[str, np.ndarray]) -> None:
    logits = _leaf(golden, "cls/lvis/logits")
    class_ids = torch.from_numpy(golden["cls/lvis/gt_classes"])
    frequency = torch.from_numpy(golden["cls/lvis/freq_weight"])
    trained = frequency > 0
    everything = losses.classification_loss(logits[:, :-1], class_ids)
    assert everything.item() == pytest.approx(float(golden["cls/lvis/loss_nofed_allcats"]), rel=1e-5)
    without_rare = losses.classification_loss(logits[:, :-1], class_ids, trained)
    assert without_rare.item() == pytest.approx(float(golden["cls/lvis/loss_nofed_ignorezero"]), rel=1e-5)
    drawn = torch.zeros(1204, dtype=torch.bool)
    drawn[torch.from_numpy(golden["cls/lvis/fed_class_indices_incl_background"])] = True
    value = losses.classification_loss(logits[:, :-1], class_ids, trained & drawn[:-1])
    _check(value, logits, golden, "cls/lvis/loss", "cls/lvis/loss_grad")


def test_federated_draw_has_the_official_form(golden: dict[str, np.ndarray], generator: torch.Generator) -> None:
    class_ids = torch.from_numpy(golden["cls/lvis/gt_classes"])
    frequency = torch.from_numpy(golden["cls/lvis/freq_weight"])
    drawn = losses.federated_columns(class_ids, frequency, 50, generator=generator)
    present = class_ids[class_ids < 1203].unique()
    official = torch.from_numpy(golden["cls/lvis/fed_class_indices_incl_background"])
    assert drawn[present].all()
    assert int(drawn.sum()) == int((official < 1203).sum())
    others = drawn.clone()
    others[present] = False
    assert (frequency[others] > 0).all()


@pytest.mark.parametrize("case", ["coco", "lvis"])
def test_box_regression(golden: dict[str, np.ndarray], case: str) -> None:
    deltas = _leaf(golden, f"box/{case}/pred_deltas")
    proposals, truth, class_ids = (
        torch.from_numpy(golden[f"box/{case}/{key}"]) for key in ("proposal_boxes", "gt_boxes", "gt_classes")
    )
    foreground = class_ids < {"coco": 80, "lvis": 1203}[case]
    target = encode_boxes(proposals[foreground], truth[foreground], (10.0, 10.0, 5.0, 5.0))
    value = losses.box_regression_loss(deltas[foreground], target, float(len(class_ids)))
    _check(value, deltas, golden, f"box/{case}/loss", f"box/{case}/pred_deltas_grad")


@pytest.mark.parametrize("case", ["coco", "lvis"])
def test_image_labels(golden: dict[str, np.ndarray], case: str) -> None:
    logits = _leaf(golden, f"pms/{case}/logits")
    per_image = torch.from_numpy(golden[f"pms/{case}/boxes_per_image"])
    owner = torch.repeat_interleave(torch.arange(len(per_image)), per_image)
    class_ids = torch.from_numpy(golden[f"pms/{case}/row_target_class"])
    value = 0.1 * losses.image_label_loss(logits, class_ids, owner)
    _check(value, logits, golden, f"pms/{case}/pms_loss", f"pms/{case}/logits_grad")
    pointwise, relation = FACTORS[case]
    student, teacher = (torch.from_numpy(golden[f"pms/{case}/{key}_features"]) for key in ("image", "clip"))
    assert pointwise * losses.pointwise_l1(student, teacher).item() == pytest.approx(
        float(golden[f"pms/{case}/distil_l1_loss"]), rel=1e-5
    )
    assert relation * losses.relation_loss(student, teacher).item() == pytest.approx(
        float(golden[f"pms/{case}/irm_loss"]), rel=1e-5
    )


PARTS = {
    "linear": "linear",
    "transfer1": "fc1",
    "transfer2": "fc2",
    "residual1": "fc3",
    "residual2": "fc4",
}


@pytest.mark.parametrize("case", ["coco_base", "coco_wt", "lvis_wt"])
def test_classifier(
    golden: dict[str, np.ndarray],
    goldens: Path,
    weight_rules: ModuleType,
    official_text: Callable[[str], Tensor],
    case: str,
) -> None:
    """Projection and classifier with regenerated weights: logits, gradients, and another vocabulary."""
    prefix = "roi_heads.box_predictor.cls_score."
    shapes = json.loads((goldens / f"{case}_state_dict.json").read_text())
    key = f"classifier/{case}/"
    x = _leaf(golden, key + "x")
    transfer = TransferConfig() if case.endswith("wt") else None
    projection = build_projection(x.shape[1], ProjectionConfig(embedding_dim=512, transfer=transfer))
    with torch.no_grad():
        for name, parameter in projection.named_parameters():
            part, kind = name.split(".")
            official = f"{prefix}{PARTS[part]}.{kind}"
            parameter.copy_(torch.from_numpy(weight_rules.value(official, shapes[official]["shape"])))
    text = official_text(case)
    classifier = CosineClassifier(text[:, :-1].T, scale=50.0, bias=-4.6 if case.startswith("lvis") else None)
    assert shapes[TEXT]["shape"] == list(text.shape)

    logits = classifier.with_background(classifier(projection(x)))
    np.testing.assert_allclose(logits.detach(), golden[key + "logits"], rtol=1e-4, atol=1e-4)
    (logits * torch.from_numpy(golden[key + "loss_weights"])).sum().backward()
    expected = golden[key + "x_grad"]
    np.testing.assert_allclose(x.grad, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    trained = {n: p for n, p in (*projection.named_parameters(), *classifier.named_parameters()) if p.requires_grad}
    for name, parameter in trained.items():
        official = "cls_bias" if name == "bias" else f"{PARTS[name.split('.')[0]]}.{name.split('.')[1]}"
        assert parameter.grad is not None
        norm = golden[f"{key}grad/{official}/sum_abssum_norm"][2]
        assert parameter.grad.double().norm().item() == pytest.approx(norm, rel=1e-4), name
        part = golden[f"{key}grad/{official}/slice"]
        got = parameter.grad[:4, :64] if parameter.ndim > 1 else parameter.grad[: len(part)]
        np.testing.assert_allclose(got, part, rtol=1e-3, atol=1e-4 * np.abs(part).max())
    with torch.no_grad():
        classifier.set_text_bank(torch.from_numpy(golden[key + "other_vocab"]))
        np.testing.assert_allclose(classifier(projection(x)), golden[key + "other_vocab_logits"], rtol=1e-4, atol=1e-4)
