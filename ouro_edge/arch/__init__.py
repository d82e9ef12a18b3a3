"""A model as a specification: strict config.json, tensor names and shapes, and the forward pass in plain NumPy."""

__all__ = [
    "config",
    "families",
    "family",
    "hf_fields",
    "hrm_text",
    "json_object",
    "loop_program",
    "published",
    "reference",
    "rope",
    "rope_fields",
    "stacks",
    "weights",
]
