"""Makes what serving needs of a version: its graphs, and how to run them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from perdure.engine.graph import OPSET, Template, adapted_graph, frozen_graph
from perdure.engine.quantise import quantised
from perdure.engine.served import Engine, Precision
from perdure.model.adapter import Adapter
from perdure.model.classifier import AnalyticClassifier
from perdure.model.encoder import Encoder
from perdure.model.layout import ADAPTER_GRAPH, ENCODER_GRAPH, ENGINE_FILE, TOKENIZER

SCHEME = 2
"""Of the graphs: a version's encoder is exported anew when this changes."""


@dataclass(frozen=True, slots=True)
class Export:
    """Files beside a version's own."""

    files: Mapping[str, bytes]
    shared: Mapping[str, bytes]
    """What versions with one encoder have in common."""


class Exporter:
    """Exports versions; the encoder, and the layers of adapters that differ in their weights alone, only once."""

    def __init__(self) -> None:
        self._made: dict[str, bytes] = {}
        self._exported: tuple[tuple[str, int], onnx.ModelProto] | None = None
        self._template: tuple[tuple[str, int, tuple[str, ...]], Template | None] | None = None

    def export(self, classifier: AnalyticClassifier, precision: Precision, before: Path | None = None) -> Export:
        """Graphs of `classifier`.

        Args:
            classifier: the version.
            precision: of the encoder's matrix products.
            before: a folder with another exported version; where its encoder is the same, it is not exported anew.

        Raises:
            ExportError: torch cannot export this encoder, or its tokenizer cannot be used without transformers.
        """
        encoder = classifier.encoder
        key = _key(encoder, precision)
        if key not in self._made:
            self._made[key] = _found(before, key) or self._graph(encoder, precision)
        engine = Engine(precision, key, encoder.pad, classifier.space)
        files = {ENGINE_FILE: engine.encode()}
        if classifier.adapted is not None:
            graph = self._adapted(classifier.adapted.adapter)
            files[ADAPTER_GRAPH] = (quantised(graph) if precision == "int8" else graph).SerializeToString()
        return Export(files, {ENCODER_GRAPH: self._made[key], TOKENIZER: encoder.tokenizer_json()})

    def _graph(self, encoder: Encoder, precision: Precision) -> bytes:
        name = encoder.fingerprint, encoder.adapted_layers
        if self._exported is None or self._exported[0] != name:
            # Kept, as the next precision may be asked for when this one does not answer well enough.
            self._exported = name, frozen_graph(encoder)
        graph = self._exported[1]
        return (quantised(graph) if precision == "int8" else graph).SerializeToString()

    def _adapted(self, adapter: Adapter) -> onnx.ModelProto:
        encoder = adapter.encoder
        name = encoder.fingerprint, encoder.adapted_layers, adapter.shape.targets
        if self._template and self._template[0] == name and self._template[1]:
            return self._template[1].filled(adapter)
        graph = adapted_graph(adapter)
        self._template = name, Template.of(graph, adapter)
        return graph


def _found(folder: Path | None, key: str) -> bytes | None:
    if folder is None or not (folder / ENGINE_FILE).is_file():
        return None
    try:
        engine = Engine.decode((folder / ENGINE_FILE).read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError):
        # Another release wrote it: what it holds is not known here, and is made anew.
        return None
    if engine.key != key:
        return None
    return (folder / ENCODER_GRAPH).read_bytes()


def _key(encoder: Encoder, precision: Precision) -> str:
    made_of = (SCHEME, OPSET, precision, encoder.fingerprint, encoder.adapted_layers)
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
