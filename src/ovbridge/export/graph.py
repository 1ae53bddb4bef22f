"""Writes ONNX graphs node by node: values are names, weights are stored once, loop bodies see what is outside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

Array = np.ndarray[Any, Any]

OPSET = 18
"""The newest operators used are RoiAlign's half-pixel mode (16) and reductions with their axes as input (18)."""
IR_VERSION = 9
"""Of the file format; readable by onnxruntime 1.17 and newer."""

_INT64_LIMIT = 2**62


class Graph:
    """Nodes of one graph, or of one loop body inside it.

    A value is the name of a tensor; `add` appends one operator and returns the names of what it puts out.
    """

    def __init__(self, *, parent: Graph | None = None, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.dtype: type[np.floating[Any]] = parent.dtype if parent else dtype
        """In which the networks compute and their weights are stored; boxes and scores are always float32."""
        self._counter: Iterator[int] = parent._counter if parent else itertools.count()
        self._root: Graph = parent._root if parent else self
        self._stored: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.initializers: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append an operator with one output and return its name."""
        return self.add_many(operator, inputs, 1, **attributes)[0]

    def add_many(self, operator: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Append an operator with several outputs and return their names."""
        names = [f"{operator.lower()}_{next(self._counter)}" for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=names[0], **attributes))
        return names

    def constant(self, value: Array | Sequence[float] | Sequence[int] | float | int, kind: Any = None) -> str:
        """A stored array; Python integers become int64, floats float32. Equal ones are stored once."""
        array = np.asarray(value)
        if kind is not None:
            array = array.astype(kind)
        elif not isinstance(value, np.ndarray):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        root = self._root
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in root._stored:
            name = f"constant_{next(self._counter)}"
            root._stored[key] = name
            root.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return root._stored[key]

    def weight(self, tensor: Tensor) -> str:
        """A weight of the network, in the networks' type."""
        return self.constant(tensor.detach().cpu().double().numpy().astype(self.dtype))

    def to_float(self, value: str) -> str:
        """`value` as float32, in which boxes and scores are computed."""
        return self.add("Cast", value, to=TensorProto.FLOAT)

    def to_network(self, value: str) -> str:
        """`value` in the networks' type."""
        return value if self.dtype is np.float32 else self.add("Cast", value, to=TensorProto.FLOAT16)

    def from_network(self, value: str) -> str:
        """A network's output as float32."""
        return value if self.dtype is np.float32 else self.to_float(value)

    def size(self, value: str, axis: int) -> str:
        """[1] int64: the length of one axis."""
        return self.add("Shape", value, start=axis, end=axis + 1)

    def shape(self, *parts: str | int) -> str:
        """A shape out of [1] int64 values and numbers."""
        values = [part if isinstance(part, str) else self.constant([part]) for part in parts]
        return self.add("Concat", *values, axis=0) if len(values) > 1 else values[0]

    def reshape(self, value: str, *parts: str | int) -> str:
        """`value` in another shape."""
        return self.add("Reshape", value, self.shape(*parts))

    def columns(self, value: str, start: int, end: int) -> str:
        """`value[..., start:end]`."""
        return self.add("Slice", value, self.constant([start]), self.constant([end]), self.constant([-1]))

    def rows(self, value: str, start: str, end: str) -> str:
        """`value[start:end]` for [1] int64 bounds."""
        return self.add("Slice", value, start, end, self.constant([0]))

    def range(self, length_1: str) -> str:
        """[n] int64 0, 1, ..., n - 1 for a [1] int64 length."""
        none = self.constant([], np.int64)
        return self.add("Range", self.constant(0), self.add("Reshape", length_1, none), self.constant(1))

    def true_positions(self, mask: str) -> str:
        """[n] int64 indices where a bool vector is true, ascending."""
        return self.reshape(self.add("NonZero", mask), -1)

    def top(self, values: str, count_1: str) -> tuple[str, str]:
        """The largest `count_1` [1] along the last axis and their indices; of equal ones the first come first."""
        best, index = self.add_many("TopK", [values, count_1], 2, axis=-1, largest=1, sorted=1)
        return best, index

    def take(self, values: str, index_BN: str) -> str:
        """values [B, M, ...] at index [B, N] → [B, N, ...]."""
        return self.add("GatherND", values, self.add("Unsqueeze", index_BN, self.constant([-1])), batch_dims=1)

    def loop(
        self,
        trips_1: str | None,
        carried: Sequence[tuple[str, int]],
        body: Callable[[Graph, str, list[str]], tuple[str | None, list[str], list[str]]],
        *,
        collected: Sequence[int] = (),
    ) -> list[str]:
        """Repeat `body(graph, iteration, state) -> (go on, new state, collected)`.

        `carried` are the first state and the element types of it, `collected` the element types of what every
        iteration adds a row to. Returns the last state, then what was collected.
        """
        inner = Graph(parent=self)
        tag = next(self._counter)
        iteration, going = f"iteration_{tag}", f"going_{tag}"
        state = [f"state_{tag}_{i}" for i in range(len(carried))]
        go_on, new_state, rows = body(inner, iteration, state)
        condition = inner.add("Identity", going if go_on is None else go_on)
        outputs = [inner.add("Identity", value) for value in (*new_state, *rows)]
        types = [kind for _, kind in carried]
        graph = helper.make_graph(
            inner.nodes,
            f"body_{tag}",
            [
                helper.make_tensor_value_info(iteration, TensorProto.INT64, []),
                helper.make_tensor_value_info(going, TensorProto.BOOL, []),
                *(helper.make_tensor_value_info(name, kind, None) for name, kind in zip(state, types, strict=True)),
            ],
            [
                helper.make_tensor_value_info(condition, TensorProto.BOOL, []),
                *(
                    helper.make_tensor_value_info(name, kind, None)
                    for name, kind in zip(outputs, [*types, *collected], strict=True)
                ),
            ],
        )
        trips = self.constant(_INT64_LIMIT) if trips_1 is None else self.add("Squeeze", trips_1)
        inputs = [trips, self.constant(True, np.bool_), *(value for value, _ in carried)]
        return self.add_many("Loop", inputs, len(outputs), body=graph)
