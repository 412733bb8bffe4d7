"""Memories and buffers beside each other, for `benchmarks/memory.py`."""
