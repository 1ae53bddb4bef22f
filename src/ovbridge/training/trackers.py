"""Experiment trackers behind one small protocol; each is imported only when a run asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol

from ovbridge.errors import ConfigError

TrackerName = Literal["none", "wandb", "mlflow", "trackio"]

PROJECT = "ovbridge"


class Tracker(Protocol):
    """Where the figures of a run go besides its own log."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after `step` steps, by name."""
        ...

    def close(self) -> None:
        """No more figures."""
        ...


class WandbTracker:
    """Weights & Biases; a resumed run goes on in the same record."""

    def __init__(self, folder: Path) -> None:
        wandb = _imported("wandb")
        identity = folder.resolve().as_posix().strip("/").replace("/", "-")[-64:]
        self._run = wandb.init(project=PROJECT, dir=str(folder), id=identity, name=folder.name, resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after `step` steps, by name."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """No more figures."""
        self._run.finish()


class MlflowTracker:
    """MLflow, at the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, folder: Path) -> None:
        self._mlflow = _imported("mlflow")
        self._mlflow.set_experiment(PROJECT)
        self._mlflow.start_run(run_name=folder.name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after `step` steps, by name."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """No more figures."""
        self._mlflow.end_run()


class TrackioTracker:
    """Trackio."""

    def __init__(self, folder: Path) -> None:
        self._trackio = _imported("trackio")
        self._trackio.init(project=PROJECT, name=folder.name, resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after `step` steps, by name."""
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        """No more figures."""
        self._trackio.finish()


_TRACKERS: dict[str, type[WandbTracker] | type[MlflowTracker] | type[TrackioTracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}


def open_tracker(name: TrackerName, folder: Path) -> Tracker | None:
    """The tracker of that name for the run in `folder`; raises ConfigError where its package is not installed."""
    return None if name == "none" else _TRACKERS[name](folder)


def _imported(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(f"loop.tracker={package} needs its package: pip install {package}") from None
