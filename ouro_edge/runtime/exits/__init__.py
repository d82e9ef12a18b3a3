"""Exit rules: when a position stops looping."""
