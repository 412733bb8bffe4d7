"""8-bit weights and activations, each row by itself.

ONNX Runtime's own dynamic quantisation takes one scale from a whole batch: a text's answer then depends on those beside
it. Here each token has its own scale, and a text's answer is its own; it also errs less, for a little more time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

LEVELS = 127.0
"""Activations and weights are whole multiples of their scale from −127 to 127; two weights together, see `_bounds`."""

LEAST = 1e-12
"""Scales are no smaller: a row of zeros stays one."""

MICROSOFT = "com.microsoft"

SMALLEST_TABLE = 1_000_000
"""Numbers in an embedding table that is kept in 16 bits."""


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every product by a constant matrix in integers, and large embedding tables in float16.

    y = x·W becomes y = sₓ·((q(x) · q(W))·s_W) with q(x) = round(x/sₓ), one sₓ = max|x|/127 for each row of x, and one
    s_W for each column of W, as in Dettmers et al., "LLM.int8()", NeurIPS 2022 (vector-wise quantisation). The integer
    products are exact on every processor.

    Args:
        model: in float32; left as it is.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if not any(entry.domain == MICROSOFT for entry in result.opset_import):
        result.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    _Quantiser(result.graph).run()
    return result


class _Quantiser:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._rows: dict[str, str] = {}
        """Names of quantised inputs: several products share one."""

    def run(self) -> None:
        self._constant("q.last", np.array([-1], dtype=np.int64))
        self._constant("q.least", np.float32(LEAST))
        self._constant("q.levels", np.float32(LEVELS))
        self._constant("q.one", np.float32(1.0))
        # MLAS has fast kernels for unsigned activations only: they are shifted by 128.
        self._constant("q.zero", np.uint8(128))
        for node in self._graph.node:
            matrix = self._matrix(node)
            if matrix is not None:
                self._product(node, matrix)
            elif node.op_type == "Gather" and node.input[0] in self._constants:
                self._lookup(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _matrix(self, node: onnx.NodeProto) -> NDArray[np.float32] | None:
        if node.op_type != "MatMul" or node.input[1] not in self._constants:
            return None
        weights = numpy_helper.to_array(self._constants[node.input[1]])
        return weights if weights.ndim == 2 and weights.dtype == np.float32 else None

    def _product(self, node: onnx.NodeProto, weights: NDArray[np.float32]) -> None:
        rows, name = self._quantised_rows(node.input[0]), node.output[0]
        scale = np.maximum(_bounds(weights), LEAST) / LEVELS
        self._constant(f"{name}.weights", np.rint(weights / scale).astype(np.int8))
        self._constant(f"{name}.scale", scale.astype(np.float32))
        self._node(
            "MatMulIntegerToFloat",
            [f"{rows}.rows", f"{name}.weights", "q.one", f"{name}.scale", "q.zero"],
            f"{name}.unscaled",
            domain=MICROSOFT,
        )
        self._node("Mul", [f"{name}.unscaled", f"{rows}.scale"], name)

    def _quantised_rows(self, name: str) -> str:
        if name not in self._rows:
            made = self._rows[name] = f"q.{name}"
            self._node("Abs", [name], f"{made}.size")
            self._node("ReduceMax", [f"{made}.size", "q.last"], f"{made}.largest", keepdims=1)
            self._node("Max", [f"{made}.largest", "q.least"], f"{made}.bound")
            self._node("Div", [f"{made}.bound", "q.levels"], f"{made}.scale")
            self._node("Div", ["q.levels", f"{made}.bound"], f"{made}.factor")
            self._node("Mul", [name, f"{made}.factor"], f"{made}.levels")
            self._node("QuantizeLinear", [f"{made}.levels", "q.one", "q.zero"], f"{made}.rows")
        return self._rows[name]

    def _lookup(self, node: onnx.NodeProto) -> None:
        table = numpy_helper.to_array(self._constants[node.input[0]])
        if table.dtype != np.float32 or table.size < SMALLEST_TABLE:
            self._nodes.append(node)
            return
        half = f"{node.input[0]}.half"
        if half not in self._constants:
            self._constants[half] = self._constant(half, table.astype(np.float16))
        looked_up = onnx.NodeProto()
        looked_up.CopyFrom(node)
        looked_up.input[0] = half
        looked_up.output[0] = f"{node.output[0]}.half"
        self._nodes.append(looked_up)
        self._node("Cast", [looked_up.output[0]], node.output[0], to=onnx.TensorProto.FLOAT)

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> onnx.TensorProto:
        tensor = numpy_helper.from_array(np.asarray(value), name)
        self._graph.initializer.append(tensor)
        return tensor

    def _node(self, kind: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))


def _bounds(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest number in each column of k × n weights, neighbours of one sign in rows 2i and 2i+1 taken together.

    Processors without VNNI add two products of 8 bits in 16 (the instruction VPMADDUBSW), and where the sum does not
    fit they silently give the nearest that does. Activations go to 255, so that neighbours may come to 128 together:
    127 and what rounding adds. That costs less than giving up a bit of every weight, and nothing in time.
    """
    padded = np.concatenate([weights, np.zeros((len(weights) % 2, weights.shape[1]), dtype=weights.dtype)])
    positive, negative = np.maximum(padded, 0), np.maximum(-padded, 0)
    together = np.maximum(positive[0::2] + positive[1::2], negative[0::2] + negative[1::2])
    bounds: NDArray[np.float32] = together.max(axis=0)
    return bounds
