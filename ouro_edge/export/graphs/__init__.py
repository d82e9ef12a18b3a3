"""ONNX graphs of the shared block, the head and the prefill copy."""
