"""Time of the paper's two detectors at full size, beside a plain way of doing the same with the same layers.

    python benchmarks/detectors.py --detectors lvis --modes detect --repeats 3 --out benchmarks/results/detectors.json

"plain" is what the official code does, on our layers: RoIAlign of all cells, stage 5 on every region, every pair above
the threshold decoded and suppressed with batched_nms. It runs in turn with ours, on the same picture, in one process,
so the ratio holds on a loaded machine too; CPU seconds are given beside wall seconds for the same reason. The official
medians (another machine, nothing else running) are quoted for scale.

`--modes agreement` measures how far bf16 and mixed precision move detections: of the 20 best of fp32, how many they
find, and find among their own 20 best, with the same class at IoU 0.9; with the goldens' weights, which mean nothing
and give scores that nearly tie, on their pictures, and with the built-in trained detector on scenes of the built-in
world.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, roi_align

from ovbridge.allocator import keep_freed_memory
from ovbridge.detector import TwoStageDetector, build_detector, coco_r50_c4, lvis_r50_fpn, to_original_size
from ovbridge.detector.boxes import clip_boxes, decode_boxes
from ovbridge.detector.checkpoint_map import official_name
from ovbridge.detector.config import PostprocessConfig
from ovbridge.detector.pooling import RegionPooler, batch_rois
from ovbridge.detector.postprocess import RawDetections, select_detections
from ovbridge.detector.roi_head import Stage5Trunk
from ovbridge.device import bf16_pays
from ovbridge.images import read_image
from ovbridge.inference import Detector
from ovbridge.structures import BoxLabels, ImageLabels, RegionTargets, TrainingImage
from ovbridge.training.loss_weights import FederatedLoss, LossWeights
from ovbridge.training.objectives import detection_losses, image_label_losses
from ovbridge.world.write import write_world

OFFICIAL_SECONDS = {
    ("coco", "detect"): 9.0,
    ("lvis", "detect"): 7.1,
    ("coco", "train"): 43.0,
    ("lvis", "train"): 11.5,
    ("coco", "labels"): 7.8,
    ("lvis", "labels"): 8.4,
}
"""Medians of the official implementation, fp32, 2 threads."""

CLASSES = {"coco": 80, "lvis": 1203}
MODES = ("detect", "train", "labels", "select", "agreement")


def detector(name: str, goldens: Path, classes: int | None = None) -> TwoStageDetector:
    """Full size with weight transfer; weights by the goldens' rule where it is at hand, else fresh."""
    config = coco_r50_c4(transfer=True) if name == "coco" else lvis_r50_fpn(transfer=True)
    bank = torch.randn(classes or CLASSES[name], 512, generator=torch.Generator().manual_seed(0))
    model = build_detector(config, bank)
    rule = goldens / "weights.py"
    if rule.is_file():
        spec = importlib.util.spec_from_file_location("rule", rule)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with torch.no_grad():
            for ours, value in model.state_dict().items():
                if not ours.endswith("text_KD"):
                    value.copy_(torch.from_numpy(module.value(official_name(ours, config), value.shape)))
    return model.eval()


def picture(goldens: Path) -> Tensor:
    found = sorted((goldens / "images").glob("img0_resized_*.png"))
    if found:
        return torch.from_numpy(np.array(Image.open(found[0]).convert("RGB"))).permute(2, 0, 1).contiguous()
    return torch.randint(0, 256, (3, 800, 1067), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@contextmanager
def plain_pooling() -> Iterator[None]:
    """Regions pooled by torchvision's kernel, sample by sample, instead of gathered."""

    def align(self: RegionPooler, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        pooled: Tensor = roi_align(feature.float(), rois, self.resolution, 1.0 / stride, sampling_ratio=0, aligned=True)
        return pooled

    with patch.object(RegionPooler, "_align", align):
        yield


@torch.inference_mode()
def plain_detect(model: TwoStageDetector, image: Tensor) -> RawDetections:
    """The official steps without any of the shortcuts of `TwoStageDetector.detect`."""
    with plain_pooling():
        return _plain_detect(model, image)


def _plain_detect(model: TwoStageDetector, image: Tensor) -> RawDetections:
    encoded = model.encode([image])
    (proposals,) = model._proposals(encoded)
    rois, head, config = batch_rois([proposals.boxes_xyxy]), model.roi_head, model.config.postprocess
    if isinstance(head.trunk, Stage5Trunk):
        region = torch.cat([head.trunk.stage5(head.trunk.pooler(encoded.features, rois))]).mean(dim=(2, 3))
    else:
        region = head.trunk(encoded.features, rois)
    boxes = decode_boxes(rois[:, 1:], head.box_regressor(region), model.config.roi.box_weights)
    found = plain_select(boxes, head.logits(region), encoded.sizes[0], config)
    return model._with_masks(encoded, [found])[0]


def plain_select(boxes: Tensor, logits: Tensor, image_hw: tuple[int, int], config: PostprocessConfig) -> RawDetections:
    """Every pair above the threshold goes through NMS, then the best are taken."""
    boxes, scores = clip_boxes(boxes, image_hw), logits.sigmoid()
    rows, classes = (scores > config.score_threshold).nonzero(as_tuple=True)
    kept = batched_nms(boxes[rows], scores[rows, classes], classes, config.nms_iou)[: config.max_detections]
    return RawDetections(
        boxes_xyxy=boxes[rows[kept]], scores=scores[rows[kept], classes[kept]], class_ids=classes[kept]
    )


@torch.inference_mode()
def select_jobs(model: TwoStageDetector, image: Tensor) -> dict[str, Callable[[], Any]]:
    """What follows the region head alone: from embeddings to detections."""
    encoded = model.encode([image])
    (proposals,) = model._proposals(encoded)
    rois, head, config = batch_rois([proposals.boxes_xyxy]), model.roi_head, model.config.postprocess
    region = head.in_chunks(encoded.features, rois)
    boxes = decode_boxes(rois[:, 1:], head.box_regressor(region), model.config.roi.box_weights)
    query, size = head.classifier.query(head.projection(region)), encoded.sizes[0]
    text, bias = head.classifier.text_KD, head.classifier.bias

    def ours() -> RawDetections:
        return select_detections(boxes, query, text, bias, size, config)

    def plain() -> RawDetections:
        logits = query @ text.T
        return plain_select(boxes, logits if bias is None else logits + bias, size, config)

    # Scores that are equal to the last bit may stand in either order.
    assert torch.allclose(ours().scores, plain().scores, atol=1e-5)
    return {"ours fp32": torch.inference_mode()(ours), "plain fp32": torch.inference_mode()(plain)}


def training_images(count: int, height: int, width: int, classes: int, *, boxes: bool) -> list[TrainingImage]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(count):
        corner = torch.rand(5, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        found = torch.cat([corner, corner + 20 + torch.rand(5, 2, generator=generator) * min(height, width) / 2], dim=1)
        ids = torch.randint(classes, (5,), generator=generator)
        masks = torch.zeros(5, height, width, dtype=torch.bool)
        masks[:, : height // 2] = True
        made.append(
            TrainingImage(
                image_id=i,
                pixels=torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
                boxes=BoxLabels(boxes_xyxy=found, class_ids=ids, masks=masks) if boxes else None,
                labels=None if boxes else ImageLabels(boxes_xyxy=found[:1], class_ids=ids[:1], scores=torch.ones(1)),
                regions=RegionTargets(
                    boxes_xyxy=found, embeddings=torch.randn(5, 512, generator=generator), scores=torch.ones(5)
                ),
            )
        )
    return made


def seconds(work: Callable[[], Any], precision: str) -> tuple[float, float]:
    """(wall, CPU) seconds of one run."""
    enabled = precision in ("bf16", "mixed")
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        work()
    return time.perf_counter() - wall, time.process_time() - cpu


def jobs(name: str, mode: str, model: TwoStageDetector, image: Tensor) -> dict[str, Callable[[], Any]]:
    if mode == "select":
        return select_jobs(model, image)
    if mode == "detect":
        size = (int(image.shape[1]), int(image.shape[2]))

        def finished(found: RawDetections) -> RawDetections:
            with torch.autocast("cpu", enabled=False):  # as the program does
                return to_original_size(found, size, (480, 640))

        return {
            "ours fp32": lambda: finished(model.detect([image])[0]),
            "plain fp32": lambda: finished(plain_detect(model, image)),
            "ours bf16": lambda: finished(model.detect([image])[0]),
            "ours mixed": lambda: finished(model.detect([image], mixed=True)[0]),
        }
    count, height, width = (2, 800, 1067) if mode == "train" else (8, 400, 533)
    images = training_images(count, height, width, CLASSES[name], boxes=mode == "train")
    federated = FederatedLoss(frequency_weight_K=torch.ones(CLASSES[name])) if name == "lvis" else None

    def step() -> None:
        model.train().zero_grad(set_to_none=False)
        if mode == "train":
            losses = detection_losses(
                model, images, weights=LossWeights(), federated=federated, generator=torch.Generator().manual_seed(0)
            )
        else:
            losses = image_label_losses(model, images, weights=LossWeights())
        torch.stack(list(losses.values())).sum().backward()

    return {"ours fp32": step, "ours bf16": step}


TOP = 20


@torch.inference_mode()
def found_again(model: TwoStageDetector, image: Tensor, *, mixed: bool) -> tuple[int, int, int]:
    """How many of the `TOP` best detections of fp32 half or mixed precision finds too, with their class and at IoU 0.9;
    how many among its own `TOP` best; and how many there are."""
    exact = model.detect([image])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = model.detect([image], mixed=mixed)[0]
    overlap = box_iou(exact.boxes_xyxy[:TOP], other.boxes_xyxy)
    overlap[exact.class_ids[:TOP, None] != other.class_ids] = 0.0
    same = overlap >= 0.9
    return int(same.any(dim=1).sum()), int(same[:, :TOP].any(dim=1).sum()), min(TOP, len(exact.class_ids))


def agreement(goldens: Path, scenes: int = 60) -> dict[str, Any]:
    """Shares over all pictures of each detector, for both precisions."""
    models: dict[str, tuple[TwoStageDetector, list[Path]]] = {
        f"{name}, weights of the goldens": (
            detector(name, goldens), sorted((goldens / "images").glob("img*_resized_*.png"))
        )
        for name in CLASSES
    }  # fmt: skip
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_world(Path(scratch), train=scenes, val=1, seed=11, image_labels_per_class=0)
        pictures = sorted((Path(scratch) / "train2017").glob("*.jpg"))
        models["built-in detector, trained"] = Detector.load().model, pictures
        for name, (model, files) in models.items():
            result[name] = {"pictures": len(files)}
            images = [torch.from_numpy(read_image(file)).permute(2, 0, 1).contiguous() for file in files]
            for precision in ("bf16", "mixed"):
                counts = [found_again(model, image, mixed=precision == "mixed") for image in images]
                total = sum(there for _, _, there in counts)
                result[name][precision] = {
                    "top_20_found": round(sum(found for found, _, _ in counts) / total, 4),
                    "among_its_top_20": round(sum(leading for _, leading, _ in counts) / total, 4),
                    "pictures_with_all": sum(leading == there for _, leading, there in counts),
                }
    return result


def measure(
    name: str, mode: str, model: TwoStageDetector, image: Tensor, *, threads: int, repeats: int
) -> dict[str, Any]:
    """Medians and ranges of each way, run in turn."""
    keep_freed_memory()  # as the program does
    torch.set_num_threads(threads)
    work = jobs(name, mode, model, image)
    if not bf16_pays(torch.device("cpu")):
        for way in ("ours bf16", "ours mixed"):
            work.pop(way, None)
    for way, run in work.items():
        seconds(run, way.split()[1])
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in work}
    for _ in range(repeats):
        for way, run in work.items():
            taken[way].append(seconds(run, way.split()[1]))
    result: dict[str, Any] = {"detector": name, "mode": mode, "threads": threads, "repeats": repeats, "seconds": {}}
    for way, pairs in taken.items():
        walls, cpus = [wall for wall, _ in pairs], [cpu for _, cpu in pairs]
        result["seconds"][way] = {
            "wall_median": round(statistics.median(walls), 3),
            "wall_range": [round(min(walls), 3), round(max(walls), 3)],
            "cpu_median": round(statistics.median(cpus), 3),
            "cpu_range": [round(min(cpus), 3), round(max(cpus), 3)],
        }
    if "plain fp32" in taken:
        ratios = [plain[1] / ours[1] for plain, ours in zip(taken["plain fp32"], taken["ours fp32"], strict=True)]
        result["plain_over_ours_cpu"] = round(statistics.median(ratios), 2)
    if (name, mode) in OFFICIAL_SECONDS:
        result["official_other_machine_2_threads_s"] = OFFICIAL_SECONDS[name, mode]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", choices=["coco", "lvis"], default=["coco", "lvis"])
    parser.add_argument(
        "--modes", nargs="+", choices=["detect", "train", "labels", "select", "agreement"], default=["detect"]
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--goldens", type=Path, default=Path(__file__).parents[2] / "shared" / "goldens")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "detectors.json")
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "load_at_start": os.getloadavg(),
        "note": arguments.note,
        "results": [],
    }
    image = picture(arguments.goldens)
    if "agreement" in arguments.modes and bf16_pays(torch.device("cpu")):
        record["bf16_against_fp32"] = agreement(arguments.goldens)
        print(json.dumps(record["bf16_against_fp32"]), flush=True)
    for name in arguments.detectors:
        model = detector(name, arguments.goldens)
        for mode in (mode for mode in arguments.modes if mode != "agreement"):
            for threads in arguments.threads:
                row = measure(name, mode, model, image, threads=threads, repeats=arguments.repeats)
                print(json.dumps(row), flush=True)
                record["results"].append(row)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
