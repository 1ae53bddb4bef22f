"""Latency and memory of detection as the vocabulary grows: 80, 1,203 and 21,000 names on the same picture.

    python benchmarks/vocabulary_growth.py --threads 2 --out benchmarks/results/vocabulary_growth.json

R50-FPN with the goldens' weights on one of their pictures, where a picture has 1,000 regions and 300 masks, the most
there can be (random weights leave no proposal, and names cost nothing then). The sizes are run in turn in
one process, in each precision that pays. Of memory it gives the growth of the process's peak, each size in a process
of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from detectors import detector, picture
from torch import Tensor

from ovbridge.allocator import keep_freed_memory
from ovbridge.detector import TwoStageDetector, lvis_r50_fpn
from ovbridge.detector.postprocess import select_detections
from ovbridge.device import bf16_pays

SIZES = (80, 1203, 21_000)


def bank(classes: int) -> Tensor:
    return torch.randn(classes, 512, generator=torch.Generator().manual_seed(classes))


def peak_megabytes() -> float:
    """Of this process alone: `ru_maxrss` of a child begins at its parent's."""
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def last_step(classes: int) -> None:
    """From 1,000 region embeddings to detections: the only part that knows of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    query = 50 * torch.nn.functional.normalize(torch.randn(1000, 512, generator=generator), dim=1)
    corner = torch.rand(1000, 2, generator=generator) * 700
    boxes = torch.cat([corner, corner + 10 + torch.rand(1000, 2, generator=generator) * 300], dim=1)
    text = torch.nn.functional.normalize(bank(classes), dim=1)
    config = lvis_r50_fpn().postprocess
    select_detections(boxes, query, text, torch.tensor([-4.6]), (800, 1088), config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goldens", type=Path, default=Path(__file__).parents[2] / "shared" / "goldens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "vocabulary_growth.json")
    parser.add_argument("--peak-of", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the program does
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        last_step(1)
        before = peak_megabytes()
        last_step(arguments.peak_of)
        print(peak_megabytes() - before)
        return

    image, model = picture(arguments.goldens), detector("lvis", arguments.goldens)
    banks = {classes: bank(classes) for classes in SIZES}
    precisions = ("fp32", "mixed", "bf16") if bf16_pays(torch.device("cpu")) else ("fp32",)
    record: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "image_hw": list(image.shape[1:]),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "load": os.getloadavg(),
        "note": arguments.note,
        "peak_growth_mb": {str(classes): peak_growth(classes, arguments.threads) for classes in SIZES},
        "seconds": {precision: latency(model, image, banks, precision, arguments.repeats) for precision in precisions},
    }
    print(json.dumps(record, indent=2))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


def latency(
    model: TwoStageDetector, image: Tensor, banks: dict[int, Tensor], precision: str, repeats: int
) -> dict[str, dict[str, Any]]:
    """Of one pass at each size, in turn, after one pass of each."""
    taken: dict[int, list[float]] = {classes: [] for classes in banks}
    for turn in range(repeats + 1):
        for classes, text in banks.items():
            began = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "fp32"):
                model.detect([image], text_bank_KD=text, mixed=precision == "mixed")
            if turn:
                taken[classes].append(time.perf_counter() - began)
    medians = {classes: statistics.median(values) for classes, values in taken.items()}
    return {
        str(classes): {
            "median": round(medians[classes], 3),
            "range": [round(min(values), 3), round(max(values), 3)],
            "over_80": round(medians[classes] / medians[SIZES[0]], 3),
        }
        for classes, values in taken.items()
    }


def peak_growth(classes: int, threads: int) -> float:
    command = [sys.executable, __file__, "--peak-of", str(classes), "--threads", str(threads)]
    return round(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout), 1)


if __name__ == "__main__":
    main()
