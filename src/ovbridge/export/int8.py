"""Static 8-bit quantisation of an exported detector by onnxruntime, with ranges measured on pictures."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ovbridge.errors import ConfigError

_WARNINGS, _ERRORS = 2, 3
"""Of onnxruntime's log."""

Picture = np.ndarray[Any, np.dtype[np.uint8]]


class _Pictures:
    """One picture after another as the graph takes them; onnxruntime's calibration asks for `get_next`."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._left: Iterator[Picture] = iter(pictures)

    def get_next(self) -> dict[str, Any] | None:
        picture = next(self._left, None)
        if picture is None:
            return None
        return {"images": picture[None], "image_sizes": np.array([picture.shape[:2]], dtype=np.int64)}


def quantized(proto: onnx.ModelProto, pictures: Sequence[Picture]) -> onnx.ModelProto:
    """The same detector with its convolutions and fully connected layers in int8, weights per channel.

    The layers that end in box deltas, objectness or embeddings stay in fp32: their values are read off, not
    thresholded, and 256 steps are too coarse for them.
    Raises ConfigError where onnxruntime is not installed.
    """
    try:
        import onnxruntime
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError:
        raise ConfigError("int8 needs onnxruntime: pip install 'ovbridge[export]'") from None
    CalibrationDataReader.register(_Pictures)
    layers = [node.name for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    inner = [name for name in layers if not _is_read_off(proto, name)]
    noisy = logging.getLogger()
    level = noisy.level
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "fp32.onnx", Path(name) / "int8.onnx"
        onnx.save(proto, str(source))
        # It warns that the model was not preprocessed, and that the vocabulary may be replaced, which it shall.
        noisy.setLevel(logging.ERROR)
        onnxruntime.set_default_logger_severity(_ERRORS)
        try:
            quantize_static(
                source,
                target,
                _Pictures(pictures),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm"],
                nodes_to_quantize=inner,
                per_channel=True,
                # Seven bits for weights: AVX2 adds pairs of products in 16 bits, which eight would overflow.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibration_providers=["CPUExecutionProvider"],
            )
        finally:
            noisy.setLevel(level)
            onnxruntime.set_default_logger_severity(_WARNINGS)
        result = onnx.load(str(target))
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    helper.set_model_props(result, properties | {"precision": "int8"})
    return result


def _is_read_off(proto: onnx.ModelProto, name: str) -> bool:
    """True if no ReLU or sum follows the layer `name` on the way to the next one: its output is a result."""
    node = next(node for node in proto.graph.node if node.name == name)
    followers = {user.op_type for user in proto.graph.node if node.output[0] in user.input}
    return (node.op_type == "Gemm" and followers.isdisjoint({"Relu"})) or followers <= {"Transpose", "Squeeze"}
