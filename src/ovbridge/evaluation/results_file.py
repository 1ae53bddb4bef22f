"""`results.json`: what an evaluation leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovbridge.errors import DataError

_IDENTITY = ("protocol", "dataset", "checkpoint", "predictions")


def require_free(path: Path, record: Mapping[str, Any]) -> None:
    """Raise DataError if `path` holds anything but an earlier result of the same evaluation."""
    if not path.exists():
        return
    try:
        old = json.loads(path.read_bytes())
    except (OSError, ValueError):
        old = None
    if not isinstance(old, dict) or any(old.get(key) != record.get(key) for key in _IDENTITY):
        raise DataError(f"{path} exists and holds something else: choose another --out or remove it")


def add_leaks(path: Path, verdict: Mapping[str, Any]) -> None:
    """Put the outcome of a leak audit into a results file; raises DataError if it is none."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not record.keys() & {"protocol", "stages"}:
        raise DataError(f"{path} is no results file: give the results.json of an evaluation")
    write_results(path, {**record, "leaks": dict(verdict)})


def write_results(path: Path, record: Mapping[str, Any] | list[dict[str, Any]]) -> None:
    """Write JSON aside and rename it; raises DataError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".part")
        aside.write_text(json.dumps(record, indent=1 if isinstance(record, Mapping) else None) + "\n")
        aside.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): choose another --out") from None
