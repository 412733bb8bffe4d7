"""The encoder and an adapter's layers as ONNX graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
