"""`ovbridge export`: a checkpoint becomes one ONNX file whose vocabulary is an input."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovbridge.cli.arguments import call

if TYPE_CHECKING:
    from ovbridge.inference import Detector

EXAMPLES = """
ovbridge export --out model.onnx
ovbridge export --checkpoint runs/demo/detector.safetensors --out model.onnx --precision fp16
ovbridge export --out model.onnx --precision int8 --calibration photos/
"""


def run(argv: Sequence[str]) -> None:
    """Parse `argv` and export."""
    call(export, argv, verb="export", examples=EXAMPLES)


def export(
    *,
    out: Path,
    checkpoint: str = "builtin",
    format: Literal["onnx"] = "onnx",
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    calibration: tuple[str, ...] = (),
    max_detections: int | None = None,
    json: bool = False,
) -> None:
    """Write a detector as one ONNX file that takes pictures and a vocabulary of any length, and runs without torch.

    Args:
        out: The file to write.
        checkpoint: A detector.safetensors, the folder of a run, hf://owner/name, or the built-in detector.
        format: Only ONNX so far.
        precision: fp32; fp16 halves the file and suits GPUs; int8 quarters it and needs --calibration.
        calibration: Pictures of the kind to be detected in, for int8: files, folders or globs.
        max_detections: The best so many of each picture; by default what the detector is evaluated with.
        json: Print the result as JSON.
    """
    from ovbridge.console import stdout
    from ovbridge.errors import ConfigError

    try:
        from ovbridge.export.onnx_file import export_onnx, refuse_foreign_onnx
    except ImportError as error:
        raise ConfigError(f"export needs {error.name or 'onnx'}: pip install 'ovbridge[export]'") from None
    from ovbridge.inference import Detector

    refuse_foreign_onnx(out)
    detector = Detector.load(checkpoint, "cpu")
    if max_detections is not None:
        if max_detections < 1:
            raise ConfigError(f"--max-detections is {max_detections}: give at least 1")
        detector.model.config = replace(
            detector.model.config, postprocess=replace(detector.model.config.postprocess, max_detections=max_detections)
        )
    written = export_onnx(
        detector.model, detector.metadata, out, precision=precision, calibration=_pictures(detector, calibration)
    )
    result: dict[str, Any] = {
        "out": str(out),
        "format": format,
        "precision": written.precision,
        "bytes": written.bytes,
        "opset": written.opset,
        "checkpoint": checkpoint,
        "embedding_width": detector.model.roi_head.classifier.text_KD.shape[1],
        "names": len(detector.names),
        "masks": detector.model.mask_head is not None,
    }
    if json:
        print(json_format.dumps(result))
        return
    stdout.print(
        f"{out}: {written.bytes / 1e6:.1f} MB, {precision}, {result['names']} names by default, "
        f"any vocabulary [K, {result['embedding_width']}] as input",
        soft_wrap=True,
    )


def _pictures(detector: Detector, given: Sequence[str]) -> Iterator[Any]:
    if given:
        from ovbridge.images import read_image
        from ovbridge.inference.inputs import image_paths

        for path in image_paths(given):
            yield detector.resize(read_image(path))
