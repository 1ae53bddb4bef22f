"""Time and memory of LVIS evaluation, and how much faster than lvis-api on a slice where both run.

    python benchmarks/evaluation.py                      # the slice, and the full size: 19,809 x 300 x 1,203
    python benchmarks/evaluation.py --images 2000        # a part of it, with what the whole would take at that rate

Synthetic: as many boxes an image and classes an image as LVIS v1 val has on average, half of the detections near a box.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FULL_IMAGES, DETECTIONS, CLASSES = 19_809, 300, 1_203
BOXES_AN_IMAGE = 12
NEGATIVE_CLASSES = 8
SIZE = 640


def synthetic(images: int, seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    """A federated ground truth and results as [N, 7] numbers."""
    rng = np.random.default_rng(seed)
    frequency = np.array(["f"] * 405 + ["c"] * 461 + ["r"] * 337)
    weight = np.array([1.0, 0.2, 0.02])[np.searchsorted([405, 866], np.arange(CLASSES), side="right")]
    weight /= weight.sum()
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k + 1, "name": f"c{k}", "frequency": str(frequency[k])} for k in range(CLASSES)],
    }
    rows = []
    for image in range(1, images + 1):
        xy = rng.uniform(0, SIZE * 0.7, (BOXES_AN_IMAGE, 2))
        wh = rng.uniform(8, SIZE * 0.3, (BOXES_AN_IMAGE, 2))
        classes = rng.choice(CLASSES, BOXES_AN_IMAGE, p=weight) + 1
        for box, category in zip(np.concatenate([xy, wh], axis=1).tolist(), classes.tolist(), strict=True):
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
        absent = np.setdiff1d(rng.choice(CLASSES, NEGATIVE_CLASSES) + 1, classes)
        truth["images"].append(
            {"id": image, "file_name": f"{image}.jpg", "width": SIZE, "height": SIZE,
             "neg_category_ids": absent.tolist(), "not_exhaustive_category_ids": []}
        )  # fmt: skip
        near = rng.integers(0, BOXES_AN_IMAGE, DETECTIONS)
        boxes = np.concatenate([xy, wh], axis=1)[near] * rng.uniform(0.8, 1.2, (DETECTIONS, 4))
        names = np.where(rng.random(DETECTIONS) < 0.5, classes[near], rng.integers(1, CLASSES + 1, DETECTIONS))
        scores = rng.random(DETECTIONS)
        rows.append(np.column_stack([np.full(DETECTIONS, image), boxes, scores, names]))
    return truth, np.concatenate(rows)


def seconds_ours(truth: dict[str, Any], rows: np.ndarray) -> tuple[float, float, float]:
    """Wall-clock and CPU seconds of the whole evaluation with all of its checks, and AP."""
    from ovbridge.evaluation import evaluate

    began, cpu = time.perf_counter(), time.process_time()
    record = evaluate(truth, rows, "lvis", iou_type="bbox")
    return time.perf_counter() - began, time.process_time() - cpu, record["ap"]["all"]


def seconds_lvis(truth: dict[str, Any], rows: np.ndarray) -> tuple[float, float, float]:
    """The same of lvis-api, reading its ground truth from a file as it must."""
    import lvis

    np.float = float  # type: ignore[attr-defined]  # lvis-api still says np.float
    records = [
        {"image_id": int(r[0]), "bbox": list(r[1:5]), "score": r[5], "category_id": int(r[6])} for r in rows.tolist()
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps({**truth, "annotations": [{**a, "segmentation": []} for a in truth["annotations"]]}))
        began, cpu = time.perf_counter(), time.process_time()
        gt = lvis.LVIS(str(path))
        judge = lvis.LVISEval(gt, lvis.LVISResults(gt, records), "bbox")
        judge.run()
        return time.perf_counter() - began, time.process_time() - cpu, 100 * judge.results["AP"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=FULL_IMAGES, help="of the large measurement")
    parser.add_argument("--slice", type=int, default=300, help="images of the comparison")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evaluation.json"))
    arguments = parser.parse_args()
    truth, rows = synthetic(arguments.slice)
    ours, theirs, gap = [], [], 0.0
    our_cpu, their_cpu = [], []
    for _ in range(arguments.repeats):
        seconds, busy, ap = seconds_ours(truth, rows)
        their_seconds, their_busy, their_ap = seconds_lvis(truth, rows)
        our_cpu.append(busy)
        their_cpu.append(their_busy)
        ours.append(seconds)
        theirs.append(their_seconds)
        gap = max(gap, abs(ap - their_ap))
    truth, rows = synthetic(arguments.images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time()
    large, _, _ = seconds_ours(truth, rows)
    record = {
        "slice": {
            "images": arguments.slice,
            "ours_seconds": ours,
            "lvis_api_seconds": theirs,
            "ratio_of_medians": round(statistics.median(theirs) / statistics.median(ours), 1),
            "ratios": sorted(round(b / a, 1) for a, b in zip(ours, theirs, strict=True)),
            "ours_cpu_seconds": our_cpu,
            "lvis_api_cpu_seconds": their_cpu,
            # What a busy machine does not distort, though it counts every thread of ours.
            "ratio_of_median_cpu_seconds": round(statistics.median(their_cpu) / statistics.median(our_cpu), 1),
            "largest_ap_difference": gap,
        },
        "large": {
            "images": arguments.images,
            "detections": len(rows),
            "classes": CLASSES,
            "seconds": round(large, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "share_of_lvis_val": round(arguments.images / FULL_IMAGES, 3),
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "memory_before_mib": round(before / 1024),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "threads": os.environ.get("RAYON_NUM_THREADS", "all"),
        "versions": {p: importlib.metadata.version(p) for p in ("hotcoco", "lvis", "numpy")}
        | {"python": platform.python_version()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
