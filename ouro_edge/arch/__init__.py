"""A model as a specification: strict config.json, tensor names and shapes, and the forward pass in plain NumPy."""

__all__ = [
    "config",
    "exit_gate",
    "families",
    "family",
    "hf_fields",
    "json_object",
    "loop_program",
    "programs",
    "published",
    "reference",
    "rope",
    "rope_fields",
    "stacks",
    "to_hf",
    "weights",
]
