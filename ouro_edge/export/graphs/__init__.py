"""ONNX graphs of the shared block, the head and the prefill copy."""

__all__ = ["block_graph", "prefill_graph"]
