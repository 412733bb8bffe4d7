"""The engine that serves: the encoder as an ONNX graph, run without torch.

`graph`, `quantise` and `exporter` make the graphs, where a version is made; they need torch and onnx. `onnx_encoder`
and `served` run them, and need NumPy, tokenizers and ONNX Runtime alone.
"""
