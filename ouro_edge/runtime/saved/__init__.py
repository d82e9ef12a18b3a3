"""Sequences that outlive a request: state files and the prefix cache."""

__all__ = ["prefix_cache", "state_file"]
