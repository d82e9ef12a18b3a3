"""ONNX graphs of the shared block, the head and the prefill copy."""

__all__ = ["batched_graph", "batched_prefill_graph", "block_graph", "prefill_graph"]
