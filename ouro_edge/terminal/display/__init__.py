"""What `chat` shows: Markdown while it streams, depth colours, the live region."""

__all__ = ["depth", "markdown", "sanitize", "screen", "view"]
