"""Plugins for other tools: optimum-cli, llm."""

__all__ = []
