"""OpenAI's Responses API over the chat completions of this server: items in, items out, nothing is stored."""

__all__ = ["handler"]
