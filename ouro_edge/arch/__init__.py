"""A model as a specification: strict config.json, tensor names and shapes, and the forward pass in plain NumPy."""
