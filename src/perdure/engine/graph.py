"""The encoder and an adapter's layers as ONNX graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from perdure.errors import ExportError
from perdure.model.adapter import Adapter
from perdure.model.encoder import Encoder

OPSET = 23

FEATURES, HIDDEN, EMBEDDING = "features", "hidden", "embedding"
IDS, MASK = "input_ids", "attention_mask"


class _Frozen(nn.Module):
    """Token ids to frozen features, and to the states at the cut."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        trunk = self._encoder.below(ids, mask)
        return self._encoder.frozen(trunk), trunk.hidden


class _Adapted(nn.Module):
    """States at the cut to adapted embeddings."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self._adapter = adapter

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self._adapter.embed(self._adapter.encoder.above(torch.zeros_like(mask), mask, hidden))


def frozen_graph(encoder: Encoder) -> onnx.ModelProto:
    """`input_ids` and `attention_mask` (n × T) to `features` (n × inputs) and `hidden` (n × T × d), in float32.

    `hidden` are the states that enter the first adapted layer.

    Raises:
        ExportError: torch cannot export this encoder.
    """
    ids = torch.ones((2, 8), dtype=torch.long)
    return _exported(_Frozen(encoder), (ids, torch.ones_like(ids)), (IDS, MASK), (FEATURES, HIDDEN))


def adapted_graph(adapter: Adapter) -> onnx.ModelProto:
    """`hidden` (n × T × d) and `attention_mask` (n × T) to `embedding` (n × d, each of length 1), in float32.

    Raises:
        ExportError: torch cannot export these layers.
    """
    mask = torch.ones((2, 8), dtype=torch.long)
    hidden = torch.zeros((2, 8, adapter.encoder.dim))
    return _exported(_Adapted(adapter), (hidden, mask), (HIDDEN, MASK), (EMBEDDING,))


@dataclass(frozen=True, slots=True)
class Template:
    """An adapter's graph in which another's weights can be put. Adapters of one encoder with the same targets differ in
    nothing else, and torch takes seconds to export one."""

    graph: onnx.ModelProto
    places: Mapping[str, tuple[int, bool]]
    """Of each target its initializer, and whether that is the weight transposed."""

    @classmethod
    def of(cls, graph: onnx.ModelProto, adapter: Adapter) -> Template | None:
        """From the graph of `adapter`; None where a weight is not found in it, or more than once.

        The exporter names constants by number, so that they are found by what they hold.
        """
        held: dict[bytes, list[int]] = {}
        for index, constant in enumerate(graph.graph.initializer):
            if constant.data_type == onnx.TensorProto.FLOAT and len(constant.dims) == 2:
                held.setdefault(constant.raw_data, []).append(index)
        places = {}
        for name, weight in _weights(adapter).items():
            found = [(index, turned) for turned in (True, False) for index in held.get(_raw(weight, turned), ())]
            if len(found) != 1:
                return None
            places[name] = found[0]
        # Of two targets that are equal the exporter may keep one constant.
        return cls(graph, places) if len({index for index, _ in places.values()}) == len(places) else None

    def filled(self, adapter: Adapter) -> onnx.ModelProto:
        """The graph of `adapter`, as `adapted_graph` would export it."""
        graph = onnx.ModelProto()
        graph.CopyFrom(self.graph)
        for name, weight in _weights(adapter).items():
            index, turned = self.places[name]
            graph.graph.initializer[index].raw_data = _raw(weight, turned)
        return graph


def _weights(adapter: Adapter) -> dict[str, Tensor]:
    layers = dict(adapter.layers().named_modules())
    return {name: layers[name].get_parameter("weight") for name in adapter.shape.targets}


def _raw(weight: Tensor, turned: bool) -> bytes:
    array = weight.detach().cpu().numpy()
    return np.ascontiguousarray(array.T if turned else array, dtype="<f4").tobytes()


def _exported(
    module: nn.Module, examples: tuple[Tensor, ...], inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> onnx.ModelProto:
    rows, length = torch.export.Dim("rows", min=1), torch.export.Dim("length", min=2)
    with _quiet():
        try:
            program = torch.onnx.export(
                module.eval(),
                examples,
                dynamo=True,
                dynamic_shapes=tuple({0: rows, 1: length} for _ in examples),
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            first = str(error).strip().splitlines()[0]
            raise ExportError(
                f"torch cannot export {type(module).__name__.strip('_').lower()} layers to ONNX ({first}): set "
                "model.export to none, and versions are served by torch"
            ) from error
    assert program is not None
    model = program.model_proto
    assert isinstance(model, onnx.ModelProto)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of what nobody can change here, and logs its own progress."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
