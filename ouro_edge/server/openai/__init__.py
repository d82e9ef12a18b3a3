"""OpenAI's protocol: chat completions, completions, embeddings, tools, response formats."""

__all__ = ["chat", "completions", "constraints", "embeddings", "replies", "tokens"]
