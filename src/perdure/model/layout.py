"""Names of a version's files."""

from __future__ import annotations

MODEL_FILE = "model.json"
HEAD_FILE = "head.safetensors"
ADAPTER_FILE = "adapter.safetensors"

ENGINE_FILE = "engine.json"
"""How the version was exported; without it there are no graphs."""
ENCODER_GRAPH = "encoder.onnx"
ADAPTER_GRAPH = "adapter.onnx"
TOKENIZER = "tokenizer.json"
