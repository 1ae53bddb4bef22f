from __future__ import annotations

import pytest
import torch

from ovbridge.errors import ConfigError
from ovbridge.training.ranks import Peers, Ranks, device_of, first_host, ranks_of


def test_without_a_launcher_a_run_is_one_process() -> None:
    assert ranks_of({}) == (Ranks(), {})
    # An interactive allocation, and the script of a batch job: SLURM is there, but no step of several tasks.
    assert ranks_of({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == (Ranks(), {})


def test_torchrun_and_slurm_say_who_we_are() -> None:
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}
    slurm = {
        "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "4002",
        "SLURM_STEP_NODELIST": "gpu[07-08],big1",
    }  # fmt: skip
    five_of_eight = Ranks(rank=5, world_size=8, local_rank=1)
    assert ranks_of(torchrun) == (five_of_eight, {"MASTER_ADDR": "a", "MASTER_PORT": "1234"})
    assert ranks_of(slurm) == (five_of_eight, {"MASTER_ADDR": "gpu07", "MASTER_PORT": "29502"})
    assert ranks_of(slurm | torchrun)[1]["MASTER_ADDR"] == "a"


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("gpu07", "gpu07"), ("gpu[07-09,12],big1", "gpu07"), ("n[1,3]-ib", "n1-ib"), ("a,b", "a"), ("", "")],
)
def test_first_host_of_a_node_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "count the processes from 0"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
    ],
)
def test_an_environment_that_makes_no_sense_is_named(environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ranks_of(environment)


def test_alone_every_question_is_answered_at_once() -> None:
    peers = Peers()
    assert peers.gather([1, 2.5]) == [[1, 2.5]]
    assert peers.gather_objects("a") == ["a"]
    assert [peers.any(flag) for flag in (True, False)] == [True, False]
    rows = torch.ones(2, 3, requires_grad=True)
    (gathered,) = peers.gather_rows(rows)
    assert not gathered.requires_grad
    peers.wait()


def test_every_process_gets_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovbridge.training.ranks.default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert device_of(Ranks(rank=3, world_size=4, local_rank=1)) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="number 2 on this machine, which has 2 GPUs"):
        device_of(Ranks(rank=2, world_size=4, local_rank=2))
    # SLURM can show each task its own GPU alone, which is then number 0 to all of them.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="which has 1 GPUs"):
        device_of(Ranks(rank=1, world_size=4, local_rank=1))
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert device_of(Ranks(rank=1, world_size=4, local_rank=1)) == torch.device("cuda", 0)
