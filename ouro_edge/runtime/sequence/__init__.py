"""Token sequences, the frontier of every loop, and the hidden rows between them."""

__all__ = ["depth_run", "old_names", "prefix", "sequence", "shared_kv", "shared_prompt", "work"]
