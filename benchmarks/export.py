"""Exported detectors against torch: latency side by side, size of the files, and AP in the built-in world.

usage: python benchmarks/export.py --checkpoint detector.safetensors --world DIR [--images 40] [--calibration 16]

Every picture is detected by each of them in turn, so that whatever else runs meets all alike. Processor time of this
process is given beside wall time: it does not count the time in which other programs ran.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from ovbridge.data.coco import CocoDataset
from ovbridge.detector import RawDetections, to_original_size
from ovbridge.evaluation import protocols
from ovbridge.export.onnx_file import OnnxPrecision, export_onnx
from ovbridge.images import read_image
from ovbridge.inference import Detector
from ovbridge.structures import Detections

Array = np.ndarray[Any, Any]
PRECISIONS: tuple[OnnxPrecision, ...] = ("fp32", "fp16", "int8")
THRESHOLD = 0.05


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--also-running", default="not recorded")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    detector = Detector.load(options.checkpoint, "cpu")
    annotations = options.world / "annotations" / "instances_val2017_ovd.json"
    truth = json.loads(annotations.read_text())
    truth["images"] = truth["images"][: options.images]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "val.json").write_text(json.dumps(truth))
        dataset = CocoDataset.load(folder / "val.json")
        wanted = dataset.vocabulary.names
        text_KD = detector.text_rows(wanted)
        train = sorted((options.world / "train2017").glob("*.jpg"))[: options.calibration]
        detect: dict[str, Callable[[Array], Detections]] = {
            "torch": lambda pixels: detector.detect(pixels, wanted, score_threshold=THRESHOLD)
        }
        bytes_of = {"torch": options.checkpoint.stat().st_size}
        for precision in PRECISIONS:
            path = folder / f"{precision}.onnx"
            pictures = (detector.resize(read_image(file)) for file in train)
            bytes_of[precision] = export_onnx(
                detector.model, detector.metadata, path, precision=precision, calibration=pictures
            ).bytes
            detect[precision] = _onnx(path, detector, text_KD.numpy(), wanted, options.threads)
        images = [
            (image["id"], read_image(options.world / "val2017" / image["file_name"])) for image in truth["images"]
        ]
        seconds, results = _alternate(detect, images, dataset)
        ap50 = {
            title: protocols.evaluate(folder / "val.json", found, "ov-coco", strict=False)["ap50"]
            for title, found in results.items()
        }
    wall, cpu = ({title: [pair[i] for pair in pairs] for title, pairs in seconds.items()} for i in (0, 1))
    return {
        "images": len(images),
        "names": len(wanted),
        "threads": options.threads,
        "also_running": options.also_running,
        "versions": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "machine": platform.machine(),
        },
        "megabytes": {title: round(size / 1e6, 2) for title, size in bytes_of.items()},
        "wall_ms": {title: _spread(values) for title, values in wall.items()},
        "processor_ms": {title: _spread(values) for title, values in cpu.items()},
        "processor_time_over_torch": {
            title: round(statistics.median(a / b for a, b in zip(values, cpu["torch"], strict=True)), 3)
            for title, values in cpu.items()
        },
        "ap50": ap50,
    }


def _onnx(path: Path, detector: Detector, text_KD: Array, names: tuple[str, ...], threads: int) -> Callable[..., Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def detect(pixels: Array) -> Detections:
        small = detector.resize(pixels)
        inputs = {
            "images": small[None],
            "image_sizes": np.array([small.shape[:2]], dtype=np.int64),
            "vocabulary": text_KD,
            "score_threshold": np.array([THRESHOLD], np.float32),
        }
        boxes, scores, class_ids, _ = (torch.from_numpy(value) for value in session.run(None, inputs)[:4])
        raw = RawDetections(boxes_xyxy=boxes, scores=scores, class_ids=class_ids)
        fitted = to_original_size(raw, small.shape[:2], pixels.shape[:2])
        return Detections(boxes_xyxy=fitted.boxes_xyxy, scores=fitted.scores, class_ids=fitted.class_ids, names=names)

    return detect


def _alternate(
    detect: dict[str, Callable[[Array], Detections]], images: list[tuple[int, Array]], dataset: CocoDataset
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, list[dict[str, Any]]]]:
    """(wall, processor) seconds of each picture and COCO results, by detector."""
    seconds: dict[str, list[tuple[float, float]]] = {title: [] for title in detect}
    results: dict[str, list[dict[str, Any]]] = {title: [] for title in detect}
    for run in detect.values():
        run(images[0][1])
    for image_id, pixels in images:
        for title, run in detect.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found = run(pixels)
            seconds[title].append((time.perf_counter() - wall, time.process_time() - cpu))
            results[title] += found.to_coco(image_id, dataset.vocabulary.category_ids)
    return seconds, results


def _spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, middle, high = (round(1000 * value, 2) for value in statistics.quantiles(values, n=4))
    return {"median": middle, "quartile_1": low, "quartile_3": high}


if __name__ == "__main__":
    main()
