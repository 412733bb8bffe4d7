"""The engine that serves: the encoder as an ONNX graph, run without torch.

`graph`, `quantise` and `exporter` make the graphs, where a version is made; they need torch and onnx. `onnx_encoder`
and `served` run them, and need NumPy, tokenizers and ONNX Runtime alone.
"""

import os

# Newer releases of ONNX Runtime (1.32 on Linux) start a thread for telemetry when they are imported, unless this is set
# before: what a model serves is nobody else's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
