"""Exit rules: when a position stops looping."""

__all__ = ["comparisons", "expected_logits", "loop_budget", "loop_states", "parse", "policies"]
