"""Batch files: requests in OpenAI's format, one a line, answered in process by the handlers of the server."""

__all__ = ["files", "output", "run"]
