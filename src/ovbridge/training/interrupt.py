"""Ctrl-C and SIGTERM end a run after the step in progress, with a checkpoint; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from ovbridge.console import stderr


class TrainingInterrupted(KeyboardInterrupt):
    """A run was asked to stop and has saved where it was; the message says how to go on. Exit code 130."""


class StopRequest:
    """While entered, `requested` turns true on SIGINT or SIGTERM instead of the process ending.

    Outside the main thread, where Python allows no handlers, it never turns true.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        stderr.print("stopping after this step; once more to stop without saving")
