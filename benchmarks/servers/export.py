"""The exported model: one graph from token ids to probabilities, for those that serve it without Perdure.

This file makes it and `apps/exported.py` runs it; nothing else here knows what is inside.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from contestants.backbone import located
from contestants.child import run_child
from perdure.model.encoder import pool
from servers.entrants import perdure_surroundings
from servers.environment import environment
from servers.version import loaded

if TYPE_CHECKING:
    from perdure.model.classifier import AnalyticClassifier

OPSET = 20
TEXTS = ("where is my order", "a second text, longer than the first one")
SETTINGS = {
    "format": "ONNX, one graph with the head in it",
    "quantisation": "dynamic, int8, by channel; the encoder's products by a constant alone",
}


def exported(folder: Path, registry: Path, environments: Path) -> Path:
    """The folder with `model.onnx`, `labels.json` and `tokenizer.json` of a registry's champion; made where it is not
    there yet, in an environment that has ONNX beside what is here.

    Raises:
        Unavailable: the environment cannot be made, or the export fails.
    """
    if not (folder / "model.onnx").is_file():
        python = environment("export", environments, seeing_ours=True)
        ours = perdure_surroundings()["PYTHONPATH"]
        paths = os.pathsep.join((str(Path(__file__).parents[1].resolve()), ours))
        run_child([str(python), "-m", "servers.export", str(registry), str(folder)], {"PYTHONPATH": paths})
    return folder


class Graph(nn.Module):
    """A version with one feature space, from token ids and mask (n × T) to probabilities (n × C)."""

    def __init__(self, version: AnalyticClassifier, encoder: nn.Module) -> None:
        super().__init__()
        self._encoder = encoder
        features = version.features
        self._signs = torch.from_numpy(features._signs)
        self._left, self._right = (torch.from_numpy(half) for half in features._halves)
        self._factor, self._half = float(features._factor), features.features // 2
        self._width = self._signs.shape[2]
        self._weights = torch.from_numpy(np.ascontiguousarray(version.weights))
        self._scale = torch.from_numpy(np.asarray(version.temperature * version.balance, dtype=np.float32))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self._encoder(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
        means = [nn.functional.normalize(pool(state, attention_mask), dim=1) for state in states]
        vectors = torch.cat(means, dim=1) / float(np.sqrt(len(states)))
        padded = nn.functional.pad(vectors, (0, self._width - vectors.shape[1]))
        angles = torch.cat([self._projected(padded, signs) for signs in self._signs], dim=1)[:, : self._half]
        angles = angles * self._factor
        scores = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1) @ self._weights
        return torch.softmax(scores * self._scale, dim=1)

    def _projected(self, vectors: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
        for flips in signs:
            squares = (vectors * flips).reshape(-1, len(self._left), len(self._right)) @ self._right
            vectors = (squares.transpose(1, 2) @ self._left).reshape(-1, self._width)
        return vectors


def main() -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel

    registry, folder = map(Path, sys.argv[1:3])
    folder.mkdir(parents=True, exist_ok=True)
    version = loaded(registry, folder / "cache")
    source = Path(located(version.encoder.name))
    network = AutoModel.from_pretrained(source, attn_implementation="sdpa", local_files_only=True).eval().float()
    rows, length = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("length", min=2, max=512)
    ids = torch.ones((3, 9), dtype=torch.long)
    program = torch.onnx.export(
        Graph(version, network).eval(),
        (ids, torch.ones_like(ids)),
        dynamo=True,
        dynamic_shapes=({0: rows, 1: length}, {0: rows, 1: length}),
        input_names=["input_ids", "attention_mask"],
        output_names=["probabilities"],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    whole = folder / "float32.onnx"
    program.save(str(whole))
    graph = onnx.load(str(whole)).graph
    inside = {tuple(weight.shape) for weight in network.parameters() if weight.dim() == 2}
    inside |= {shape[::-1] for shape in inside}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    head = [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and shapes.get(node.input[1]) is not None and shapes[node.input[1]] not in inside
    ]
    quantize_dynamic(
        whole,
        folder / "part.onnx",
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
        nodes_to_exclude=head,
    )
    whole.unlink()
    (folder / "labels.json").write_text(json.dumps(version.labels), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (folder / "part.onnx").rename(folder / "model.onnx")


if __name__ == "__main__":
    main()
