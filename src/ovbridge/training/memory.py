"""How much memory a step takes, before the first one, and which batch fits when one did not.

Counted: what autograd keeps of one image's forward pass, weights, gradients and optimiser state. Not counted: the
working memory of single operations; estimates are therefore a lower bound, usually within a third.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

OPTIMIZER_COPIES = {"sgd": 1, "adamw": 2}
"""Tensors of the size of the weights that each optimiser keeps."""


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes."""

    fixed: int
    """Weights, gradients, optimiser state, averaged weights."""
    per_image: int
    """What one more image in a pass adds."""

    def of(self, images: int) -> int:
        """Bytes of a pass over so many images."""
        return self.fixed + images * self.per_image

    def largest_batch(self, available: int) -> int:
        """How many images fit into `available` bytes beside the weights, gradients and optimiser state."""
        return max((available - self.fixed) // max(self.per_image, 1), 0)


def memory_need(
    model: nn.Module, losses: Callable[[nn.Module], dict[str, Tensor]], *, images: int, optimizer: str, averaged: bool
) -> MemoryNeed:
    """Measured on a copy of the model by one forward pass.

    Args:
        model: as it will train; it is left alone.
        losses: the forward pass over a batch of `images` images.
        images: how many that batch has.
        optimizer: "sgd" or "adamw".
        averaged: whether an average of the weights is kept.
    """
    probe = copy.deepcopy(model)
    own = {t.untyped_storage().data_ptr() for t in (*probe.parameters(), *probe.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        # Held while counting, so that no storage is freed and its address used again.
        found = losses(probe)
    del found
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    learning = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    fixed = weights + learning * (1 + OPTIMIZER_COPIES[optimizer]) + weights * averaged
    return MemoryNeed(fixed=fixed, per_image=sum(kept.values()) // images)


def available_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device, or to this process on a CPU; None where that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    limits = [value for value in (_meminfo_available(), _cgroup_left()) if value is not None]
    return min(limits) if limits else None


def memory_line(need: MemoryNeed, images: int, available: int | None) -> str:
    """One line for people: what a pass over `images` images needs, and the largest that fits."""
    text = f"memory: a step over {images} images needs about {_gb(need.of(images))}"
    text += f" ({_gb(need.fixed)} for weights, gradients and optimiser)"
    if available is None:
        return text
    return text + f"; {_gb(available)} free, about {need.largest_batch(available)} images would fit"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def largest_that_fits(count: int, attempt: Callable[[int], None]) -> int:
    """The largest of count/2, count/4, ... for which `attempt` does not run out of memory; 0 if none."""
    while count > 1:
        count //= 2
        try:
            attempt(count)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return count
    return 0


def out_of_memory_message(step: int, kind: str, images: int, passes: int, fits: int, world_size: int) -> str:
    """What to do about a step that did not fit, given how many images of a pass did."""
    where = f"step {step} ran out of memory with {images} {kind} images in a pass"
    if not fits:
        return f"{where}, and one is too many as well: lower batches.{kind}_transform.short_sides"
    wanted = passes * -(-images // fits)
    return (
        f"{where}; {fits} fit: add --set loop.accumulate={wanted} for the same batch in parts, "
        f"or batches.{kind}={fits * world_size * passes} for a smaller one"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _meminfo_available() -> int | None:
    try:
        lines: Sequence[str] = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_left() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
