"""The engine below the sequences: onnxruntime sessions, KV buffers, cancellation and the lock around them."""

__all__ = [
    "admission",
    "batching",
    "cancel",
    "kv",
    "kv_choice",
    "onnx_backend",
    "prefill_session",
    "protocol",
    "scripted_backend",
    "session",
]
