"""Calls of many row groups: threads that submit groups share calls of one session."""

__all__ = ["batched_call", "call_queue", "crossover", "shared_calls"]
