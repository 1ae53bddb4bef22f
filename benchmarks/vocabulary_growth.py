"""Latency and memory of detection as the vocabulary grows: 80, 1,203 and 21,000 names on the same picture.

    python benchmarks/vocabulary_growth.py --short-side 800 --out benchmarks/results/vocabulary_growth.json

The sizes are run in turn in one process. Of memory it gives the growth of the process's peak, each size in a process of
its own.
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
from torch import Tensor

from ovbridge.allocator import keep_freed_memory
from ovbridge.detector import build_detector, lvis_r50_fpn
from ovbridge.detector.postprocess import select_detections

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
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--part", choices=["detect", "last"], default="detect", help="all, or what follows the head")
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

    height, width = arguments.short_side, arguments.short_side * 4 // 3
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    banks = {classes: bank(classes) for classes in SIZES}
    model = build_detector(lvis_r50_fpn(transfer=True), banks[1203]).eval() if arguments.part == "detect" else None
    taken: dict[int, list[tuple[float, float]]] = {classes: [] for classes in SIZES}
    for turn in range(arguments.repeats + 1):
        for classes, text in banks.items():
            wall, cpu = time.perf_counter(), time.process_time()
            if model is None:
                last_step(classes)
            else:
                model.detect([image], text_bank_KD=text)
            if turn:
                taken[classes].append((time.perf_counter() - wall, time.process_time() - cpu))
    base = [cpu for _, cpu in taken[SIZES[0]]]
    results: dict[str, Any] = {}
    for classes, pairs in taken.items():
        walls, cpus = [wall for wall, _ in pairs], [cpu for _, cpu in pairs]
        command = [sys.executable, __file__, "--peak-of", str(classes), "--threads", str(arguments.threads)]
        grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[str(classes)] = {
            "wall_median_s": round(statistics.median(walls), 3),
            "wall_range_s": [round(min(walls), 3), round(max(walls), 3)],
            "cpu_median_s": round(statistics.median(cpus), 3),
            "cpu_range_s": [round(min(cpus), 3), round(max(cpus), 3)],
            "cpu_over_80": round(statistics.median([cpu / first for cpu, first in zip(cpus, base, strict=True)]), 3),
            "peak_growth_mb": round(float(grown), 1),
        }
    record = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "part": arguments.part,
        "image_hw": [height, width] if model else None,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "load": os.getloadavg(),
        "note": arguments.note,
        "names": results,
    }
    print(json.dumps(record, indent=2))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
