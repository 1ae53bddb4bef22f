"""The folder of one run: claimed by one process, never shared with another run or with foreign files.

`config.json` (what runs here), `log.jsonl`, `tensorboard/`, `checkpoints/`, and, once finished, `detector.safetensors`.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ovbridge.config_tree import first_difference
from ovbridge.errors import ConfigError
from ovbridge.training.checkpoint import sync

CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"
RESULT_FILE = "detector.safetensors"
_LOCK_FILE = ".lock"

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""A record of any version → the same record with the fields of this one."""


@contextmanager
def claimed_run(
    out: Path, record: dict[str, Any], *, may_differ: frozenset[str], upgrade: Upgrade | None = None
) -> Iterator[Path]:
    """Hold `out` for the run that `record` (JSON) describes; yields the folder.

    Raises ConfigError, with nothing written, where `out` is not a folder, holds another run or foreign files, or is
    in use. Paths in `may_differ` (dotted, into `record`) may change between starts of one run. `upgrade` adds to a
    record of an earlier version what it does not have yet.
    """
    check_run_folder(out, record, may_differ=may_differ, upgrade=upgrade)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK_FILE).open("w")
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out} is in use by another process: wait for it, or choose another --out") from None
        check_run_folder(out, record, may_differ=may_differ, upgrade=upgrade)
        _write_json(out / CONFIG_FILE, record)
        yield out


def check_run_folder(
    out: Path, record: dict[str, Any], *, may_differ: frozenset[str], upgrade: Upgrade | None = None
) -> None:
    """Raise ConfigError unless `out` is free for, or already belongs to, the run that `record` describes."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file: choose a folder for --out")
    config = out / CONFIG_FILE
    if not config.exists():
        foreign = sorted(path.name for path in out.iterdir() if path.name != _LOCK_FILE and path.suffix != ".part")
        if foreign:
            raise ConfigError(f"{out} holds files that are no training run ({foreign[0]}): choose an empty --out")
        return
    try:
        here = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{config} is not the record of a training run: choose another --out") from None
    if not isinstance(here, dict) or set(here) != set(record):
        raise ConfigError(f"{config} is not the record of a training run: choose another --out")
    difference = first_difference(record, upgrade(here) if upgrade else here, may_differ)
    if difference:
        raise ConfigError(
            f"{out} holds another run; asked for and found there: {difference}. Choose another --out, or delete it"
        )


def _write_json(path: Path, record: dict[str, Any]) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sync(aside)
    aside.replace(path)
