"""Checks and explanations of an exported model: verify against the reference, trace the loops."""

__all__ = ["divergence", "stored_weights", "trace", "trace_page", "verify"]
