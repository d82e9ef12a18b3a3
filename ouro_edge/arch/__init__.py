"""A model as a specification: strict config.json, tensor names and shapes, and the forward pass in plain NumPy."""

__all__ = ["config", "families", "hf_fields", "loop_program", "published", "reference", "rope", "weights"]
