"""OpenAI's protocol over HTTP, and the chat page."""

__all__ = ["app", "batch", "engine", "limits", "listen", "workers"]
