"""Random batches of 32 images out of a label store of 100,000 images, and its size on disk.

    python benchmarks/store.py --images 100000 --out benchmarks/results/store.json

Five regions an image with embeddings of 512 values, as the paper's RKD targets; random numbers, so nothing compresses.
Batches are read as a training worker reads them: `LabelStore.regions(keys)`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import lance
import numpy as np
import torch

from ovbridge.label_store import LabelledImage, LabelStore, Manifest
from ovbridge.structures import RegionTargets

DIM, REGIONS, BATCH, COMMIT = 512, 5, 32, 5000
MANIFEST = Manifest(
    table="regions",
    proposer="random",
    proposer_digest="0",
    proposer_trained_on="nothing",
    queries=("all objects",),
    selection={},
    encoder="random",
    encoder_digest="0",
    embedding_dim=DIM,
    crop_rule="tight",
)


def fill(path: Path, images: int) -> float:
    """Make a store of random labels; returns images written per second."""
    store = LabelStore.create_or_open(path, MANIFEST)
    generator = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    for first in range(0, images, COMMIT):
        count = min(COMMIT, images - first)
        embeddings = torch.randn(count, REGIONS, DIM, generator=generator)
        boxes, scores = torch.rand(count, REGIONS, 4, generator=generator) * 300, torch.rand(count, REGIONS)
        rows = [
            LabelledImage(
                image_key=f"{first + i:012d}.jpg",
                labels=RegionTargets(boxes_xyxy=boxes[i], embeddings=embeddings[i], scores=scores[i]),
            )
            for i in range(count)
        ]
        store.append("regions", rows)
    store.compact("regions")
    return images / (time.perf_counter() - started)


def read(path: Path, images: int, batches: int) -> dict[str, float]:
    reader = LabelStore.open(path)
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    reader.regions(["000000000000.jpg"])
    opening = time.perf_counter() - started
    seconds, processor = [], []
    for _ in range(batches):
        keys = [f"{i:012d}.jpg" for i in rng.choice(images, BATCH, replace=False)]
        started, used = time.perf_counter(), time.process_time()
        found = reader.regions(keys)
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
        assert len(found) == BATCH
    quantiles = np.quantile(np.array(seconds) * 1e3, [0.1, 0.5, 0.9])
    return {
        "first_ms": round(opening * 1e3, 1),
        "p10_ms": round(float(quantiles[0]), 3),
        "median_ms": round(float(quantiles[1]), 3),
        "p90_ms": round(float(quantiles[2]), 3),
        "median_cpu_ms": round(float(np.median(processor)) * 1e3, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--store", type=Path, help="keep the store here and use it again")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = arguments.store or Path(scratch)
        written = None if (path / "regions.lance").exists() else round(fill(path, arguments.images), 1)
        summary = {
            "what": f"batches of {BATCH} images, {REGIONS} regions of {DIM} values each, {arguments.images} images",
            "read": read(path, arguments.images, arguments.batches),
            "bytes_per_image": LabelStore.open(path).status()["regions"]["bytes_per_image"],
            "images_written_per_second": written,
            "load_average": os.getloadavg(),
            "versions": {
                "python": platform.python_version(),
                "lance": lance.__version__,
                "torch": str(torch.__version__),
            },
        }
    print(json.dumps(summary))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
