"""Time of the paper's detectors beside what users would pick instead, on one picture, by number of names.

    python benchmarks/peers.py --threads 2 --out benchmarks/results/peers.json

Grounding DINO-T and OWLv2-B/16 are built from their configurations in `transformers` with random weights, since nothing
is downloaded; their time does not depend on the weights. Ours does, so ours have the goldens' weights by name, with
which the proposal network gives all 1,000 regions and the detector all 300 masks, the most there can be. All run in
turn in one process. Grounding DINO reads 256 text tokens a pass, about 80
names, so for 1,203 names its time is that of one pass times 16 (calculated, not run). Its sampling is the pure PyTorch
one. OWLv2 is given its text embeddings (its text tower is run once a vocabulary), as our classifier is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
import transformers
from detectors import detector, picture
from torch import Tensor, nn
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    SwinConfig,
)

from ovbridge.allocator import keep_freed_memory
from ovbridge.device import bf16_pays

HEIGHT, WIDTH = 800, 1066
TOKENS_A_PASS = 256
PASSES_FOR_1203 = 16
NAMES = (80, 1203)
SWIN_TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}


def ours(name: str, goldens: Path, names: int) -> Callable[[], Any]:
    model = detector(name, goldens, names).requires_grad_(False)
    image = picture(goldens)
    return lambda: model.detect([image])


def grounding_dino() -> Callable[[], Any]:
    backbone = SwinConfig(**SWIN_TINY, out_features=["stage2", "stage3", "stage4"])
    model = _frozen(GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=backbone)))
    pixels, mask = torch.randn(1, 3, HEIGHT, WIDTH), torch.ones(1, HEIGHT, WIDTH, dtype=torch.int64)
    # 85 phrases of two tokens and a full stop between the marks of begin and end, as the tokenizer would give them.
    ids = torch.tensor([[101, *([2000, 2001, 1012] * 85)[: TOKENS_A_PASS - 2], 102]])
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    return lambda: model(pixel_values=pixels, pixel_mask=mask, input_ids=ids, attention_mask=ones, token_type_ids=zeros)


def owlv2(names: int) -> Callable[[], Any]:
    config = Owlv2Config(
        vision_config={"image_size": 960, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12},
        text_config={},
    )
    model: Any = _frozen(Owlv2ForObjectDetection(config))
    pixels = torch.randn(1, 3, 960, 960)
    queries = torch.randn(1, names, config.projection_dim)

    def detect() -> tuple[Tensor, Tensor]:
        features, _ = model.image_embedder(pixel_values=pixels)
        flat = features.flatten(1, 2)
        logits, _ = model.class_predictor(flat, queries)
        return logits, model.box_predictor(flat, features)

    return detect


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def seconds(work: Callable[[], Any], precision: str) -> tuple[float, float]:
    """(wall, processor) seconds of one run."""
    wall, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        work()
    return time.perf_counter() - wall, time.process_time() - processor


def _median_and_range(values: list[float]) -> dict[str, float | list[float]]:
    return {"median": round(statistics.median(values), 3), "range": [round(min(values), 3), round(max(values), 3)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--goldens", type=Path, default=Path(__file__).parents[2] / "shared" / "goldens")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "peers.json")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the program does
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    work: dict[str, Callable[[], Any]] = {
        **{f"ours R50-C4, {n} names": ours("coco", arguments.goldens, n) for n in NAMES},
        **{f"ours R50-FPN with masks, {n} names": ours("lvis", arguments.goldens, n) for n in NAMES},
        f"Grounding DINO-T, {TOKENS_A_PASS} tokens": grounding_dino(),
        **{f"OWLv2-B/16, {n} names": owlv2(n) for n in NAMES},
    }
    precisions = ["fp32", "bf16"] if bf16_pays(torch.device("cpu")) else ["fp32"]
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for turn in range(arguments.repeats + 1):
        for name, run in work.items():
            for precision in precisions:
                took = seconds(run, precision)
                if turn:  # the first one warms up
                    taken.setdefault((name, precision), []).append(took)
                    print(f"{name}, {precision}: {took[0]:.2f} s", flush=True)
    results: dict[str, Any] = {}
    for (name, precision), pairs in taken.items():
        walls, processors = zip(*pairs, strict=True)
        results.setdefault(name, {})[precision] = {
            "clock": _median_and_range(list(walls)),
            "processor": _median_and_range(list(processors)),
        }
    fast = precisions[-1]

    def clock(name: str) -> float:
        return float(results[name][fast]["clock"]["median"])

    dino = clock(f"Grounding DINO-T, {TOKENS_A_PASS} tokens")
    ratios = {
        kind: {
            "Grounding DINO-T over ours, 80 names": round(dino / clock(f"{kind}, 80 names"), 2),
            "OWLv2-B/16 over ours, 80 names": round(clock("OWLv2-B/16, 80 names") / clock(f"{kind}, 80 names"), 2),
            f"Grounding DINO-T ({PASSES_FOR_1203} passes) over ours, 1,203 names": round(
                PASSES_FOR_1203 * dino / clock(f"{kind}, 1203 names"), 1
            ),
        }
        for kind in ("ours R50-C4", "ours R50-FPN with masks")
    }
    record = {
        "image_hw": [HEIGHT, WIDTH],
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": transformers.__version__,
        },
        "load": os.getloadavg(),
        "note": arguments.note,
        "seconds": results,
        f"ratios_{fast}": ratios,
    }
    print(json.dumps(ratios, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
