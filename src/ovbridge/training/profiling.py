"""A profile of a few steps of a run, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
from torch import profiler

from ovbridge.console import stderr

WARMUP_STEPS = 2
"""Steps before the profile: the first ones compile, tune and allocate."""
FOLDER = "profile"


class StepProfiler:
    """Profiles `steps` steps after the first two into `folder/profile`; 0 profiles nothing."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder = folder / FOLDER
        self._profile = None
        if steps:
            activities = [profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(profiler.ProfilerActivity.CUDA)
            self._profile = profiler.profile(
                activities=activities,
                schedule=profiler.schedule(wait=WARMUP_STEPS - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._write,
                profile_memory=True,
            )

    def __enter__(self) -> StepProfiler:
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.stop()

    def step(self) -> None:
        """One step is done."""
        if self._profile is not None:
            self._profile.step()

    def _write(self, profile: profiler.profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / "trace.json"
        profile.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=40)
        (self._folder / "operations.txt").write_text(table + "\n", encoding="utf-8")
        stderr.print(f"profile in {trace}: open it in https://ui.perfetto.dev")
