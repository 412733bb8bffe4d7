"""How a version becomes graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from perdure.engine import exporter as exporter_module
from perdure.engine.exporter import Exporter
from perdure.engine.graph import HIDDEN, MASK, Template, adapted_graph
from perdure.engine.quantise import SMALLEST_TABLE, quantised
from perdure.engine.served import Engine
from perdure.errors import ExportError
from perdure.model.adapter import Adapter
from perdure.model.classifier import AnalyticClassifier
from perdure.model.layout import ADAPTER_GRAPH, ENCODER_GRAPH, ENGINE_FILE, TOKENIZER

Make = Callable[..., AnalyticClassifier]
Written = Callable[..., Path]


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def product(weights: np.ndarray) -> onnx.ModelProto:
    """y = x·W."""
    rows, columns = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_product_of_rows_with_scales_of_their_own() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(16, 8)).astype(np.float32) * np.logspace(-3, 3, 8, dtype=np.float32)
    rows = rng.normal(size=(5, 16)).astype(np.float32) * np.float32([[1], [1e-4], [1e4], [3], [0]])
    model = quantised(product(weights))
    found = run(model, x=rows)
    # By hand, with the formula.
    scale_x = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12) / 127
    pairs = weights.reshape(8, 2, 8)
    scale_w = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1)).max(axis=0) / 127
    wanted = (np.rint(rows / scale_x) @ np.rint(weights / scale_w)) * scale_x * scale_w
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    exact = rows @ weights
    worst = np.abs(found - exact) / (np.abs(rows).sum(axis=1, keepdims=True) * np.abs(weights).max(axis=0) + 1e-12)
    assert worst.max() < 2 / 127
    assert not found[4].any()
    # Neither the order nor the company of rows is seen.
    for row in range(5):
        assert (run(model, x=rows[row : row + 1])[0] == found[row]).all()


def test_the_largest_products_are_exact_on_every_processor() -> None:
    """Neighbours of one sign at the largest activation, which 16 bits would not hold: an odd number of them as well."""
    for rows in (2, 7, 64, 385):
        weights = np.ones((rows, 3), dtype=np.float32)
        weights[:, 1] = -1
        weights[::2, 2] = -1
        for largest in (1.0, -1.0):
            found = run(quantised(product(weights)), x=np.full((1, rows), largest, dtype=np.float32))
            np.testing.assert_allclose(found, largest * weights.sum(axis=0, keepdims=True), rtol=0.01)
    # Alone, a weight keeps all its levels.
    alone = np.zeros((4, 1), dtype=np.float32)
    alone[2] = 5.0
    made = quantised(product(alone))
    (kept,) = (numpy_helper.to_array(one) for one in made.graph.initializer if one.name == "y.weights")
    assert kept.ravel().tolist() == [0, 0, 127, 0]


def test_what_is_left_as_it_is() -> None:
    """Products of two inputs, and small tables."""
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "i"], ["g"]), helper.make_node("MatMul", ["g", "x"], ["y"])],
        "both",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(table, "t")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert [node.op_type for node in quantised(model).graph.node] == ["Gather", "MatMul"]
    assert [node.op_type for node in model.graph.node] == ["Gather", "MatMul"]


def test_large_tables_are_kept_in_sixteen_bits() -> None:
    table = np.random.default_rng(0).normal(size=(SMALLEST_TABLE // 100, 100)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "i"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 100])],
        [numpy_helper.from_array(table, "t")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    small = quantised(model)
    assert small.ByteSize() < 0.51 * model.ByteSize()
    places = np.array([3, 77, 9_999])
    np.testing.assert_allclose(run(small, i=places), table[places], rtol=1e-3, atol=1e-4)


def test_the_encoder_is_exported_once(classifier_of: Make, exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    first = exporter.export(classifier_of(adapted=False), "int8")
    monkeypatch.setattr(exporter_module, "frozen_graph", lambda encoder: pytest.fail("exported again"))
    second = exporter.export(classifier_of(adapted=False, version="v2", seed=5), "int8")
    assert first.shared == second.shared
    assert set(first.shared) == {ENCODER_GRAPH, TOKENIZER}
    assert set(first.files) == {ENGINE_FILE}


def test_a_new_process_takes_the_encoder_of_the_version_before(
    classifier_of: Make, written: Written, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = written()
    monkeypatch.setattr(exporter_module, "frozen_graph", lambda encoder: pytest.fail("exported again"))
    export = Exporter().export(classifier_of(), "int8", before=folder)
    assert export.shared[ENCODER_GRAPH] == (folder / ENCODER_GRAPH).read_bytes()
    assert ADAPTER_GRAPH in export.files
    # But not one in another precision, nor one from a version that was not exported.
    made = []
    monkeypatch.setattr(Exporter, "_graph", lambda self, encoder, precision: made.append(precision) or b"graph")
    Exporter().export(classifier_of(adapted=False), "float32", before=folder)
    Exporter().export(classifier_of(adapted=False), "int8", before=folder / "nothing")
    # Nor one that another release wrote, which must not end a turn.
    shutil.copytree(folder, tmp_path / "newer")
    (tmp_path / "newer" / ENGINE_FILE).write_text('{"format": 2}')
    Exporter().export(classifier_of(adapted=False), "int8", before=tmp_path / "newer")
    assert made == ["float32", "int8", "int8"]


@pytest.fixture
def another(adapter: Adapter) -> Adapter:
    """An adapter of the same encoder and targets."""
    weights = {name: 0.5 * weight.flip(0) for name, weight in adapter.weights.items()}
    return Adapter(adapter.encoder, adapter.shape, weights)


def test_another_adapters_graph_is_the_same_with_other_weights(
    adapter: Adapter, another: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, exports = adapted_graph(another), Exporter()
    first = exports._adapted(adapter)
    before = first.SerializeToString()
    monkeypatch.setattr(exporter_module, "adapted_graph", lambda given: pytest.fail("exported again"))
    found = exports._adapted(another)
    hidden = np.random.default_rng(0).normal(size=(3, 5, adapter.encoder.dim)).astype(np.float32)
    given = {HIDDEN: hidden, MASK: np.ones((3, 5), dtype=np.int64)}
    assert (run(found, **given) == run(wanted, **given)).all()
    assert np.abs(run(found, **given) - run(first, **given)).max() > 0.01
    # What was given out before is not changed under anybody's hands.
    assert first.SerializeToString() == before
    assert (run(exports._adapted(adapter), **given) == run(first, **given)).all()


def test_where_weights_cannot_be_told_apart_every_adapter_is_exported(
    adapter: Adapter, another: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = adapted_graph(adapter)
    twice = next(each for each in graph.graph.initializer if len(each.dims) == 2 and each.dims[0] > 1)
    graph.graph.initializer.append(twice)
    assert Template.of(graph, adapter) is None
    assert Template.of(adapted_graph(another), adapter) is None
    # Two targets with one weight, of which the exporter may keep one constant.
    twins = Adapter(adapter.encoder, adapter.shape, adapter.weights)
    maps = dict(twins.layers().named_modules())
    first, second = (maps[f"0.attention.self.{name}"].get_parameter("weight") for name in ("query", "key"))
    with torch.no_grad():
        first.copy_(second)
    assert Template.of(adapted_graph(twins), twins) is None
    made = []
    monkeypatch.setattr(exporter_module, "adapted_graph", lambda given: made.append(given) or graph)
    exports = Exporter()
    for given in (adapter, another, adapter):
        assert exports._adapted(given) is graph
    assert made == [adapter, another, adapter]


def test_one_space_one_name(classifier_of: Make, exporter: Exporter) -> None:
    classifier = classifier_of()
    export = exporter.export(classifier, "int8")
    engine = Engine.decode(export.files[ENGINE_FILE].decode())
    assert engine.space == classifier.space != classifier_of(adapted=False).space
    assert engine.precision == "int8"


def test_a_tokenizer_in_python_only_says_what_to_do(
    classifier_of: Make, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = classifier_of(adapted=False)

    class Slow:
        pad_token_id = 0

    monkeypatch.setattr(classifier.encoder, "_tokenizer", Slow())
    with pytest.raises(ExportError, match=r"exists in Python only: set model\.export to none"):
        exporter.export(classifier, "int8")


def test_what_torch_cannot_export_says_what_to_do(classifier_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = classifier_of(adapted=False)

    def broken(*parts: object) -> None:
        raise RuntimeError("data-dependent\nand a long tale")

    monkeypatch.setattr(type(classifier.encoder), "below", broken)
    with pytest.raises(ExportError, match=r"cannot export frozen layers to ONNX \(.*\): set model\.export to none"):
        Exporter().export(classifier, "int8")
