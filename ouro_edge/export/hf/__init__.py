"""Models written back as checkpoints in Hugging Face's form."""

__all__ = ["bundle_checkpoint", "writer"]
