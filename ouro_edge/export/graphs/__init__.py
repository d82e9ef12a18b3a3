"""ONNX graphs of the shared block, the head, the prefill copy and the unrolled model."""
