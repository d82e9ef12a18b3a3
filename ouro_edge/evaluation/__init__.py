"""Checks and explanations of a model: verify against the reference, trace the loops, perplexity and divergence."""

__all__ = ["distances", "divergence", "questions", "sensitivity", "stored_weights", "trace", "trace_page", "verify"]
