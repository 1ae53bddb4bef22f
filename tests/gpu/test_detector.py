"""CUDA computes what the CPU does: detections, losses and one step of training, at a small size."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ovbridge.detector import DetectorConfig, TwoStageDetector, build_detector, coco_r50_c4, lvis_r50_fpn
from ovbridge.detector import to_weight_transfer as transferred
from ovbridge.detector.postprocess import to_original_size
from ovbridge.structures import BoxLabels, ImageLabels, RegionTargets, TrainingImage
from ovbridge.training.loss_weights import FederatedLoss, LossWeights
from ovbridge.training.objectives import detection_losses, image_label_losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

CLASSES = 20


@pytest.fixture(autouse=True)
def _exact_matrix_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _detector(config: DetectorConfig) -> TwoStageDetector:
    rpn = replace(config.rpn, pre_nms_train=200, post_nms_train=60, pre_nms_test=200, post_nms_test=60)
    config = replace(config, rpn=rpn, roi=replace(config.roi, sampled_regions=32))
    bank = torch.randn(CLASSES, 512, generator=torch.Generator().manual_seed(0))
    return transferred(build_detector(config, bank, seed=1), seed=2)


def _picture(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def _images() -> list[TrainingImage]:
    generator = torch.Generator().manual_seed(9)
    found = []
    for i, (height, width) in enumerate(((96, 128), (80, 112))):
        boxes = torch.tensor([[4.0, 6.0, 50.0, 70.0], [30.0, 10.0, 100.0, 60.0]])
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[:, 10:60, 30:50] = True
        found.append(
            TrainingImage(
                image_id=i,
                pixels=_picture(height, width, i),
                boxes=BoxLabels(boxes_xyxy=boxes, class_ids=torch.tensor([3, 7 + i]), masks=masks),
                labels=ImageLabels(boxes_xyxy=boxes[:1], class_ids=torch.tensor([5]), scores=torch.ones(1)),
                regions=RegionTargets(
                    boxes_xyxy=boxes, embeddings=torch.randn(2, 512, generator=generator), scores=torch.ones(2)
                ),
            )
        )
    return found


@pytest.mark.parametrize("architecture", [coco_r50_c4, lvis_r50_fpn])
def test_detections_are_those_of_the_cpu(architecture: object) -> None:
    model = _detector(architecture()).eval()  # type: ignore[operator]
    pictures = [_picture(96, 128, 1), _picture(96, 128, 2)]
    everything = replace(model.config.postprocess, score_threshold=0.0, max_detections=50)
    expected = model.detect(pictures, postprocess=everything)
    on_gpu = copy.deepcopy(model).cuda()
    got = on_gpu.detect(pictures, postprocess=everything)
    for cpu, gpu in zip(expected, got, strict=True):
        assert gpu.boxes_xyxy.is_cuda
        torch.testing.assert_close(gpu.scores.cpu(), cpu.scores, atol=2e-4, rtol=2e-3)
        near = (gpu.boxes_xyxy.cpu()[:, None] - cpu.boxes_xyxy[None]).abs().amax(dim=2) < 0.1
        same = near & (gpu.class_ids.cpu()[:, None] == cpu.class_ids)
        assert same.any(dim=1).float().mean() >= 0.9
        fitted = to_original_size(gpu, (96, 128), (48, 64))
        assert fitted.masks is None or fitted.masks.is_cuda
    other = torch.randn(5, 512, generator=torch.Generator().manual_seed(4))
    (given,) = on_gpu.detect(pictures[:1], postprocess=everything, text_bank_KD=other)
    assert int(given.class_ids.max()) < 5
    assert [len(p) for p in on_gpu.propose(pictures, 5)] == [5, 5]
    embeddings = on_gpu.region_embeddings(pictures, [torch.tensor([[1.0, 2.0, 40.0, 50.0]])] * 2)
    reference = model.region_embeddings(pictures, [torch.tensor([[1.0, 2.0, 40.0, 50.0]])] * 2)
    torch.testing.assert_close(torch.cat(embeddings).cpu(), torch.cat(reference), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", ["det", "cls"])
@pytest.mark.parametrize("architecture", [coco_r50_c4, lvis_r50_fpn])
def test_one_training_step_is_that_of_the_cpu(architecture: object, kind: str) -> None:
    model = _detector(architecture()).train()  # type: ignore[operator]
    images = _images()

    def step(model: TwoStageDetector) -> tuple[dict[str, float], dict[str, float]]:
        weights = LossWeights()
        if kind == "cls":
            losses = image_label_losses(model, images, weights=weights)
        else:
            losses = detection_losses(
                model,
                images,
                weights=weights,
                trained_columns_K=torch.arange(CLASSES) < 15,
                federated=FederatedLoss(frequency_weight_K=torch.ones(CLASSES), classes=10),
                generator=torch.Generator().manual_seed(0),
            )
        torch.stack(list(losses.values())).sum().backward()
        norms = {
            name: parameter.grad.norm().item()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        return {name: loss.item() for name, loss in losses.items()}, norms

    on_gpu = copy.deepcopy(model).cuda()
    cpu_losses, cpu_norms = step(model)
    gpu_losses, gpu_norms = step(on_gpu)
    assert gpu_losses == pytest.approx(cpu_losses, rel=2e-2, abs=1e-3)
    assert gpu_norms.keys() == cpu_norms.keys()
    for name in ("roi_head.projection.transfer2.weight", "roi_head.projection.residual2.weight"):
        assert gpu_norms[name] == pytest.approx(cpu_norms[name], rel=0.1)
    assert all(torch.isfinite(p.grad).all() for p in on_gpu.parameters() if p.grad is not None)


def test_bf16_and_channels_last_find_the_same() -> None:
    model = _detector(lvis_r50_fpn()).eval().cuda()
    picture = _picture(128, 160, 3)
    everything = replace(model.config.postprocess, score_threshold=0.0, max_detections=20)
    (full,) = model.detect([picture], postprocess=everything)
    model = model.to(memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        (half,) = model.detect([picture], postprocess=everything)
    assert half.scores.dtype == torch.float32
    torch.testing.assert_close(half.scores[:5], full.scores[:5], atol=5e-2, rtol=0.1)
