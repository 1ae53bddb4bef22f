"""The labelling stages on Ray Data: units of images go to teachers on many machines, outcomes come back in order.

A machine works on a unit exactly as one machine alone would (`stages`), and only the driver writes to the store, so
the labels are the same row for row. Images are read where they are labelled: their folder must be at the same path
on every machine.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovbridge.errors import ConfigError, OVBridgeError, TeacherError
from ovbridge.labeling.labellers import Labeller
from ovbridge.labeling.stages import Outcome, ReadImage, RunSettings, label_in_order

CORES_PER_TEACHER = 4
"""Where there is no GPU, one teacher for so many cores."""
REACHED_WITHIN_SECONDS = 10.0
"""How long the machine of a cluster may take to accept a connection; Ray itself would try for minutes."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where and how wide a run on Ray goes."""

    address: str | None = None
    """A running cluster, e.g. "auto" or "ray://head:10001"; by default the one that RAY_ADDRESS names, else a
    cluster of its own on this machine."""
    teachers: int | None = None
    """Teachers at work at once; by default one a GPU, or one for every `CORES_PER_TEACHER` cores."""


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """An engine for `label_images`; `make_labeller` is called once on every worker."""

    make_labeller: Callable[[], Labeller]
    """Picklable."""
    image_root: Path
    read_image: ReadImage
    """Picklable."""
    settings: RunSettings
    config: RayConfig = RayConfig()

    def __call__(self, image_keys: Sequence[str]) -> Iterator[Outcome]:
        """The outcomes of `image_keys` in order; raises what a teacher raised, TeacherError where Ray itself fails."""
        if not image_keys:
            return
        ray = connect(self.config)
        size = self.settings.unit_images
        units = [{"image_keys": list(image_keys[start : start + size])} for start in range(0, len(image_keys), size)]
        teachers, cores, gpus = _width(ray.cluster_resources(), self.config.teachers, len(units))
        try:
            results = ray.data.from_items(units, override_num_blocks=len(units)).map(
                _UnitLabeller,
                fn_constructor_args=(self.make_labeller, str(self.image_root), self.read_image, self.settings),
                compute=ray.data.ActorPoolStrategy(size=teachers),
                num_gpus=gpus,
                num_cpus=cores,
            )
            for row in results.iter_rows():
                yield from row["outcomes"].outcomes
        except OVBridgeError:
            raise
        except Exception as error:
            raise _plain(error) from error


@dataclass(frozen=True, kw_only=True)
class _Parcel:
    """One object to Ray Data, which takes lists apart into columns; Ray carries it as it carries all objects."""

    outcomes: tuple[Outcome, ...]


class _UnitLabeller:
    """One teacher on one worker."""

    def __init__(
        self, make_labeller: Callable[[], Labeller], image_root: str, read_image: ReadImage, settings: RunSettings
    ) -> None:
        self._labeller = make_labeller()
        self._root, self._read_image, self._settings = Path(image_root), read_image, settings

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        keys = [str(key) for key in row["image_keys"]]
        outcomes = label_in_order(keys, self._root, self._labeller, self._read_image, self._settings)
        return {"outcomes": _Parcel(outcomes=tuple(outcomes))}


def connect(config: RayConfig) -> Any:
    """The `ray` module, connected; raises ConfigError where it is not installed or the cluster does not answer."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError(
            "--engine ray needs Ray: pip install 'ovbridge[ray]', or use --engine local with --shard on each machine"
        ) from None
    if not ray.is_initialized():
        address = config.address or os.environ.get("RAY_ADDRESS")
        try:
            _reach(address)
            ray.init(
                address=config.address,
                include_dashboard=None if config.address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # what a cluster that does not come up raises shares no base class
            line = " ".join(str(error).split())[:200]
            where = address or "a cluster on this machine"
            raise ConfigError(f"Ray does not answer: {where} ({line}); start it first, or use --engine local") from None
    context = ray.data.DataContext.get_current()
    # Outcomes in the order of the images: the store is then the same whoever labelled.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.max_errored_blocks = 0
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _reach(address: str | None) -> None:
    """Raises OSError where nothing listens at a HOST:PORT or ray://HOST:PORT; other addresses are Ray's to find."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_WITHIN_SECONDS).close()


def _width(resources: Mapping[str, float], wanted: int | None, units: int) -> tuple[int, int, int]:
    """(teachers, cores of each, GPUs of each) on a cluster with `resources`, for so many units of work."""
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    teachers = min(wanted or gpus or max(1, cores // CORES_PER_TEACHER), units)
    return (teachers, 1, 1) if gpus else (teachers, max(1, min(CORES_PER_TEACHER, cores // teachers)), 0)


def _plain(error: BaseException) -> OVBridgeError:
    """What a worker raised, if it was for the user to see; else one line."""
    seen: BaseException | None = error
    while seen is not None:
        for candidate in (getattr(seen, "cause", None), seen):
            if isinstance(candidate, OVBridgeError):
                return candidate
        seen = seen.__cause__
    line = " ".join(str(error).split())[-300:]
    return TeacherError(f"labelling on Ray failed ({type(error).__name__}: {line}): the same command goes on from here")
