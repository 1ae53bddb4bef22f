"""How long each step of a run took, over all the times that it was started."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.text import Text

from ovbridge.console import stderr


class StepClock:
    """Announces steps and keeps their seconds in a file, so that a resumed run knows what was spent before.

    A step that was finished before keeps its time: repeating it only finds that there is nothing to do.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: dict[str, dict[str, float | bool]] = json.loads(path.read_text()) if path.exists() else {}

    @property
    def seconds(self) -> dict[str, float]:
        """Step → seconds, in the order in which they first began."""
        return {name: float(step["seconds"]) for name, step in self._steps.items()}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside, also where it is cut short."""
        before = self._steps.get(name, {"seconds": 0.0, "done": False})
        stderr.print(Text.assemble((name, "bold"), " (done before)" if before["done"] else ""))
        began = time.perf_counter()
        done = False
        try:
            yield
            done = True
        finally:
            spent = 0.0 if before["done"] else time.perf_counter() - began
            self._steps[name] = {"seconds": float(before["seconds"]) + spent, "done": bool(before["done"]) or done}
            aside = self._path.with_name(self._path.name + ".part")
            aside.write_text(json.dumps(self._steps, indent=2) + "\n")
            aside.replace(self._path)
