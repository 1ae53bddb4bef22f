"""Keeping freed memory, in a process of its own because it cannot be undone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MEASURE = """
import resource, torch
from ovbridge.allocator import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
plain = faults()
kept = keep_freed_memory()
print(kept, plain, max([faults() for _ in range(24)][-4:]))
"""


def run(**environment: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], env=kept | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")
def test_the_next_tensor_takes_the_same_pages() -> None:
    kept, plain, after = run()
    assert kept == "True"
    assert int(plain) > 1000
    # The first dozen may not fit where the one before them was (aligned tensors ask for a little more than they keep);
    # then every one must.
    assert int(after) < 100


def test_the_environment_has_the_last_word() -> None:
    assert run(MALLOC_ARENA_MAX="2")[0] == "False"
