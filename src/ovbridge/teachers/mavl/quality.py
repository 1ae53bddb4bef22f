"""How good a proposer is: class-agnostic recall and class-specific accuracy, by role.

Legend: G objects of an image, M merged proposals.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image, nms

from ovbridge.console import Ticker
from ovbridge.images import read_image
from ovbridge.structures import Proposals
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES, Proposer, class_query


def merge_proposals(per_query: Sequence[Proposals], *, top: int = 50, iou: float = 0.5) -> Proposals:
    """The best `top` of each query together, without duplicates (NMS), best first."""
    boxes = torch.cat([p.boxes_xyxy[:top] for p in per_query])
    scores = torch.cat([p.scores[:top] for p in per_query])
    keep = nms(boxes, scores, iou)
    return Proposals(boxes_xyxy=boxes[keep], scores=scores[keep])


def proposer_quality(
    proposer: Proposer,
    annotations: Path,
    images: Path,
    *,
    limit: int | None = None,
    at: Sequence[int] = (5, 50),
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Percentages by role (and "all"): "recall@k" at IoU 0.5 of the merged class-agnostic proposals, and
    "every_noun_top1", how often the best box of "every <noun>" is on (IoU >= 0.5) an object of that noun.

    Crowds are not counted. `limit` takes the first images only.
    """
    record = json.loads(annotations.read_text())
    categories = {c["id"]: c for c in record["categories"]}
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in record["annotations"]:
        if not item.get("iscrowd"):
            objects[item["image_id"]].append(item)
    chosen = [i for i in record["images"][:limit] if objects[i["id"]]]
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    with Ticker("proposals", len(chosen)) as tick:
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            pixels = [read_image(images / i["file_name"]) for i in part]
            present = [sorted({o["category_id"] for o in objects[i["id"]]}) for i in part]
            queries = [[*CLASS_AGNOSTIC_QUERIES, *(class_query(categories[c]["name"]) for c in ids)] for ids in present]
            for image, ids, found in zip(part, present, proposer.propose(pixels, queries), strict=True):
                size = (image["height"], image["width"])
                _count(hits, objects[image["id"]], categories, ids, found, size, at)
                tick()
    return {
        measure: {role: round(100.0 * float(np.mean(values)), 2) for role, values in sorted(roles.items())}
        for measure, roles in hits.items()
    }


def _count(
    hits: dict[str, dict[str, list[bool]]],
    objects: list[dict[str, Any]],
    categories: dict[int, dict[str, Any]],
    ids: list[int],
    found: list[Proposals],
    size: tuple[int, int],
    at: Sequence[int],
) -> None:
    agnostic = len(CLASS_AGNOSTIC_QUERIES)
    merged = clip_boxes_to_image(merge_proposals(found[:agnostic]).boxes_xyxy, size)
    truth = _boxes(objects)
    overlap_MG = box_iou(merged, truth)
    for g, item in enumerate(objects):
        role = categories[item["category_id"]].get("role", "base")
        for k in at:
            hit = bool((overlap_MG[:k, g] >= 0.5).any())
            hits[f"recall@{k}"][role].append(hit)
            hits[f"recall@{k}"]["all"].append(hit)
    for category_id, proposals in zip(ids, found[agnostic:], strict=True):
        role = categories[category_id].get("role", "base")
        same = _boxes([o for o in objects if o["category_id"] == category_id])
        best = clip_boxes_to_image(proposals.boxes_xyxy[:1], size)
        hit = bool((box_iou(best, same) >= 0.5).any())
        hits["every_noun_top1"][role].append(hit)
        hits["every_noun_top1"]["all"].append(hit)


def _boxes(objects: list[dict[str, Any]]) -> Tensor:
    xywh = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32)
    return torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
