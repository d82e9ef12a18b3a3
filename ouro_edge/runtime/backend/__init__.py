"""The engine below the sequences: onnxruntime sessions, KV buffers, cancellation and the lock around them."""
