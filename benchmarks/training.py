"""Training: our loop against a plain one, waiting for data, and decoding against Pillow.

    python benchmarks/training.py --out benchmarks/results/training.json

The detectors are the paper's two at full size (two pictures of 800 x 1,067 or so a step) and the built-in world's
student. The plain loop is what one writes first: fp32, contiguous memory, images read when they are needed,
torchvision's RoIAlign of every cell, stage 5 on every region, frozen norms as layers of their own, SGD parameter by
parameter, the C library's own way with freed memory. Ours runs as one process with all threads, and the world's student
also as one process a core (torchrun). All train the same detector on the same batches, each window of steps in a
process of its own; windows alternate, and medians are compared. bf16 is used where the processor computes it, which the
result says. Processor seconds are compared too: they hardly depend on what else the machine does, and with one thread
(OMP_NUM_THREADS=1) their ratio is that of an idle core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from detectors import plain_pooling
from PIL import Image
from torch import nn
from torch.nn import functional

from ovbridge.allocator import keep_freed_memory
from ovbridge.config_tree import apply_overrides
from ovbridge.data.ovd_files import write_coco_ovd
from ovbridge.data.transforms import PhotometricJitter, TrainTransform
from ovbridge.detector import TwoStageDetector, build_detector, lvis_r50_fpn, world_r18_fpn
from ovbridge.detector.architectures import coco_r50_c4
from ovbridge.detector.backbone import BottleneckBlock, ConvNorm, FrozenBatchNorm
from ovbridge.detector.pixels import PixelNormalizer
from ovbridge.detector.roi_head import Stage5Trunk
from ovbridge.device import bf16_pays, default_device
from ovbridge.images import read_image
from ovbridge.recipes import recipe_named
from ovbridge.run_config import RunConfig
from ovbridge.structures import BoxLabels
from ovbridge.train_preparation import loss_function, prepare_model
from ovbridge.training.batches import build_batches
from ovbridge.training.inputs import TrainingInputs, open_inputs
from ovbridge.training.logging import read_log
from ovbridge.training.loop import TrainingParts, step_generator, train
from ovbridge.training.optim import build_optimizer
from ovbridge.training.prefetch import Batch
from ovbridge.training.ranks import Peers, joined_run
from ovbridge.training.stages import freeze, set_training_mode
from ovbridge.training.start import starting_detector
from ovbridge.world.write import write_world


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One window of steps of one detector, after a step of warm-up."""

    batch: int
    steps: int


WORKLOADS = {
    "coco": Workload(batch=2, steps=2),
    "lvis": Workload(batch=2, steps=4),
    "world": Workload(batch=16, steps=24),
}
THREADS = torch.get_num_threads()
ONE_PROCESS = "one process"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--detectors", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--decodes", type=int, default=20)
    parser.add_argument("--loop", choices=("plain", "ours"), help="measure one window of this loop and nothing else")
    parser.add_argument("--world", type=Path, help="with --loop: where the pictures lie")
    settings = parser.parse_args()
    if settings.out is None:
        settings.out = Path(__file__).parent / "results" / "training.json"
    if settings.loop:
        one_window(settings)
        return
    keep_freed_memory()  # as the program does
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        write_world(world, train=settings.pictures, val=0, seed=77, image_labels_per_class=0)
        write_coco_ovd(world / "annotations", world / "annotations")
        np.save(world / "bank.npy", np.random.default_rng(0).normal(size=(80, 64)).astype(np.float32))
        record: dict[str, Any] = {
            "loops": {name: compare_loops(name, settings, world, Path(folder)) for name in settings.detectors},
            "data_wait": data_wait(config_of("world", world), Path(folder), 50, settings.workers),
            "decoding": decoding(settings.decodes),
            "learning_parameters": learning_parameters(),
        }
    record |= {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {THREADS} thread(s)",
        "device": str(default_device()),
        "bf16": bf16_pays(default_device()),
        "torch": torch.__version__,
        "load_average": os.getloadavg(),
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def config_of(name: str, world: Path) -> RunConfig:
    """The base stage of a recipe on the world's pictures, read from disk and resized as the recipe says.

    The full-size detectors start from random weights and name the world's 80 classes.
    """
    workload, config = WORKLOADS[name], recipe_named("world_base")
    data = replace(config.data, root=str(world), text_bank="bank.npy", cache_in_memory=False)
    config = replace(config, data=data)
    if name != "world":
        full = recipe_named(f"{name}_base")
        transform = replace(full.batches.det_transform, short_sides=(800,))
        batches = replace(config.batches, det_transform=transform)
        config = replace(config, detector=full.detector, optim=full.optim, batches=batches, init="")
    return apply_overrides(config, [f"batches.det={workload.batch}", "loop.save_every=1000000"])


def compare_loops(name: str, settings: argparse.Namespace, world: Path, folder: Path) -> dict[str, Any]:
    """Images a second of the loops, and how many times those of the plain one, medians over alternating windows."""
    contenders = {"plain": ("plain", 1), ONE_PROCESS: ("ours", 1)}
    if THREADS > 1 and name == "world":
        contenders[f"{THREADS} processes"] = ("ours", THREADS)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for window in range(settings.windows):
        for number, (contender, (loop, processes)) in enumerate(contenders.items()):
            out = folder / f"{name}_window{window}_{number}.json"
            runs[contender].append(in_own_process(name, loop, world, out, processes))
            print(name, contender, json.dumps(runs[contender][-1]), flush=True)
    found: dict[str, Any] = {"images_a_step": WORKLOADS[name].batch, "steps": WORKLOADS[name].steps}
    for unit in ("images_per_second", "images_per_cpu_second"):
        rates = {contender: [round(run[unit], 4) for run in windows] for contender, windows in runs.items()}
        middle = {contender: statistics.median(values) for contender, values in rates.items()}
        ratios = {contender: round(value / middle["plain"], 3) for contender, value in middle.items()}
        del ratios["plain"]
        found[unit] = {**rates, "times_plain": ratios}
    return found


def in_own_process(name: str, loop: str, world: Path, out: Path, processes: int) -> dict[str, float]:
    """One window of `loop` in a fresh process, or in several that share the threads."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable, *(launcher if processes > 1 else []), __file__, "--loop", loop, "--world", str(world),
        "--out", str(out), "--detectors", name,
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(THREADS // processes)}
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{loop} in {processes} process(es) failed: {done.stderr}")
    found: dict[str, float] = json.loads(out.read_text())
    return found


def one_window(settings: argparse.Namespace) -> None:
    """Measure one loop in this process, and its peers where torchrun started some; the first writes `--out`."""
    (name,) = settings.detectors
    config, steps = config_of(name, settings.world), WORKLOADS[name].steps
    if settings.loop == "plain":
        settings.out.write_text(json.dumps(plain_rates(config, steps)))
        return
    keep_freed_memory()  # as the program does
    with joined_run() as (peers, _):
        found = run_ours(config, settings.out.with_suffix(""), steps, 0, peers)
    if peers.ranks.is_first:
        settings.out.write_text(json.dumps(found))


def _model(config: RunConfig, inputs: TrainingInputs) -> TwoStageDetector:
    if config.init:
        model = starting_detector(config.detector, config.stage, inputs.bank, Path(config.init), seed=0)
    else:
        projection = replace(config.detector.projection, embedding_dim=inputs.bank.dim)
        model = build_detector(replace(config.detector, projection=projection), inputs.bank.embeddings_KD, seed=0)
        for block in model.modules():  # Random residuals would add up until hardly a proposal is left.
            if isinstance(block, BottleneckBlock) and isinstance(block.conv3.norm, FrozenBatchNorm):
                block.conv3.norm.weight.fill_(0.1)
        freeze(model, config.stage.frozen)
        set_training_mode(model, config.stage.batch_norm)
    return model.to(default_device())


def plain_rates(config: RunConfig, steps: int) -> dict[str, float]:
    """The loop that one writes first; one step of warm-up."""
    inputs = open_inputs(config.data, config.stage, with_masks=config.detector.mask is not None)
    model = _model(config, inputs)
    if isinstance(model.roi_head.trunk, Stage5Trunk):
        model.roi_head.trunk.starts_on_the_map = False
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, foreach=False)
    losses = loss_function(config, inputs)
    batches = iter(build_batches(inputs, config.data, config.stage, config.batches, seed=0))
    began = cpu = 0.0
    with plain_pooling(), channels_first_maps(), plain_norms():
        for step in range(steps + 1):
            if step == 1:
                began, cpu = time.perf_counter(), time.process_time()
            kind, images = next(batches)
            found = losses(model, Batch(kind=kind, images=images), step_generator(0, step))
            optimizer.zero_grad()
            torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            float(sum(loss.detach() for loss in found.values()))
    count = steps * config.batches.det
    return {
        "images_per_second": count / (time.perf_counter() - began),
        "images_per_cpu_second": count / (time.process_time() - cpu),
    }


@contextmanager
def channels_first_maps() -> Iterator[None]:
    """Feature maps in PyTorch's own layout: they take that of the picture."""
    ours = PixelNormalizer.forward

    def channels_first(self: PixelNormalizer, *args: Any, **named: Any) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        batch, sizes = ours(self, *args, **named)
        return batch.contiguous(), sizes

    with patch.object(PixelNormalizer, "forward", channels_first):
        yield


@contextmanager
def plain_norms() -> Iterator[None]:
    """Frozen norms as layers of their own."""
    ours = ConvNorm.forward

    def forward(self: ConvNorm, x: torch.Tensor, more_bias: torch.Tensor | None = None) -> torch.Tensor:
        norm = self.norm
        if not isinstance(norm, FrozenBatchNorm):
            return ours(self, x)
        x = functional.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    with patch.object(ConvNorm, "forward", forward):
        yield


def run_ours(config: RunConfig, folder: Path, steps: int, workers: int, peers: Peers | None = None) -> dict[str, float]:
    """`training.loop`: rates and data wait over the steps after the first, from the log and the processor's clock.

    Up to two batches are loaded ahead while the first step runs, which flatters a window of few steps a little.
    """
    peers = peers or Peers()
    ranks = peers.ranks
    folder.mkdir(parents=True, exist_ok=True)
    config = apply_overrides(config, [f"loop.steps={steps + 1}", "loop.log_every=1", f"batches.workers={workers}"])
    inputs = open_inputs(config.data, config.stage, with_masks=config.detector.mask is not None)
    model = _model(config, inputs)
    model = model.to(memory_format=torch.channels_last)
    prepare_model(model, config, peers)
    computed, starts = loss_function(config, inputs), list[float]()

    def losses(model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        starts.append(time.process_time())
        return computed(model, batch, generator)

    batches = build_batches(
        inputs, config.data, config.stage, config.batches, seed=0, rank=ranks.rank, world_size=ranks.world_size
    )
    parts = TrainingParts(model=model, optimizer=build_optimizer(model, config.optim), batches=batches, losses=losses)
    train(parts, folder, config=config.loop, optim=config.optim, seed=0, stage="base", peers=peers)
    used = sum(seconds for (seconds,) in peers.gather([time.process_time() - starts[1]]))
    lines = read_log(folder / "log.jsonl")[1:]
    seconds = sum(config.batches.det / line["images_per_second"] for line in lines)
    waited = sum(line["data_wait"] * config.batches.det / line["images_per_second"] for line in lines)
    count = len(lines) * config.batches.det
    return {
        "images_per_second": count / seconds,
        "images_per_cpu_second": count / used,
        "data_wait": waited / seconds,
    }


def data_wait(config: RunConfig, folder: Path, steps: int, workers: int) -> dict[str, Any]:
    """Share of the time that training waits for images, after the first step, for which the loaders start."""
    found = {}
    for count in dict.fromkeys((0, workers)):
        found[f"{count} workers"] = round(run_ours(config, folder / f"wait{count}", steps, count)["data_wait"], 4)
    return found


def decoding(repeats: int) -> dict[str, Any]:
    """640 x 480 JPEGs a second on one core: Pillow decoding alone, and decoding, resizing to 800, flip and jitter."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        smooth.save(path, quality=90)
        transform = TrainTransform(short_sides=(800,), jitter=PhotometricJitter())
        boxes = BoxLabels(boxes_xyxy=torch.tensor([[10.0, 10, 300, 300]]), class_ids=torch.zeros(1, dtype=torch.int64))

        def pillow() -> None:
            np.asarray(Image.open(path).convert("RGB"))

        def pillow_resized() -> None:
            np.asarray(Image.open(path).convert("RGB").resize((1067, 800), Image.Resampling.BILINEAR))

        def ours() -> None:
            read_image(path)

        def augmented() -> None:
            transform(read_image(path), image_id=0, generator=torch.Generator().manual_seed(0), boxes=boxes)

        found = {}
        for name, task in (
            ("pillow_decode", pillow),
            ("our_decode", ours),
            ("pillow_decode_and_resize", pillow_resized),
            ("our_decode_resize_flip_jitter", augmented),
        ):
            times = []
            for _ in range(repeats):
                began = time.process_time()
                task()
                times.append(time.process_time() - began)
            found[name] = round(1 / max(statistics.median(times), 1e-9), 1)
    return {"jpegs_per_cpu_second": found}


def learning_parameters() -> dict[str, int]:
    """Parameters with a gradient, which all processes exchange each step."""
    found = {}
    for config in (coco_r50_c4(), lvis_r50_fpn(), world_r18_fpn(embedding_dim=64)):
        with torch.device("cpu"):
            model = build_detector(config, torch.ones(80, config.projection.embedding_dim))
        found[config.name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return found


if __name__ == "__main__":
    main()
