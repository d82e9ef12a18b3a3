"""Plugins for other tools: optimum-cli, llm."""
