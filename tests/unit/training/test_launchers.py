"""The launch examples, as far as one machine can try them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_ssh_launcher_starts_one_torchrun_a_host_with_the_arguments_intact() -> None:
    found = subprocess.run(
        ["bash", EXAMPLES / "ssh_launch.sh", "a b", "4", "coco_base", "--out", "my run"],
        env={**os.environ, "SSH": "echo"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = sorted(found.stdout.splitlines())
    for node, line in enumerate((first, second)):
        assert line.startswith("ab"[node] + " cd ")
        assert f"--nnodes 2 --node-rank {node} --nproc-per-node 4 --master-addr a --master-port 29500" in line
        assert line.endswith("-m ovbridge.cli.main train coco_base --out my\\ run")


def test_a_host_that_fails_fails_the_launch() -> None:
    found = subprocess.run(
        ["bash", EXAMPLES / "ssh_launch.sh", "a b", "1", "x"], env={**os.environ, "SSH": "false"}, check=False
    )
    assert found.returncode == 1


def test_slurm_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sbatch"], check=True)
