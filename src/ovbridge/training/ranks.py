"""The processes of one run: who they are, how they find each other, what they tell each other.

Launched by torchrun, by srun, or by hand with RANK, WORLD_SIZE and MASTER_ADDR set; without any of these a run is one
process, and every question to its peers is answered at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ovbridge.device import default_device
from ovbridge.errors import ConfigError

T = TypeVar("T")

PEER_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: as long as one of them may evaluate or save."""
DEFAULT_PORT = 29500


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    """Its number, from 0; number 0 writes the files."""
    world_size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Its number on this machine, and of its GPU."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0


def ranks_of(environment: Mapping[str, str]) -> tuple[Ranks, dict[str, str]]:
    """Who this process is, and where the run meets (MASTER_ADDR, MASTER_PORT), by its environment.

    RANK and WORLD_SIZE (torchrun, or by hand) win over SLURM's step variables. Raises ConfigError naming the variable
    that is missing or makes no sense.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        address = environment.get("MASTER_ADDR")
        default_port = DEFAULT_PORT
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
        address = environment.get("MASTER_ADDR") or first_host(hosts)
        # Runs of two jobs on one machine must not meet.
        default_port = DEFAULT_PORT + int(environment.get("SLURM_JOB_ID", "0")) % 1000
    else:
        return Ranks(), {}
    rank, world_size = (_number(environment, name) for name in names[:2])
    local_rank = _number(environment, names[2]) if names[2] in environment else 0
    if not 0 <= rank < world_size:
        raise ConfigError(f"{names[0]} is {rank} and {names[1]} is {world_size}: count the processes from 0")
    if world_size > 1 and not address:
        raise ConfigError(f"{names[1]} is {world_size} but MASTER_ADDR is not set: give the first machine's address")
    ranks = Ranks(rank=rank, world_size=world_size, local_rank=local_rank)
    port = environment.get("MASTER_PORT", str(default_port))
    return ranks, {"MASTER_ADDR": address, "MASTER_PORT": port} if address else {}


def first_host(node_list: str) -> str:
    """The first host of a SLURM node list: "gpu[07-09,12],big1" → "gpu07"; "" for an empty list."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", node_list)
    return "".join(part or "" for part in match.groups()) if match else ""


def device_of(ranks: Ranks) -> torch.device:
    """The GPU of this process's number on its machine, or the CPU; raises ConfigError if there are too few GPUs."""
    device = default_device()
    if device.type != "cuda" or ranks.world_size == 1:
        return device
    count = torch.cuda.device_count()
    if count == 1 and ranks.local_rank > 0 and "SLURM_PROCID" in os.environ:
        # SLURM with a GPU bound to each task (--gpus-per-task): this process sees its own alone, as number 0.
        return torch.device("cuda", 0)
    if ranks.local_rank >= count:
        raise ConfigError(
            f"process {ranks.rank} is number {ranks.local_rank} on this machine, which has "
            f"{count} GPUs: start at most one process a GPU (torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)


class Peers:
    """What the processes of a run tell each other. Every process must ask the same questions in the same order."""

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()

    @property
    def alone(self) -> bool:
        """Whether there is one process only."""
        return self.ranks.world_size == 1

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """[N][n]: the n numbers of every process, by rank."""
        if self.alone:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64)
        every = [torch.empty_like(own) for _ in range(self.ranks.world_size)]
        dist.all_gather(every, own)
        return [one.tolist() for one in every]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up anywhere."""
        return flag if self.alone else any(value for (value,) in self.gather([float(flag)]))

    def gather_objects(self, value: T) -> list[T]:
        """The value of every process, by rank; slower than numbers."""
        if self.alone:
            return [value]
        every: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(every, value)
        return every

    def gather_rows(self, own_RD: Tensor) -> list[Tensor]:
        """The [R, D] rows of every process (R may differ), by rank, on this device and without gradient."""
        if self.alone:
            return [own_RD.detach()]
        counts = [int(count) for (count,) in self.gather([len(own_RD)])]
        padded = own_RD.new_zeros((max(counts), *own_RD.shape[1:]))
        padded[: len(own_RD)] = own_RD.detach()
        every = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(every, padded)
        return [rows[:count] for rows, count in zip(every, counts, strict=True)]

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first process's `tensor`, written into this one."""
        if not self.alone:
            dist.broadcast(tensor, 0)
        return tensor

    def wait(self) -> None:
        """Go on when all have come this far."""
        self.gather([0.0])


@contextmanager
def joined_run() -> Iterator[tuple[Peers, torch.device]]:
    """Meet the other processes of the run that the environment describes; yields them and this one's device."""
    ranks, meeting = ranks_of(os.environ)
    device = device_of(ranks)
    if ranks.world_size == 1:
        yield Peers(ranks), device
        return
    os.environ.update(meeting)
    try:
        # Host-side numbers go by gloo, gradients on GPUs by nccl.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=PEER_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"process {ranks.rank} cannot meet the other {ranks.world_size - 1} at {meeting['MASTER_ADDR']}:"
            f"{meeting['MASTER_PORT']} ({reason}): check the address, the port and the number of processes"
        ) from None
    try:
        yield Peers(ranks), device
    finally:
        dist.destroy_process_group()


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except KeyError:
        raise ConfigError(f"{name} is not set: start the processes with torchrun, srun, or all variables") from None
    except ValueError:
        raise ConfigError(f"{name} is {environment[name]!r}: it must be a whole number") from None
