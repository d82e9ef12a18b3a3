"""Exit rules: when a position stops looping."""

__all__ = ["expected_logits", "loop_budget", "loop_states", "parse", "policies"]
