"""Writes a checkpoint as an ONNX file in fp32, fp16 or int8."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from ovbridge.detector import DetectorMetadata, TwoStageDetector
from ovbridge.errors import ConfigError, DataError
from ovbridge.export.detector_graph import detector_graph

OnnxPrecision = Literal["fp32", "fp16", "int8"]
Picture = np.ndarray[Any, np.dtype[np.uint8]]

MAX_CALIBRATION_IMAGES = 64
"""More pictures hardly move the ranges and cost memory."""


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """What `export_onnx` wrote."""

    path: Path
    precision: OnnxPrecision
    bytes: int
    opset: int


def export_onnx(
    model: TwoStageDetector,
    metadata: DetectorMetadata,
    path: Path,
    *,
    precision: OnnxPrecision = "fp32",
    calibration: Iterable[Picture] = (),
) -> ExportedFile:
    """Write the detector to `path` atomically.

    Args:
        model: in evaluation mode, on any device.
        metadata: goes into the file's properties.
        path: of the file to write; what was there is replaced.
        precision: "fp32"; "fp16", where the networks are stored and computed in half precision; "int8", where
            convolutions and fully connected layers are, with ranges measured on `calibration`.
        calibration: pictures [H, W, 3] uint8 RGB of the kind to be detected in, already resized; int8 needs some.

    Raises:
        ConfigError: a part of the detector has no ONNX form, or `path` cannot be written.
        DataError: int8 without calibration pictures.
    """
    proto = detector_graph(model, metadata, half=precision == "fp16")
    onnx.checker.check_model(proto)
    if precision == "int8":
        from ovbridge.export.int8 import quantized

        pictures = [picture for picture, _ in zip(calibration, range(MAX_CALIBRATION_IMAGES), strict=False)]
        if not pictures:
            raise DataError("int8 needs pictures to measure its ranges on: name some with --calibration FOLDER")
        proto = quantized(proto, pictures)
    content = proto.SerializeToString()
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}): choose another place") from None
    finally:
        aside.unlink(missing_ok=True)
    return ExportedFile(path=path, precision=precision, bytes=len(content), opset=proto.opset_import[0].version)


def refuse_foreign_onnx(path: Path) -> None:
    """Raise ConfigError if writing `path` would replace anything but a detector exported earlier."""
    if not path.exists():
        return
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file, e.g. {path / 'model.onnx'}")
    try:
        properties = {entry.key for entry in onnx.load(str(path)).metadata_props}
    except Exception:  # Whatever protobuf makes of a foreign file.
        properties = set()
    if "format" not in properties:
        raise ConfigError(f"{path} exists and is no exported detector: choose another name or remove it")
