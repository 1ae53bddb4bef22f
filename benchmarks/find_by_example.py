"""Which embedding of an example crop finds most: AP50 in the built-in world, for each way to embed and to compare.

usage: python benchmarks/find_by_example.py --checkpoint detector.safetensors --world DIR [--images 100]

Every class with ground truth is looked for by crops of it from the training images (drawn with a fixed seed, sides of
at least 16 pixels), in validation images that none of them comes from. Scores are cosines of unit vectors, shifted by
their mean, so that only their order counts.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.detector import PostprocessConfig, to_original_size
from ovbridge.detector.boxes import decode_boxes
from ovbridge.detector.pooling import batch_rois
from ovbridge.detector.postprocess import select_detections
from ovbridge.evaluation.coco_ap import class_precision
from ovbridge.images import read_image
from ovbridge.inference import Detector
from ovbridge.teachers.clip import load_clip

GAIN = 8.0
SHOTS = (1, 3)
LEAST_SIDE = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/find_by_example.json"))
    options = parser.parse_args()
    record = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    detector = Detector.load(options.checkpoint, "cpu")
    head = detector.model.roi_head
    truth = json.loads((options.world / "annotations" / "instances_val2017.json").read_text())
    roles = {r["category_id"]: r["role"] for r in detector.metadata.vocabulary if r["role"] in ("base", "novel")}
    truth["images"] = truth["images"][: options.images]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept and a["category_id"] in roles]
    truth["categories"] = [c for c in truth["categories"] if c["id"] in roles]
    names = {c["id"]: c["name"] for c in truth["categories"]}
    crops = _crops(options.world, names)
    regions = [_regions(detector, read_image(options.world / "val2017" / i["file_name"])) for i in truth["images"]]
    clip = load_clip(detector.metadata.text_encoder)
    by_clip = {c: F.normalize(clip.embed_crops(crops[c]), dim=1) for c in names}
    by_self = {c: torch.cat([_own_feature(detector, crop) for crop in crops[c]]) for c in names}
    text_KD = detector.text_rows(list(names.values()))
    ways: dict[str, tuple[str, Any]] = {
        "CLIP, distilled": ("distilled", by_clip),
        "CLIP, classification": ("classified", by_clip),
        "detector, distilled": ("distilled", {c: head.distilled_unit_embeddings(f) for c, f in by_self.items()}),
        "detector, classification": ("classified", {c: head.unit_embeddings(f) for c, f in by_self.items()}),
    }
    result: dict[str, Any] = {"words": _ap50(truth, roles, regions, "classified", text_KD)}
    for way, (side, units) in ways.items():
        for shots in SHOTS:
            rows_KD = torch.stack([F.normalize(units[c][:shots].mean(dim=0), dim=0) for c in names])
            result[f"{way}, {shots}"] = _ap50(truth, roles, regions, side, rows_KD)
    return {"images": len(regions), "classes": len(names), "ap50": result}


def _crops(world: Path, names: dict[int, str]) -> dict[int, list[np.ndarray]]:
    record = json.loads((world / "annotations" / "instances_train2017.json").read_text())
    files = {image["id"]: image["file_name"] for image in record["images"]}
    boxes = defaultdict(list)
    for annotation in record["annotations"]:
        if not annotation.get("iscrowd") and min(annotation["bbox"][2:]) >= LEAST_SIDE:
            boxes[annotation["category_id"]].append(annotation)
    generator = np.random.default_rng(0)
    crops: dict[int, list[np.ndarray]] = {}
    for category in names:
        chosen = generator.choice(len(boxes[category]), max(SHOTS), replace=False)
        for annotation in (boxes[category][i] for i in chosen):
            x, y, w, h = annotation["bbox"]
            pixels = read_image(world / "train2017" / files[annotation["image_id"]])
            crop = pixels[int(max(y, 0)) : int(np.ceil(y + h)), int(max(x, 0)) : int(np.ceil(x + w))]
            crops.setdefault(category, []).append(crop)
    return crops


def _own_feature(detector: Detector, crop: np.ndarray) -> Tensor:
    """[1, F] of the crop in the middle of a grey picture of the world's size."""
    side = 272
    canvas = np.full((max(side, crop.shape[0]), max(side, crop.shape[1]), 3), 124, np.uint8)
    top, left = (canvas.shape[0] - crop.shape[0]) // 2, (canvas.shape[1] - crop.shape[1]) // 2
    canvas[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    small = detector.resize(canvas)
    scale = small.shape[1] / canvas.shape[1]
    box = torch.tensor([[left, top, left + crop.shape[1], top + crop.shape[0]]]) * scale
    encoded = detector.model.encode([torch.from_numpy(small).permute(2, 0, 1)])
    return detector.model.roi_head.in_chunks(encoded.features, batch_rois([box]))


def _regions(detector: Detector, pixels: np.ndarray) -> dict[str, Any]:
    """Boxes and both unit embeddings of every proposal of one picture."""
    model = detector.model
    small = detector.resize(pixels)
    image = torch.from_numpy(small).permute(2, 0, 1)
    proposals = model.propose([image], model.config.rpn.post_nms_test)[0]
    rois = batch_rois([proposals.boxes_xyxy])
    features = model.roi_head.in_chunks(model.encode([image]).features, rois)
    return {
        "boxes": decode_boxes(rois[:, 1:], model.roi_head.box_regressor(features), model.config.roi.box_weights),
        "classified": model.roi_head.unit_embeddings(features),
        "distilled": model.roi_head.distilled_unit_embeddings(features),
        "small": small.shape[:2],
        "original": pixels.shape[:2],
    }


def _ap50(
    truth: dict[str, Any], roles: dict[int, str], regions: list[dict[str, Any]], side: str, rows_KD: Tensor
) -> dict[str, float]:
    categories = [category["id"] for category in truth["categories"]]
    mean = torch.cat([region[side] @ rows_KD.T for region in regions]).mean()
    config = PostprocessConfig(score_threshold=1e-9)
    results = []
    for image, region in zip(truth["images"], regions, strict=True):
        raw = select_detections(region["boxes"], GAIN * region[side], rows_KD, -GAIN * mean, region["small"], config)
        found = to_original_size(raw, region["small"], region["original"])
        for (x1, y1, x2, y2), score, row in zip(
            found.boxes_xyxy.tolist(), found.scores.tolist(), found.class_ids.tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image["id"], "category_id": categories[row], "bbox": box, "score": score})
    precision = class_precision(truth, results)
    ap, role = precision.ap_at(0.5), np.array([roles[c] for c in precision.category_ids])
    groups = {"base": role == "base", "novel": role == "novel", "all": role != ""}
    return {group: round(float(np.nanmean(ap[members])), 1) for group, members in groups.items()}


if __name__ == "__main__":
    main()
