"""Which samples make up which batch: an endless, reproducible order of indices, free of any image.

Two sources share one index space: detection images come first (0 … n_det - 1), image-label ones after.
Semantics of the official multi-source sampler: indices are drawn with replacement by weight, each goes to the
bucket of its source and shape, and a bucket that is full is a batch. So every batch is of one source.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_CHUNK = 4096


def repeat_factors(class_ids_of_image: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """[n] how often each image is seen an epoch: max over its classes of max(1, sqrt(threshold / frequency)).

    Frequency is the share of images that hold the class (LVIS, Gupta et al. 2019). Images without classes get 1.
    """
    sets = [np.unique(ids).tolist() for ids in class_ids_of_image]
    counts = Counter(c for ids in sets for c in ids)
    factor = {c: max(1.0, (threshold * len(sets) / count) ** 0.5) for c, count in counts.items()}
    return np.array([max((factor[c] for c in ids), default=1.0) for ids in sets], dtype=np.float64)


def source_weights(factors: Sequence[np.ndarray], ratio: Sequence[float]) -> Tensor:
    """[Σ n] sampling weights such that the sources are drawn in the proportion of `ratio`.

    Args:
        factors: For each source its images' repeat factors (ones without repeat-factor sampling).
        ratio: For each source its share of the drawn images, e.g. (1, 4).
    """
    largest = max(len(f) for f in factors)
    return torch.cat(
        [
            torch.from_numpy(np.asarray(f)).float() * (largest / float(np.sum(f)) * share / sum(ratio))
            for f, share in zip(factors, ratio, strict=True)
        ]
    )


def weighted_draws(weights: Tensor, seed: int) -> Iterator[int]:
    """Endless indices drawn with replacement; the order does not depend on how many are taken at once."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.multinomial(weights, _CHUNK, replacement=True, generator=generator).tolist()


def shuffled_epochs(factors: np.ndarray, seed: int) -> Iterator[int]:
    """Endless indices, each epoch a fresh shuffle; a factor of 2.3 means 2 or 3 times an epoch, at random."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.from_numpy(np.floor(factors)).long()
    fraction = torch.from_numpy(factors - np.floor(factors))
    while True:
        times = whole + (torch.rand(len(fraction), generator=generator, dtype=torch.float64) < fraction).long()
        indices = torch.arange(len(times)).repeat_interleave(times)
        yield from indices[torch.randperm(len(indices), generator=generator)].tolist()


def batches(
    indices: Iterator[int], bucket_of: Callable[[int], tuple[int, bool]], batch_sizes: Sequence[int]
) -> Iterator[list[tuple[int, int]]]:
    """Group an index stream into batches of one bucket each.

    Args:
        indices: The stream.
        bucket_of: Index → (source, whether wider than high).
        batch_sizes: Images a batch for each source.

    Yields:
        Lists of (index, number of the draw); the latter is unique in the stream.
    """
    buckets: defaultdict[tuple[int, bool], list[tuple[int, int]]] = defaultdict(list)
    for draw, index in enumerate(indices):
        key = bucket_of(index)
        buckets[key].append((index, draw))
        if len(buckets[key]) == batch_sizes[key[0]]:
            yield buckets.pop(key)
