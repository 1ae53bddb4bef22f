"""Predicted efficiency of training and labelling on many GPUs, from a step's time and a gradient's size.

    python benchmarks/scaling.py --step-seconds 0.4 --parameters 43e6

The model: a step takes its compute time plus what of the ring all-reduce the backward pass cannot hide. A ring over N
GPUs moves 2 (N - 1) / N gradients through the slowest link and waits 2 (N - 1) link latencies per bucket of 25 MB.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

BUCKET_BYTES = 25e6
"""Gradients are sent in buckets of this size (DistributedDataParallel's default)."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """The slowest link of a ring."""

    name: str
    bytes_per_second: float
    latency_seconds: float


LINKS = (
    Link(name="NVLink, one machine", bytes_per_second=150e9, latency_seconds=5e-6),
    Link(name="InfiniBand 400 Gbit/s", bytes_per_second=40e9, latency_seconds=10e-6),
    Link(name="Ethernet 25 Gbit/s", bytes_per_second=2.5e9, latency_seconds=40e-6),
)
"""Bandwidths that collectives reach, about 80 % of the wire."""


def all_reduce_seconds(gradient_bytes: float, gpus: int, link: Link) -> float:
    """A ring all-reduce over `gpus` GPUs, nothing hidden."""
    buckets = max(gradient_bytes / BUCKET_BYTES, 1.0)
    return 2 * (gpus - 1) * (gradient_bytes / gpus / link.bytes_per_second + buckets * link.latency_seconds)


def efficiency(step_seconds: float, gradient_bytes: float, gpus: int, link: Link, *, straggle: float = 0.03) -> float:
    """Images a second a GPU against those of one GPU alone.

    Two thirds of a step are its backward pass, of which half can hide communication. `straggle`: share of a step that
    the slowest of 64 processes takes longer (image sizes differ); it grows with the logarithm of their number.
    """
    import math

    exposed = max(0.0, all_reduce_seconds(gradient_bytes, gpus, link) - step_seconds / 3)
    waiting = straggle * step_seconds * math.log(gpus) / math.log(64)
    return step_seconds / (step_seconds + exposed + waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-seconds", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--parameters", type=float, default=43e6, help="that learn; 4 bytes of gradient each")
    parser.add_argument("--label-rate", type=float, nargs="+", default=[5.0, 20.0], help="images a second a GPU")
    parser.add_argument("--label-images", type=float, default=14e6)
    settings = parser.parse_args()
    print("| link | step s | 8 GPUs | 64 GPUs | 512 GPUs |\n|---|---:|---:|---:|---:|")
    for link in LINKS:
        for step in settings.step_seconds:
            sizes = (8,) if "one machine" in link.name else (8, 64, 512)
            found = [f"{efficiency(step, 4 * settings.parameters, n, link):.0%}" for n in sizes]
            print(f"| {link.name} | {step:g} | {' | '.join([*found, *['-'] * (3 - len(found))])} |")
    print("\n| images/s a GPU | 8 GPUs | 64 GPUs | 512 GPUs | read MB/s at 512 |\n|---:|---:|---:|---:|---:|")
    for rate in settings.label_rate:
        hours = [f"{settings.label_images / rate / n / 3600:.1f} h" for n in (8, 64, 512)]
        print(f"| {rate:g} | {' | '.join(hours)} | {512 * rate * 0.11:.0f} |")


if __name__ == "__main__":
    main()
