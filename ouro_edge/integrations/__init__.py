"""Plugins for other tools: optimum-cli, onnxruntime-genai, llm."""
