"""Sequences that outlive a request: state files and the prefix cache."""
