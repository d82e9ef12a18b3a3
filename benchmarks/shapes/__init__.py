"""The published models as random_checkpoint.py writes them: sizes, config.json, names and shapes of tensors."""
