"""Plugins for other tools: optimum-cli, llm, Ray Data."""

__all__ = []
